"""Finished pieces of work, kept under the name of all that decides their result, so that none is done twice.

    <uri>/<stage>/<fingerprint>/<files>
    <uri>/<stage>/<fingerprint>/done.json    what was found and the files' digests, written last

The same work gives the same bytes, so two attempts at once are harmless. Everything here can be made again and may be
deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmbert import storage
from mmbert.artifacts import digest_file, digest_json
from mmbert.errors import InfrastructureError, MmbertError, UserError
from mmbert.places import scratch_folder
from mmbert.sealed import read_sealed, write_sealed

_MARKER = "done.json"
_READERS = 16
_ERRORS: dict[int, type[MmbertError]] = {kind.exit_code: kind for kind in (UserError, InfrastructureError)}


@dataclass(frozen=True)
class StoredFile:
    uri: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Finished:
    """A finished piece of work: its files by name, and what was found in it (plain JSON)."""

    fingerprint: str
    files: Mapping[str, StoredFile]
    found: Mapping[str, Any]


def fingerprint(*parts: Any) -> str:
    """32 hex digits that stand for plain JSON values."""
    return digest_json(list(parts))[:32]


class WorkStore:
    """Work under one prefix, in S3 or a folder. Sent to other processes, it works there too."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")

    def find(self, stage: str, fingerprints: Iterable[str]) -> dict[str, Finished]:
        """Those of the pieces that are finished, by fingerprint."""
        with ThreadPoolExecutor(_READERS) as pool:
            found = pool.map(lambda name: self._find(stage, name), dict.fromkeys(fingerprints))
            return {finished.fingerprint: finished for finished in found if finished is not None}

    def commit(self, stage: str, name: str, files: Mapping[str, Path], found: Mapping[str, Any]) -> None:
        """Store the files of a piece of work and then its marker."""
        base = storage.join(self.uri, stage, name)
        listed = {file: [digest_file(path), path.stat().st_size] for file, path in sorted(files.items())}
        with ThreadPoolExecutor(_READERS) as pool:
            list(pool.map(lambda item: storage.upload(storage.join(base, item[0]), item[1]), files.items()))
        write_sealed(storage.join(base, _MARKER), {"files": listed, "found": found})

    @contextlib.contextmanager
    def fetched(self, file: StoredFile) -> Iterator[Path]:
        """A stored file on the local disk, checked. Raises UserError where it was damaged or deleted."""
        if not storage.is_s3(file.uri):
            yield self._checked(file, Path(file.uri))
            return
        with scratch_folder() as folder:
            target = folder / "file"
            yield storage.fetched_twice(lambda: self._download(file, target), UserError)

    def fail(self, attempt: str, error: MmbertError) -> None:
        """Leave an error where the process that waits for this work finds it, whatever machine it runs on."""
        place = storage.join(self.uri, "failed", attempt, f"{uuid.uuid4().hex}.json")
        write_sealed(place, {"exit_code": error.exit_code, "message": str(error)})

    def raise_failure(self, attempt: str) -> None:
        """Raise the first error that `fail` left, if there is one, and forget them all."""
        base = storage.join(self.uri, "failed", attempt)
        failures = [read_sealed(storage.join(base, name)) for name in storage.list_files(base)]
        storage.delete_tree(base)
        for failure in sorted(failures, key=lambda f: str(f["message"])):
            raise _ERRORS.get(failure["exit_code"], MmbertError)(failure["message"])

    def _find(self, stage: str, name: str) -> Finished | None:
        base = storage.join(self.uri, stage, name)
        try:
            marker = read_sealed(storage.join(base, _MARKER))
        except (storage.MissingFileError, ValueError):
            return None
        files = {file: StoredFile(storage.join(base, file), *listed) for file, listed in marker["files"].items()}
        return Finished(name, files, marker["found"])

    def _download(self, file: StoredFile, target: Path) -> Path:
        try:
            storage.download(file.uri, target)
        except storage.MissingFileError:
            target.touch()
        return self._checked(file, target)

    def _checked(self, file: StoredFile, path: Path) -> Path:
        if not path.is_file() or path.stat().st_size != file.size or digest_file(path) != file.sha256:
            raise UserError(
                f"{file.uri}: it is missing or was altered since curation stored it; "
                f"delete {self.uri} and run it again (everything there can be made anew)"
            )
        return path


def read_checked(file: StoredFile, offset: int, size: int, sha256: str) -> bytes:
    """A stretch of a stored file whose digest was kept. Raises UserError where it was damaged."""

    def fetch() -> bytes:
        data = storage.read_range(file.uri, offset, size)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise UserError(
                f"{file.uri}: it was altered since curation stored it; delete the folder 'work' that it is in and run "
                "it again (everything there can be made anew)"
            )
        return data

    return storage.fetched_twice(fetch, UserError)
