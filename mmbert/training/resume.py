"""The store of a phase's checkpoints, while it runs. One exists only once its marker is written, last.

Resume checkpoints stand under `<artifact>/resume/<attempt>/<batch>/` with the marker `complete.json`, so that two
attempts at once never overwrite each other and any attempt can go on from the newest of all, found by their markers.
Permanent ones are checkpoint artifacts of their own, `<artifact>/permanent/<batch>`; they stay.
"""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Set
from concurrent import futures
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmbert import metrics, storage
from mmbert.artifacts import MANIFEST, PERMANENT, RESUME, ArtifactWriter, digest_file, digest_json, find
from mmbert.errors import InfrastructureError
from mmbert.sealed import read_sealed, write_sealed

_MARKER = "complete.json"
# The S3 client retries each request by itself; these are for a store that is away for longer.
_RETRY_SECONDS = (1.0, 5.0)


class SpoiltError(InfrastructureError):
    """A resume checkpoint is not what was saved; an older one may be."""


@dataclass(frozen=True)
class ResumePoint:
    uri: str
    batch: int
    tokens: int
    digests: dict[str, str]

    def fetch(self, folder: Path) -> None:
        """Bring its files into a folder, all or none, checked against their digests.

        Raises SpoiltError where one is missing or altered, InfrastructureError where the store or the disk fails.
        """
        incoming = folder / "incoming"
        try:
            for name in self.digests:
                storage.fetched_twice(functools.partial(self._fetch, name, incoming / name), SpoiltError)
            for name in self.digests:
                (incoming / name).replace(folder / name)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)

    def _fetch(self, name: str, target: Path) -> None:
        try:
            storage.download(storage.join(self.uri, name), target)
        except storage.MissingFileError as error:
            raise SpoiltError(f"{self.uri}: '{name}' of the resume checkpoint is missing") from error
        except storage.DamagedError as error:
            raise SpoiltError(str(error)) from error
        if digest_file(target) != self.digests[name]:
            raise SpoiltError(f"{self.uri}: '{name}' of the resume checkpoint was altered or cut short")


@dataclass(frozen=True)
class Saved:
    """A checkpoint on the local disk, in a folder of its own."""

    batch: int
    tokens: int
    folder: Path
    shared: tuple[Path, ...] = ()
    """Files outside the folder that belong to it and never change."""

    def files(self) -> dict[str, Path]:
        return {path.name: path for path in (*sorted(self.folder.iterdir()), *self.shared)}


class CheckpointStore:
    """Uploads checkpoints in the background, one at a time; its folder is deleted afterwards.

    `save` waits for the checkpoint before, so there are never more than two on the local disk. One that failed for good
    is given up with a warning, and the next one is tried; a permanent one is tried again with that.
    """

    def __init__(self, output: ArtifactWriter, keep: int) -> None:
        self._output, self._keep = output, keep
        self._pool = futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint-upload")
        self._in_flight: futures.Future[None] | None = None
        self._failed_in_a_row = 0
        self._permanent: list[Saved] = []
        self._spoilt: set[str] = set()

    def fetch_newest(self, folder: Path) -> ResumePoint | None:
        """The newest resume checkpoint of any attempt that is whole, its files in `folder`; None where there are none.

        Those passed over do not count among the ones to keep. Raises InfrastructureError where there are some and none
        is whole, and where the store or the disk fails.
        """
        points, damaged = _markers(self._output.uri)
        for uri in damaged:
            print(f"warning: {uri}/{_MARKER} cannot be read; trying an older resume checkpoint", flush=True)
        for point in points:
            try:
                point.fetch(folder)
            except SpoiltError as error:
                self._spoilt.add(point.uri)
                print(f"warning: {error}; trying an older resume checkpoint", flush=True)
            else:
                return point
        if points or damaged:
            place = storage.join(self._output.uri, RESUME)
            raise InfrastructureError(
                f"none of the {len(points) + len(damaged)} resume checkpoints in {place} is whole. Bring their files "
                "back, or delete that folder to start the phase anew"
            )
        return None

    def save(self, saved: Saved, permanent: Saved | None = None) -> None:
        """Upload a resume checkpoint, and before it the permanent one of the same batch.

        Raises InfrastructureError where the two before it failed.
        """
        if (error := self._wait()) is not None:
            if self._failed_in_a_row > 1:
                raise error
            print(f"warning: {error}; training goes on until the next one", flush=True)
        if permanent is not None:
            self._permanent.append(permanent)
        self._in_flight = self._pool.submit(self._upload, saved)

    def finish(self) -> None:
        """Wait for the upload in flight; that it failed is a warning, since its phase is at its end.

        Raises InfrastructureError where a permanent checkpoint cannot be stored.
        """
        try:
            if (error := self._wait()) is not None:
                print(f"warning: {error}", flush=True)
            self._store_permanent()
        finally:
            self._pool.shutdown()

    def wait(self, seconds: float) -> None:
        """Wait for the upload in flight, for so long at most. Any thread may call it."""
        if (in_flight := self._in_flight) is not None:
            futures.wait([in_flight], seconds)

    def _wait(self) -> InfrastructureError | None:
        """What the upload in flight failed with."""
        if self._in_flight is None:
            return None
        in_flight, self._in_flight = self._in_flight, None
        try:
            in_flight.result()
        except InfrastructureError as error:
            self._failed_in_a_row += 1
            return error
        self._failed_in_a_row = 0
        return None

    def _upload(self, saved: Saved) -> None:
        try:
            for pause in (*_RETRY_SECONDS, None):
                try:
                    self._store_permanent()
                    _save(self._output, saved)
                    metrics.set_to(metrics.CHECKPOINT_SAVED, time.time())
                    _drop_older(self._output.uri, self._keep, self._spoilt)
                    return
                # A file goes missing where another attempt tidies up in the same folder.
                except (InfrastructureError, storage.MissingFileError) as error:
                    if pause is None:
                        raise InfrastructureError(
                            f"the checkpoint of batch {saved.batch:,} was not stored: {error}"
                        ) from error
                    time.sleep(pause)
        finally:
            shutil.rmtree(saved.folder)

    def _store_permanent(self) -> None:
        """In order and before any later resume checkpoint, so that a run that goes on has not left one out."""
        while self._permanent:
            _keep_for_good(self._output, self._permanent[0])
            shutil.rmtree(self._permanent.pop(0).folder)


def newest_first(artifact_uri: str) -> list[ResumePoint]:
    """All complete resume checkpoints of any attempt."""
    return _markers(artifact_uri)[0]


def _markers(artifact_uri: str) -> tuple[list[ResumePoint], list[str]]:
    """The checkpoints that markers tell of, the newest first, and the places whose markers cannot be read."""
    base = storage.join(artifact_uri, RESUME)
    points, damaged = [], []
    for path in storage.list_files(base):
        if path.endswith(f"/{_MARKER}"):
            uri = storage.join(base, path.rpartition("/")[0])
            try:
                points.append(_point(uri, read_sealed(storage.join(base, path))))
            except storage.MissingFileError:  # another attempt has just replaced it by a newer one
                continue
            except ValueError:
                damaged.append(uri)
    return sorted(points, key=lambda p: (-p.tokens, p.uri)), damaged


def _point(uri: str, marker: dict[str, Any]) -> ResumePoint:
    """Raises ValueError for a marker that none of ours is like."""
    match marker:
        case {"batch": int(batch), "tokens": int(tokens), "digests": dict(digests)}:
            for name, digest in digests.items():
                if not isinstance(digest, str) or "/" in name or name in ("", ".", ".."):
                    raise ValueError(f"'{name}' is no file of a checkpoint")
            return ResumePoint(uri, batch, tokens, digests)
    raise ValueError("no batch, tokens and digests")


def permanent_checkpoints(artifact_uri: str) -> list[str]:
    """Paths of the permanent checkpoints below the artifact, oldest first."""
    found = storage.list_files(storage.join(artifact_uri, PERMANENT))
    return [
        f"{PERMANENT}/{path.partition('/')[0]}" for path in found if path.count("/") == 1 and path.endswith(MANIFEST)
    ]


def drop(artifact_uri: str) -> None:
    """Delete all resume checkpoints, once the artifact is complete."""
    storage.delete_tree(storage.join(artifact_uri, RESUME))


def _save(output: ArtifactWriter, saved: Saved) -> None:
    uri = storage.join(output.uri, RESUME, output.attempt, _name(saved.batch))
    files = saved.files()
    for name, path in files.items():
        storage.upload(storage.join(uri, name), path)
    point = ResumePoint(uri, saved.batch, saved.tokens, {name: digest_file(path) for name, path in files.items()})
    marker = {key: value for key, value in asdict(point).items() if key != "uri"}
    write_sealed(storage.join(uri, _MARKER), marker)


def _drop_older(artifact_uri: str, keep: int, spoilt: Set[str]) -> None:
    """Delete the resume checkpoints of all attempts beyond the newest `keep`.

    Also what is older than the newest one and not whole: uploads that never ended, and the `spoilt`.
    """
    base = storage.join(artifact_uri, RESUME)
    whole = [point for point in newest_first(artifact_uri) if point.uri not in spoilt]
    if not whole:  # another attempt has just dropped it
        return
    kept, beyond = {p.uri for p in whole[:keep]}, {p.uri for p in whole[keep:]}
    places = {path.rpartition("/")[0] for path in storage.list_files(base)}
    for place in sorted(places):
        uri = storage.join(base, place)
        older = place.rpartition("/")[2] < _name(whole[0].batch)
        if uri in beyond or (older and uri not in kept):
            storage.delete_file(storage.join(uri, _MARKER))
            storage.delete_tree(uri)


def _keep_for_good(output: ArtifactWriter, saved: Saved) -> None:
    uri = storage.join(output.uri, PERMANENT, _name(saved.batch))
    if find(uri) is not None:
        return
    fingerprint = digest_json([output.fingerprint, saved.batch])[:32]
    writer = ArtifactWriter(uri, output.kind, fingerprint, output.parameters, output.inputs)
    for name, path in saved.files().items():
        writer.add_file(name, path)
    writer.commit({"checkpoint_of": output.uri, "batch": saved.batch, "tokens": saved.tokens})


def _name(batch: int) -> str:
    return f"{batch:012d}"
