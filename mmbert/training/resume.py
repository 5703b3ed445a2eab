"""Resume checkpoints: what a killed run goes on from. One exists only once its marker is written, last.

They stand under `<artifact>/resume/<attempt>/<batch>/`, so that two attempts at once never overwrite each other, and
any attempt can go on from the newest of all.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmbert import storage
from mmbert.artifacts import digest_file

_MARKER = "complete.json"


@dataclass(frozen=True)
class ResumePoint:
    uri: str
    batch: int
    tokens: int
    digests: dict[str, str]

    def fetch(self, folder: Path) -> dict[str, Path]:
        """Its files by name, checked against their digests."""
        files = {}
        for name, digest in self.digests.items():
            storage.download(storage.join(self.uri, name), folder / name)
            if digest_file(folder / name) != digest:
                raise _SpoiltError(name)
            files[name] = folder / name
        return files


class _SpoiltError(Exception):
    pass


def save(artifact_uri: str, attempt: str, batch: int, tokens: int, files: dict[str, Path], keep: int) -> None:
    """Upload a resume checkpoint and drop this attempt's older ones beyond `keep`."""
    base = storage.join(artifact_uri, "resume", attempt)
    uri = storage.join(base, f"{batch:012d}")
    for name, path in files.items():
        storage.upload(storage.join(uri, name), path)
    marker = {"batch": batch, "tokens": tokens, "digests": {n: digest_file(p) for n, p in files.items()}}
    storage.write_bytes(storage.join(uri, _MARKER), json.dumps(marker).encode())
    markers = [path for path in storage.list_files(base) if path.endswith(_MARKER)]
    for old in markers[:-keep]:
        storage.delete_file(storage.join(base, old))
        storage.delete_tree(storage.join(base, old.rpartition("/")[0]))


def newest_first(artifact_uri: str) -> list[ResumePoint]:
    """All complete resume checkpoints of any attempt."""
    base = storage.join(artifact_uri, "resume")
    points = []
    for path in storage.list_files(base):
        if path.endswith(f"/{_MARKER}"):
            try:
                marker: dict[str, Any] = json.loads(storage.read_bytes(storage.join(base, path)))
            except storage.MissingFileError:  # another attempt has just replaced it by a newer one
                continue
            points.append(ResumePoint(storage.join(base, path.rpartition("/")[0]), **marker))
    return sorted(points, key=lambda p: (-p.tokens, p.uri))


def fetch_newest(artifact_uri: str, folder: Path) -> tuple[ResumePoint, dict[str, Path]] | None:
    """The newest resume checkpoint that is whole, fetched; None where there is none."""
    for point in newest_first(artifact_uri):
        try:
            return point, point.fetch(folder)
        except (_SpoiltError, storage.MissingFileError):
            print(f"warning: resume checkpoint {point.uri} is not whole; trying an older one")
    return None


def drop(artifact_uri: str) -> None:
    """Delete all resume checkpoints, once the artifact is complete."""
    storage.delete_tree(storage.join(artifact_uri, "resume"))
