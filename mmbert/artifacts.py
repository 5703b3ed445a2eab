"""Artifacts: a prefix in object storage that is complete if and only if it holds `manifest.json`, written last.

Layout of one artifact, at `<root>/<kind>/<fingerprint>`:

    manifest.json              what it is, what is in it, who made it from what
    attempts/<attempt>/<path>  the files; each attempt has its own prefix, so two at once are harmless
    kept/<path>                files whose bytes are the same in every attempt, so that any can go on from them
    work.json                  while it is made: what it is made from, so that this is kept for whoever goes on

The content digest covers kind, schema version and the sorted (path, sha256) of the digested files, nothing else.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import platform
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from mmbert import marks, storage
from mmbert.errors import UserError
from mmbert.sealed import seal, unseal

log = logging.getLogger(__name__)

T = TypeVar("T")

MANIFEST = "manifest.json"
MANIFEST_SCHEMA = 1
KEPT = "kept"
RESUME = "resume"
PERMANENT = "permanent"
"""Folders of a training's artifact: resume checkpoints, and checkpoints that are artifacts of their own."""
FINGERPRINT = re.compile(r"[0-9a-f]{32}")
WORK = "work.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")


class SpoiltError(UserError):
    """An artifact's manifest is damaged, or a file is not what the manifest says."""


@dataclass(frozen=True)
class File:
    """One file of an artifact. `path` is its name inside the artifact, `key` its place below the artifact's URI."""

    path: str
    key: str
    sha256: str
    size: int
    digested: bool = True


@dataclass(frozen=True)
class Manifest:
    """What an artifact is. `outputs` are small plain values for the workflow (names to fan out over, labels)."""

    kind: str
    fingerprint: str
    content_digest: str
    files: tuple[File, ...]
    parameters: Mapping[str, Any]
    inputs: Mapping[str, list[dict[str, str]]]
    outputs: Mapping[str, Any] = field(default_factory=dict)
    producer: Mapping[str, Any] = field(default_factory=dict)
    schema: int = MANIFEST_SCHEMA


def content_digest(kind: str, files: Iterable[File]) -> str:
    listed = sorted((f.path, f.sha256) for f in files if f.digested)
    return digest_json([kind, MANIFEST_SCHEMA, listed])


def identifies(kind: str, digest: str) -> bool:
    """Whether a content digest says what is in an artifact: where no file is digested it says the kind alone."""
    return digest != content_digest(kind, ())


def digest_json(value: Any) -> str:
    """sha256 of a plain value's canonical JSON, 64 hex digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fingerprint(component: str, version: int, parameters: Mapping[str, Any], inputs: Mapping[str, list[str]]) -> str:
    """The name of a piece of work: 32 hex digits of component, version, parameters and its inputs' content digests."""
    return digest_json([component, version, parameters, inputs])[:32]


class Artifact:
    """A complete artifact, opened for reading."""

    def __init__(self, uri: str, manifest: Manifest) -> None:
        self.uri = uri.rstrip("/")
        self.manifest = manifest
        self._files = {f.path: f for f in manifest.files}

    @property
    def digest(self) -> str:
        return self.manifest.content_digest

    @property
    def identified(self) -> bool:
        """Whether its content digest tells it from others of its kind: some of its files are digested."""
        return identifies(self.manifest.kind, self.digest)

    @property
    def outputs(self) -> Mapping[str, Any]:
        return self.manifest.outputs

    def paths(self, prefix: str = "") -> list[str]:
        return sorted(p for p in self._files if p.startswith(prefix))

    def file(self, path: str) -> File:
        if path not in self._files:
            raise UserError(
                f"{self.uri}: the {self.manifest.kind} artifact has no file '{path}'; "
                f"it holds {', '.join(self.paths()[:10])}"
            )
        return self._files[path]

    def remote(self, path: str) -> str:
        """The URI of one of its files."""
        return storage.join(self.uri, self.file(path).key)

    def remote_folder(self, folder: str) -> str:
        """The URI of a folder whose files stand together (of one attempt, or kept), as the streaming library wants."""
        first = next((p for p in self.paths(f"{folder.strip('/')}/" if folder else "")), None)
        if first is None:
            raise UserError(f"{self.uri}: the {self.manifest.kind} artifact has no folder '{folder}'")
        key = self.file(first).key
        return storage.join(self.uri, key[: len(key) - len(first)], folder)

    def read(self, path: str) -> bytes:
        """A file's bytes, checked against its digest. Raises UserError if it is missing, truncated or altered."""
        entry = self.file(path)

        def fetch() -> bytes:
            data = storage.read_bytes(self.remote(path))
            self._check(entry, len(data), hashlib.sha256(data).hexdigest())
            return data

        return self._fetched(path, fetch)

    def read_json(self, path: str) -> Any:
        return json.loads(self.read(path))

    def download(self, path: str, target: Path) -> None:
        """Bring a file to `target`, checked against its digest. Raises UserError as `read` does, and leaves nothing."""
        entry = self.file(path)

        def fetch() -> None:
            storage.download(self.remote(path), target)
            try:
                self._check(entry, target.stat().st_size, digest_file(target))
            except SpoiltError:
                target.unlink()
                raise

        self._fetched(path, fetch)

    def fetch(self, path: str, cache: Path) -> Path:
        """Bring a file into `cache` (shared by processes, keyed by content) and return its local path."""
        entry = self.file(path)
        target = cache / entry.sha256[:2] / entry.sha256 / Path(path).name
        if target.exists() and target.stat().st_size == entry.size:
            return target
        incoming = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
        self.download(path, incoming)
        incoming.replace(target)
        return target

    def fetch_folder(self, target: Path, cache: Path, prefix: str = "") -> Path:
        """Bring all files below `prefix` into `target` under their own names, linked from `cache`."""

        def bring(path: str) -> None:
            local = target / path
            local.parent.mkdir(parents=True, exist_ok=True)
            source = self.fetch(path, cache)
            try:
                os.link(source, local)
            except OSError:  # another file system
                shutil.copyfile(source, local)

        target.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(bring, self.paths(prefix)))
        return target

    def _fetched(self, path: str, fetch: Callable[[], T]) -> T:
        try:
            return storage.fetched_twice(fetch, SpoiltError)
        except storage.MissingFileError as error:
            raise self._spoilt(path, "is missing") from error
        except storage.DamagedError as error:
            raise self._spoilt(path, "was altered: its checksum is not the store's") from error

    def _check(self, entry: File, size: int, sha256: str) -> None:
        if size != entry.size:
            raise self._spoilt(entry.path, f"has {size} bytes instead of {entry.size}")
        if sha256 != entry.sha256:
            raise self._spoilt(entry.path, "was altered: its sha256 is not the manifest's")

    def _spoilt(self, path: str, how: str) -> SpoiltError:
        return SpoiltError(
            f"{self.uri}: '{path}' of the {self.manifest.kind} artifact {how}. "
            f"Delete {storage.join(self.uri, MANIFEST)} and run the step again to rebuild it."
        )


def find(uri: str) -> Artifact | None:
    """The artifact at `uri` if it is complete, else None. Who finds it can use it: it is not deleted meanwhile.

    Who may read files and no more reads it without that promise: without the right to list, S3 refuses to say that a
    mark is not there. Raises UserError for a file.
    """
    if os.path.isfile(uri):  # noqa: PTH113 - Path's raises where the name is none
        raise UserError(
            f"{uri}: this is a file, and an artifact's URI is needed here; `mmbert run import_checkpoint` makes one of "
            "a checkpoint's file"
        )
    try:
        marks.settle(uri)
    except storage.AccessError:
        found = look(uri)
        if found is None:
            raise
        _warn_unsettled()
        return found
    return look(uri)


@functools.cache
def _warn_unsettled() -> None:
    log.warning(
        "these credentials may read files of the store and no more, so what is read here can be deleted by `mmbert "
        "storage collect` meanwhile (docs/storage.md says which rights prevent that)"
    )


def look(uri: str) -> Artifact | None:
    """As `find`, for who only looks: it may be deleted at any time."""
    place = storage.join(uri, MANIFEST)
    try:
        return Artifact(uri, storage.fetched_twice(lambda: _parse(uri, storage.read_bytes(place)), SpoiltError))
    except storage.MissingFileError:
        return None


def open_artifact(uri: str, kind: str | None = None) -> Artifact:
    """The artifact at `uri`. Raises UserError if it is not there, unreadable, or of another kind."""
    artifact = find(uri)
    if artifact is None:
        raise UserError(f"{uri}: no complete artifact here ({MANIFEST} is missing); run the step that makes it first")
    if kind is not None and artifact.manifest.kind != kind:
        raise UserError(f"{uri}: this is a {artifact.manifest.kind} artifact, and a {kind} artifact is needed here")
    return artifact


def ancestry(last: Iterable[Artifact]) -> list[Artifact]:
    """The artifacts and all that they were made from, each once, inputs before what was made of them.

    Raises UserError where one that they were made from is gone.
    """
    known = {artifact.uri: artifact for artifact in last}
    waiting = list(known)[::-1]
    opened: set[str] = set()
    ordered: dict[str, Artifact] = {}
    while waiting:
        uri = waiting[-1]
        if uri in opened:  # all that it was made from is placed
            ordered.setdefault(uri, known[waiting.pop()])
            continue
        opened.add(uri)
        made_from = [e["uri"].rstrip("/") for entries in known[uri].manifest.inputs.values() for e in entries]
        for one in reversed(dict.fromkeys(made_from)):
            if one not in opened:
                known[one] = known.get(one) or open_artifact(one)
                waiting.append(one)
    return list(ordered.values())


def _parse(uri: str, data: bytes) -> Manifest:
    try:
        raw = unseal(data)
        if raw["schema"] != MANIFEST_SCHEMA:
            raise SpoiltError(
                f"{uri}: manifest schema {raw['schema']} is not {MANIFEST_SCHEMA}; it was written by another version"
            )
        files = tuple(_checked(File(**f)) for f in raw["files"])
        manifest = Manifest(**{**raw, "files": files})
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SpoiltError(f"{uri}: {MANIFEST} cannot be read ({error}); delete it and run the step again") from error
    if content_digest(manifest.kind, manifest.files) != manifest.content_digest:
        raise SpoiltError(
            f"{uri}: {MANIFEST} was altered: its content digest does not fit its files; "
            "delete it and run the step again"
        )
    return manifest


def _checked(file: File) -> File:
    """Raises ValueError where what it names could lie outside of the artifact, or of a folder that it is brought to."""
    for place in (file.path, file.key):
        if not place or not storage.stays_below(place):
            raise ValueError(f"{place!r} is no path inside of it")
    if not _SHA256.fullmatch(file.sha256):
        raise ValueError(f"'{file.path}' has no sha256")
    return file


def write_folder_manifest(folder: Path, kind: str, parameters: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
    """Make a local folder's files an artifact as they lie; it may be moved or uploaded as a whole."""
    files = tuple(
        File(path.name, path.name, digest_file(path), path.stat().st_size) for path in sorted(folder.iterdir())
    )
    digest = content_digest(kind, files)
    manifest = Manifest(
        kind=kind,
        fingerprint=digest_json([kind, parameters, digest])[:32],
        content_digest=digest,
        files=files,
        parameters=parameters,
        inputs={},
        outputs=outputs,
        producer={"finished": time.time(), "host": platform.node()},
    )
    (folder / MANIFEST).write_bytes(_manifest_bytes(manifest))


def _manifest_bytes(manifest: Manifest) -> bytes:
    return json.dumps(seal(asdict(manifest)), indent=1, sort_keys=True, ensure_ascii=False).encode()


class ArtifactWriter:
    """One attempt at an artifact. Nothing of it can be read as the artifact before `commit`."""

    def __init__(
        self,
        uri: str,
        kind: str,
        fingerprint: str,
        parameters: Mapping[str, Any],
        inputs: Mapping[str, list[dict[str, str]]],
    ) -> None:
        self.uri = uri.rstrip("/")
        self.kind = kind
        self.fingerprint = fingerprint
        self.parameters = parameters
        self.inputs = inputs
        self.attempt = uuid.uuid4().hex[:12]
        self.outputs: dict[str, Any] = {}
        self.after_commit: list[Callable[[], None]] = []
        self._files: dict[str, File] = {}
        self._started = time.time()

    def add_file(self, path: str, source: Path, digested: bool = True) -> None:
        """Upload a file into this attempt. `digested=False` for logs, reports and anything with a clock in it."""
        self._files[path] = entry = self._entry(path, digest_file(source), source.stat().st_size, digested)
        storage.upload(storage.join(self.uri, entry.key), source)

    def add_folder(self, folder: str, source: Path, digested: bool = True) -> None:
        """Upload every file below `source`, in parallel, as `folder/...`."""
        files = sorted(p for p in source.rglob("*") if p.is_file())
        names = [f"{folder}/{p.relative_to(source)}".lstrip("/") for p in files]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda pair: self.add_file(pair[0], pair[1], digested), zip(names, files, strict=True)))

    def add_copies(self, copies: Iterable[tuple[str, str, str, int, bool]]) -> None:
        """Copy files of known content within the store: (path, URI, sha256, size, digested) of each, in parallel."""

        def copy(item: tuple[str, str, str, int, bool]) -> None:
            path, source, sha256, size, digested = item
            self._files[path] = entry = self._entry(path, sha256, size, digested)
            storage.copy(source, storage.join(self.uri, entry.key))

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(copy, copies))

    def add_bytes(self, path: str, data: bytes, digested: bool = True) -> None:
        self._files[path] = entry = self._entry(path, hashlib.sha256(data).hexdigest(), len(data), digested)
        storage.write_bytes(storage.join(self.uri, entry.key), data)

    def add_json(self, path: str, value: Any, digested: bool = True) -> None:
        self.add_bytes(
            path, (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode(), digested
        )

    @property
    def kept_uri(self) -> str:
        """Where work that any attempt may go on from puts its files; `adopt` makes them the artifact's."""
        return storage.join(self.uri, KEPT)

    def adopt(self, path: str, sha256: str, size: int) -> None:
        """List a file that stands below `kept_uri` already. Its bytes must not depend on the attempt."""
        self._files[path] = File(path=path, key=f"{KEPT}/{path}", sha256=sha256, size=size)

    def begin(self, uris: Iterable[str]) -> None:
        """Leave a note in the store of what this is made from, so that it is kept until the artifact is complete."""
        marks.settle(self.uri)
        storage.write_bytes(storage.join(self.uri, WORK), json.dumps({"inputs": sorted(uris)}).encode())
        self.after_commit.append(lambda: storage.delete_file(storage.join(self.uri, WORK)))

    def commit(self, producer: Mapping[str, Any]) -> Artifact:
        """Write the manifest, which makes the artifact complete, then do what waits for that (`after_commit`)."""
        files = tuple(self._files[p] for p in sorted(self._files))
        manifest = Manifest(
            kind=self.kind,
            fingerprint=self.fingerprint,
            content_digest=content_digest(self.kind, files),
            files=files,
            parameters=self.parameters,
            inputs=self.inputs,
            outputs=self.outputs,
            producer={
                **producer,
                "attempt": self.attempt,
                "started": self._started,
                "finished": time.time(),
                "host": platform.node(),
            },
        )
        marks.settle(self.uri)
        storage.write_bytes(storage.join(self.uri, MANIFEST), _manifest_bytes(manifest))
        for action in self.after_commit:
            action()
        return Artifact(self.uri, manifest)

    def _entry(self, path: str, sha256: str, size: int, digested: bool) -> File:
        return File(path=path, key=f"attempts/{self.attempt}/{path}", sha256=sha256, size=size, digested=digested)
