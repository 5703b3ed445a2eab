"""A small Hugging Face hub on loopback: the API that huggingface_hub and datasets use, over files in memory.

Answers, headers and error codes are those that huggingface_hub's own code expects of the real one. Uploads too: a
repository is made, each file's way of upload asked for, large files sent as LFS objects, and a commit names them all.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = "hf_test"
USER = "tester"
LARGE = (".safetensors", ".pt", ".parquet")
"""Files that the hub keeps as LFS objects, by name; it tells the client."""
_REPO = r"(?P<repo>[^/]+/[^/]+)"
_RESOLVE = re.compile(rf"/(?P<kind>datasets/)?{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
_API = re.compile(
    rf"/api/(?P<kind>datasets|models)/{_REPO}(?:/(?P<call>revision|tree|paths-info|refs|auth-check|preupload|commit)(?:/(?P<rest>.*))?)?"
)
_LFS = re.compile(rf"/{_REPO}\.git/info/lfs/objects/batch")
_OBJECT = re.compile(r"/lfs-objects/(?P<oid>[0-9a-f]{64})(?P<verify>/verify)?")


@dataclass
class Repo:
    """A repository: its states by commit, the newest last, and who may read it."""

    gated: bool = False
    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Mapping[str, bytes | str]) -> str:
        """A new state on top of the last one."""
        newest = dict(next(reversed(self.commits.values()), {}))
        newest.update({path: data.encode() if isinstance(data, str) else data for path, data in files.items()})
        name = hashlib.sha1(repr((len(self.commits), sorted(newest.items()))).encode(), usedforsecurity=False)
        self.commits[name.hexdigest()] = newest
        return name.hexdigest()

    def find(self, revision: str) -> str | None:
        if revision == "main":
            return next(reversed(self.commits))
        return self.tags.get(revision, revision if revision in self.commits else None)


class HubServer:
    """The hub. `repos` maps names to repositories; `requests` lists what was asked; `files` are plain URLs."""

    def __init__(self, port: int = 0) -> None:
        self.repos: dict[str, Repo] = {}
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.objects: dict[str, bytes] = {}
        """LFS objects by sha256; those that no commit names are seen by nobody."""
        self.broken: str | None = None
        """Requests (`PUT /path`) that this matches are refused, as a connection is that breaks off for good."""
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def add(self, name: str, files: Mapping[str, bytes | str], **access: bool) -> Repo:
        self.repos[name] = Repo(**access)
        self.repos[name].commit(files)
        return self.repos[name]

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_hub: HubServer

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        body = self._body().decode()
        if self.headers.get("Content-Type", "").startswith("application/x-ndjson"):
            self._answer({"lines": [json.loads(line) for line in body.splitlines()]})
            return
        sent = urllib.parse.parse_qs(body) if not body.startswith("{") else json.loads(body)
        self._answer(sent)

    def do_PUT(self) -> None:
        self._answer({"data": self._body()})

    def do_GET(self) -> None:
        self._answer({})

    def _body(self) -> bytes:
        """The request's body, by its length or in chunks."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, sent: Mapping[str, Any]) -> None:
        hub = self.server_hub
        url = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(url.path)
        hub.requests.append(f"{self.command} {path}")
        if hub.broken and re.search(hub.broken, f"{self.command} {path}"):
            self._error(400, "Broken")
            return
        if self._uploads(path, sent):
            return
        if path in hub.files:
            self._file(hub.files[path], "file", {})
            return
        found = _API.fullmatch(path) or _RESOLVE.fullmatch(path)
        repo = hub.repos.get(found["repo"]) if found else None
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if found is None or repo is None or (repo.private and not allowed):
            self._error(401 if not allowed else 404, "RepoNotFound")
        elif repo.gated and not allowed and (found.re is _RESOLVE or found["call"] == "auth-check"):
            self._error(401 if "Authorization" not in self.headers else 403, "GatedRepo")
        elif found.re is _RESOLVE:
            self._resolve(repo, found["revision"], found["path"])
        else:
            query = urllib.parse.parse_qs(url.query)
            self._api(repo, found["repo"], found["call"], found["rest"] or "", query, sent)

    def _uploads(self, path: str, sent: Mapping[str, Any]) -> bool:
        """Answer a request that writes, if it is one."""
        hub, found = self.server_hub, _API.fullmatch(path)
        calls: dict[str, Any] = {"preupload": self._preupload, "commit": self._commit}
        call = calls.get(found["call"] or "") if found else None
        if target := _OBJECT.fullmatch(path):  # its address is the permission
            if self.command == "PUT":
                assert hashlib.sha256(sent["data"]).hexdigest() == target["oid"]
                hub.objects[target["oid"]] = sent["data"]
            self._json({}) if target["oid"] in hub.objects else self._error(404, "EntryNotFound")
            return True
        batch = _LFS.fullmatch(path)
        if not (call or batch or path in {"/api/repos/create", "/api/validate-yaml"}):
            return False
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._error(401 if "Authorization" not in self.headers else 403, "Unauthorized")
        elif path == "/api/validate-yaml":
            front = re.match(r"---\n(.*?)\n---\n", sent["content"], re.DOTALL)
            assert front is not None
            assert isinstance(yaml.safe_load(front[1]), dict)
            self._json({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            name = f"{sent['organization'] or USER}/{sent['name']}"
            there = name in hub.repos
            if not there:
                hub.add(name, {".gitattributes": ""})
            self._json({"url": f"{hub.endpoint}/{name}", "error": "there already"}, 409 if there else 200)
        elif batch:
            self._json({"transfer": "basic", "objects": [self._object(o) for o in sent["objects"]]})
        elif found is not None and found["repo"] in hub.repos:
            call(hub.repos[found["repo"]], found["repo"], sent)
        else:
            self._error(404, "RepoNotFound")
        return True

    def _preupload(self, repo: Repo, _: str, sent: Mapping[str, Any]) -> None:
        every = {entry["path"]: entry for entry in _entries(repo.commits[repo.find("main") or ""], "", True)}
        files = []
        for file in sent["files"]:
            there = every.get(file["path"], {})
            mode = "lfs" if file["path"].endswith(LARGE) else "regular"
            oid = there.get("lfs", there).get("oid")
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": files})

    def _object(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        hub = self.server_hub
        known = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] in hub.objects:
            return known
        href = f"{hub.endpoint}/lfs-objects/{wanted['oid']}"
        return {**known, "actions": {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}}

    def _commit(self, repo: Repo, name: str, sent: Mapping[str, Any]) -> None:
        files = {}
        for line in sent["lines"]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server_hub.objects[value["oid"]]
        commit = repo.commit(files)
        url = f"{self.server_hub.endpoint}/{name}/commit/{commit}"
        self._json({"success": True, "commitOid": commit, "commitUrl": url})

    def _api(self, repo: Repo, name: str, call: str | None, rest: str, query: Any, sent: Any) -> None:
        if call == "auth-check":
            self._json({})
            return
        if call == "refs":
            branches = [{"name": "main", "ref": "refs/heads/main", "targetCommit": repo.find("main")}]
            tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": c} for n, c in repo.tags.items()]
            self._json({"branches": branches, "tags": tags, "converts": []})
            return
        revision, _, folder = (rest or "main").partition("/")
        commit = repo.find(revision)
        if commit is None:
            self._error(404, "RevisionNotFound")
            return
        files = repo.commits[commit]
        if call in (None, "revision"):
            siblings = [{"rfilename": path} for path in sorted(files)]
            self._json({"id": name, "sha": commit, "private": repo.private, "gated": repo.gated, "siblings": siblings})
        elif call == "tree":
            deep = query.get("recursive", ["false"])[0].lower() == "true"
            entries = _entries(files, folder.strip("/"), deep)
            self._json(entries) if entries or not folder else self._error(404, "EntryNotFound")
        else:
            paths = sent["paths"] if isinstance(sent["paths"], list) else [sent["paths"]]
            every = {entry["path"]: entry for entry in _entries(files, "", True)}
            self._json([every[path] for path in paths if path in every])

    def _resolve(self, repo: Repo, revision: str, path: str) -> None:
        commit = repo.find(revision)
        if commit is None:
            self._error(404, "RevisionNotFound")
        elif path not in repo.commits[commit]:
            self._error(404, "EntryNotFound", {"X-Repo-Commit": commit})
        else:
            data = repo.commits[commit][path]
            self._file(data, hashlib.sha1(data, usedforsecurity=False).hexdigest(), {"X-Repo-Commit": commit})

    def _file(self, data: bytes, etag: str, headers: Mapping[str, str]) -> None:
        start, end, status = 0, len(data), 200
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        more = dict(headers)
        if span:
            start, end, status = int(span[1]), min(int(span[2] or len(data)) + 1, len(data)), 206
            more["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        self._send(status, data[start:end], {"ETag": f'"{etag}"', "Accept-Ranges": "bytes", **more})

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str, headers: Mapping[str, str] | None = None) -> None:
        self._send(status, json.dumps({"error": code}).encode(), {"X-Error-Code": code, **(headers or {})})

    def _send(self, status: int, data: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _entries(files: Mapping[str, bytes], folder: str, deep: bool) -> list[dict[str, Any]]:
    prefix = f"{folder}/" if folder else ""
    found: dict[str, dict[str, Any]] = {}
    for path, data in sorted(files.items()):
        if not path.startswith(prefix):
            continue
        parts = path[len(prefix) :].split("/")
        for depth in range(1, len(parts) if deep else min(len(parts), 2)):
            name = prefix + "/".join(parts[:depth])
            found.setdefault(name, {"type": "directory", "path": name, "oid": "0" * 40, "size": 0})
        if deep or len(parts) == 1:
            oid = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
            found[path] = {"type": "file", "path": path, "oid": oid, "size": len(data)}
            if path.endswith(LARGE):
                pointer = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
                found[path]["lfs"] = pointer
    return list(found.values())
