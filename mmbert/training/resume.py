"""The store of a phase's checkpoints, while it runs. One exists only once its marker is written, last.

Resume checkpoints stand under `<artifact>/resume/<attempt>/<batch>/` with the marker `complete.json`, so that two
attempts at once never overwrite each other and any attempt can go on from the newest of all, found by their markers.
Permanent ones are checkpoint artifacts of their own, `<artifact>/permanent/<batch>`; they stay.
"""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmbert import storage
from mmbert.artifacts import MANIFEST, ArtifactWriter, digest_file, digest_json, find
from mmbert.errors import InfrastructureError

PERMANENT = "permanent"
_RESUME = "resume"
_MARKER = "complete.json"
# The S3 client retries each request by itself; these are for a store that is away for longer.
_RETRY_SECONDS = (1.0, 5.0)


@dataclass(frozen=True)
class ResumePoint:
    uri: str
    batch: int
    tokens: int
    digests: dict[str, str]

    def fetch(self, folder: Path) -> None:
        """Bring its files into a folder, checked against their digests. Raises InfrastructureError for one spoilt."""
        for name, digest in self.digests.items():
            storage.download(storage.join(self.uri, name), folder / name)
            if digest_file(folder / name) != digest:
                raise InfrastructureError(f"{self.uri}: '{name}' of the resume checkpoint was altered or cut short")


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

    `save` waits for the checkpoint before, so there are never more than two on the local disk. An upload that failed
    for good raises InfrastructureError in the next `save`, or in `finish`.
    """

    def __init__(self, output: ArtifactWriter, keep: int) -> None:
        self._output, self._keep = output, keep
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-upload")
        self._in_flight: Future[None] | None = None

    def save(self, saved: Saved, permanent: Saved | None = None) -> None:
        """Upload a resume checkpoint, and before it the permanent one of the same batch."""
        self._wait()
        self._in_flight = self._pool.submit(self._upload, saved, permanent)

    def finish(self) -> None:
        """Wait for the upload in flight. Raises InfrastructureError where it failed."""
        try:
            self._wait()
        finally:
            self._pool.shutdown()

    def _wait(self) -> None:
        if self._in_flight is not None:
            in_flight, self._in_flight = self._in_flight, None
            in_flight.result()

    def _upload(self, saved: Saved, permanent: Saved | None) -> None:
        for pause in (*_RETRY_SECONDS, None):
            try:
                if permanent is not None:
                    _keep_for_good(self._output, permanent)
                _save(self._output, saved)
                _drop_older(self._output.uri, self._keep)
                break
            except InfrastructureError as error:
                if pause is None:
                    raise InfrastructureError(
                        f"the checkpoint of batch {saved.batch:,} was not stored: {error}"
                    ) from error
                time.sleep(pause)
        for done in (saved, permanent):
            if done is not None:
                shutil.rmtree(done.folder)


def newest_first(artifact_uri: str) -> list[ResumePoint]:
    """All complete resume checkpoints of any attempt."""
    base = storage.join(artifact_uri, _RESUME)
    points = []
    for path in storage.list_files(base):
        if path.endswith(f"/{_MARKER}"):
            try:
                marker: dict[str, Any] = json.loads(storage.read_bytes(storage.join(base, path)))
            except storage.MissingFileError:  # another attempt has just replaced it by a newer one
                continue
            points.append(ResumePoint(storage.join(base, path.rpartition("/")[0]), **marker))
    return sorted(points, key=lambda p: (-p.tokens, p.uri))


def fetch_newest(artifact_uri: str, folder: Path) -> ResumePoint | None:
    """The newest resume checkpoint that is whole, its files brought into `folder`; None where there is none."""
    for point in newest_first(artifact_uri):
        try:
            point.fetch(folder)
        except (InfrastructureError, storage.MissingFileError) as error:
            print(f"warning: {error}; trying an older resume checkpoint", flush=True)
        else:
            return point
    return None


def permanent_checkpoints(artifact_uri: str) -> list[str]:
    """Paths of the permanent checkpoints below the artifact, oldest first."""
    found = storage.list_files(storage.join(artifact_uri, PERMANENT))
    return [
        f"{PERMANENT}/{path.partition('/')[0]}" for path in found if path.count("/") == 1 and path.endswith(MANIFEST)
    ]


def drop(artifact_uri: str) -> None:
    """Delete all resume checkpoints, once the artifact is complete."""
    storage.delete_tree(storage.join(artifact_uri, _RESUME))


def _save(output: ArtifactWriter, saved: Saved) -> None:
    uri = storage.join(output.uri, _RESUME, output.attempt, _name(saved.batch))
    files = saved.files()
    for name, path in files.items():
        storage.upload(storage.join(uri, name), path)
    point = ResumePoint(uri, saved.batch, saved.tokens, {name: digest_file(path) for name, path in files.items()})
    marker = {key: value for key, value in asdict(point).items() if key != "uri"}
    storage.write_bytes(storage.join(uri, _MARKER), json.dumps(marker).encode())


def _drop_older(artifact_uri: str, keep: int) -> None:
    """Delete the resume checkpoints of all attempts beyond the newest `keep`, and older uploads that never ended."""
    base = storage.join(artifact_uri, _RESUME)
    kept = newest_first(artifact_uri)[:keep]
    if len(kept) < keep:
        return
    kept_places = {point.uri for point in kept}
    places = {path.rpartition("/")[0] for path in storage.list_files(base)}
    for place in sorted(places):
        uri = storage.join(base, place)
        if uri not in kept_places and place.rpartition("/")[2] <= _name(kept[-1].batch):
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
