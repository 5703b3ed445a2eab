"""The API server: HTTP on loopback (Kubernetes API Concepts, "Resource URIs", "API verbs")."""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.kubernetes.cluster import admission, deletion, errors, resources, selectors, validation
from tests.kubernetes.cluster.access import Access
from tests.kubernetes.cluster.errors import ApiError
from tests.kubernetes.cluster.faults import Faults
from tests.kubernetes.cluster.kubelet import Kubelet
from tests.kubernetes.cluster.logs import Log, Wanted
from tests.kubernetes.cluster.resources import POD, Kind
from tests.kubernetes.cluster.store import Object, Store, suffix
from tests.kubernetes.cluster.watches import CutError, Watch

TOKEN = "token-of-the-stand-in"
VERSION = {
    "major": "1", "minor": "34", "gitVersion": "v1.34.0", "gitCommit": "", "gitTreeState": "clean", "buildDate": "",
    "goVersion": "", "compiler": "", "platform": "stand-in",
}  # fmt: skip

_PATH = re.compile(
    r"/(?:api/(?P<core>v1)|apis/(?P<group>[^/]+)/(?P<version>[^/]+))"
    r"(?:/namespaces/(?P<namespace>[^/]+)(?=/))?/(?P<plural>[a-z]+)(?:/(?P<name>[^/]+))?(?:/(?P<part>[a-z]+))?"
)
_REVIEW = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


@dataclass(frozen=True)
class Api:
    """What the server serves."""

    store: Store
    kubelet: Kubelet
    faults: Faults
    access: Access


class Server(ThreadingHTTPServer):
    """Serves an Api on a free port of loopback, in threads of its own, from the start to `stop`."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, api: Api) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.api, self.is_closing = api, False
        self._connections: set[socket.socket] = set()
        self._thread = threading.Thread(target=lambda: self.serve_forever(0.02), name="api server", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def stop(self) -> None:
        """Answer nobody any more, and end the connections that are open."""
        self.is_closing = True
        with self.api.store.changed:
            self.api.store.changed.notify_all()
        self.shutdown()
        self.server_close()
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who hangs up is no error of the server's; all else is shown by the base."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


@dataclass(frozen=True)
class _Place:
    kind: Kind
    namespace: str
    name: str
    part: str


def _merged(present: Any, change: Any) -> Any:
    """RFC 7386: null takes a key out, an object is merged, all else replaces."""
    if not isinstance(change, dict):
        return change
    result = dict(present) if isinstance(present, dict) else {}
    for key, value in change.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merged(result.get(key), value)
    return result


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing is logged."""

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_PUT = do_DELETE = do_PATCH = do_GET  # noqa: N815

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        api, url = self.server.api, urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
        try:
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                raise ApiError(401, "Unauthorized", "Unauthorized")
            api.faults.raise_for(self.command, self.path)
            loses = api.faults.loses(self.command, self.path)
            self._route(url.path, query, json.loads(body) if body else {}, loses)
        except ApiError as error:
            self._answer(error.code, error.status(), error.headers)
        except CutError:
            self._cut()

    def _route(self, path: str, query: dict[str, str], body: Any, loses: bool) -> None:
        if path in ("/version", "/version/"):
            self._answer(200, VERSION)
        elif path in ("/livez", "/readyz", "/healthz"):
            self._text(["ok"])
        elif path == _REVIEW:
            self._answer(201, self.server.api.access.review(body))
        else:
            self._resource(self._place(path), query, body, loses)

    @staticmethod
    def _place(path: str) -> _Place:
        found = _PATH.fullmatch(path)
        kind = found and resources.find(found["group"] or "", found["core"] or found["version"], found["plural"])
        if not found or not kind:
            raise ApiError(404, "NotFound", "the server could not find the requested resource")
        return _Place(kind, found["namespace"] or "", found["name"] or "", found["part"] or "")

    def _resource(self, place: _Place, query: dict[str, str], body: Any, loses: bool) -> None:
        api, kind = self.server.api, place.kind
        is_watch = query.get("watch") in ("true", "1", "True")
        verb = _VERBS.get(self.command) or ("get" if place.name else "watch" if is_watch else "list")
        if verb == "delete" and not place.name:
            verb = "deletecollection"
        api.access.check(verb, kind, place.part, place.namespace, place.name)
        if self.command not in ("GET", *_VERBS) or verb == "deletecollection":
            raise ApiError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
        if place.part == "log" and kind is POD:
            self._log(place, query)
        elif verb == "watch":
            self._watch(place, query)
        else:
            code, answer = {
                "get": self._get, "list": self._list, "create": self._create, "update": self._update,
                "patch": self._patch, "delete": self._delete,
            }[verb](place, query, body)  # fmt: skip
            if loses:
                self._cut()
            else:
                self._answer(code, answer)

    def _get(self, place: _Place, _: dict[str, str], __: Any) -> tuple[int, Object]:
        return 200, self.server.api.store.get(place.kind, place.namespace, place.name)

    def _list(self, place: _Place, query: dict[str, str], _: Any) -> tuple[int, Object]:
        """All results in one answer: a server may leave `limit` aside (API reference, ListOptions)."""
        store, kind = self.server.api.store, place.kind
        selects = selectors.matcher(kind, query.get("labelSelector", ""), query.get("fieldSelector", ""))
        with store.changed:
            items = [item for item in store.list(kind, place.namespace) if selects(item)]
            version = str(store.version)
        meta = {"resourceVersion": version}
        return 200, {
            "kind": f"{kind.kind}List", "apiVersion": kind.api_version, "metadata": meta, "items": items,
        }  # fmt: skip

    def _create(self, place: _Place, query: dict[str, str], body: Any) -> tuple[int, Object]:
        kind, store = place.kind, self.server.api.store
        document = validation.checked(kind, body)
        meta = document["metadata"]
        if kind.is_namespaced and meta.setdefault("namespace", place.namespace) != place.namespace:
            raise errors.bad_request("the namespace of the provided object does not match the namespace of the request")
        if not meta.get("name"):
            meta["name"] = meta["generateName"][:58] + suffix()
        with store.changed:
            document = admission.admit(store, kind, document)
            if "dryRun" in query:
                return 201, document
            return 201, store.create(kind, document)

    def _update(self, place: _Place, _: dict[str, str], body: Any) -> tuple[int, Object]:
        """Of the status alone where asked for it, else of all but the status (Kubernetes API Concepts, "API verbs";
        API conventions, "Spec and Status"). Validated as at its creation; a Job's template stays (Jobs, "Mutable
        Scheduling Directives" aside)."""
        kind, store = place.kind, self.server.api.store
        document = validation.checked(kind, body)
        with store.changed:
            present = store.get(kind, place.namespace, place.name)
            document["metadata"].setdefault("namespace", place.namespace)
            if place.part == "status":
                version = document["metadata"].get("resourceVersion", present["metadata"]["resourceVersion"])
                meta = {**present["metadata"], "resourceVersion": version}
                document = {**present, "status": document.get("status", {}), "metadata": meta}
            else:
                validation.check_update(kind, present, document)
                document["status"] = present.get("status", {})
                if "deletionTimestamp" in present["metadata"]:
                    for key in ("deletionTimestamp", "deletionGracePeriodSeconds"):
                        document["metadata"][key] = present["metadata"][key]
                document["metadata"]["generation"] = present["metadata"]["generation"]
            return 200, store.update(kind, document)

    def _patch(self, place: _Place, query: dict[str, str], body: Any) -> tuple[int, Object]:
        """A merge patch; others are 415 (Kubernetes API Concepts, "Patch mechanisms"; RFC 7386)."""
        if self.headers.get("Content-Type") != "application/merge-patch+json":
            raise ApiError(415, "UnsupportedMediaType", "the stand-in takes application/merge-patch+json alone")
        with self.server.api.store.changed:
            present = self.server.api.store.get(place.kind, place.namespace, place.name)
            return self._update(place, query, _merged(present, body))

    def _delete(self, place: _Place, query: dict[str, str], body: Any) -> tuple[int, Object]:
        """The object while something still holds it, else a Status (API conventions, "Response Status Kind")."""
        kind, store = place.kind, self.server.api.store
        options = dict(body or {})
        if "propagationPolicy" in query:
            options["propagationPolicy"] = query["propagationPolicy"]
        if "gracePeriodSeconds" in query:
            options["gracePeriodSeconds"] = int(query["gracePeriodSeconds"])
        item = deletion.delete(store, kind, place.namespace, place.name, options)
        if store.find(kind, place.namespace, place.name):
            return 200, item
        details = {"name": place.name, "group": kind.group, "kind": kind.plural, "uid": item["metadata"]["uid"]}
        status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}
        return 200, status

    def _watch(self, place: _Place, query: dict[str, str]) -> None:
        api = self.server.api
        watch = Watch(
            kind=place.kind,
            namespace=place.namespace,
            selects=selectors.matcher(place.kind, query.get("labelSelector", ""), query.get("fieldSelector", "")),
            version=query.get("resourceVersion", ""),
            seconds=float(query["timeoutSeconds"]) if "timeoutSeconds" in query else None,
            has_bookmarks=query.get("allowWatchBookmarks") in ("true", "True", "1"),
        )
        events = watch.events(api.store, api.faults, lambda: self.server.is_closing)
        self._stream("application/json", (json.dumps(event) + "\n" for event in events))

    def _log(self, place: _Place, query: dict[str, str]) -> None:
        pod = self.server.api.store.get(POD, place.namespace, place.name)
        log = self._readable(pod, query.get("container", ""))
        wanted = Wanted(
            is_followed=query.get("follow") in ("true", "True", "1"),
            has_times=query.get("timestamps") in ("true", "True", "1"),
            since=query.get("sinceTime", ""),
            since_seconds=int(query["sinceSeconds"]) if "sinceSeconds" in query else None,
            last=int(query["tailLines"]) if "tailLines" in query else None,
        )
        self._stream("text/plain", self._followed(wanted, log))

    def _followed(self, wanted: Wanted, log: Log) -> Iterable[str]:
        faults = self.server.api.faults

        def is_interrupted() -> bool:
            if faults.comes("log"):
                raise CutError
            return self.server.is_closing or faults.comes("quiet log")

        return wanted.read(log, is_interrupted)

    def _readable(self, pod: Object, container: str) -> Log:
        """The log of a pod whose container has begun; else 400, in the words of the API server and the kubelet."""
        name = pod["metadata"]["name"]
        names = [item["name"] for item in pod["spec"]["containers"]]
        if not container and len(names) > 1:
            raise errors.bad_request(f"a container name must be specified for pod {name}, choose one of: {names}")
        if container and container not in names:
            raise errors.bad_request(f"container {container} is not valid for pod {name}")
        if not pod["spec"].get("nodeName"):
            raise errors.bad_request(f"pod {name} does not have a host assigned")
        log = self.server.api.kubelet.log(pod["metadata"]["uid"])
        state = (pod["status"].get("containerStatuses") or [{"state": {"waiting": {}}}])[0]["state"]
        if log is None or "waiting" in state:
            reason = state.get("waiting", {}).get("reason", "ContainerCreating")
            told = f'container "{container or names[0]}" in pod "{name}" is waiting to start: {reason}'
            raise errors.bad_request(told)
        if log.is_lost:
            address = f"https://{pod['status']['hostIP']}:10250/containerLogs/{pod['metadata']['namespace']}/{name}"
            raise ApiError(500, "InternalError", f'Get "{address}": dial tcp: i/o timeout')
        return log

    def _answer(self, code: int, document: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(document).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()

    def _text(self, lines: Iterable[str]) -> None:
        self._stream("text/plain", lines)

    def _stream(self, kind: str, parts: Iterable[str]) -> None:
        """In chunks, each as soon as it is there."""
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()
        for part in parts:
            data = part.encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()

    def _cut(self) -> None:
        """Hang up in the midst."""
        self.close_connection = True
        with suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
