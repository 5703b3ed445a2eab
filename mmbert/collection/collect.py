"""Deleting what a survey found unneeded: marked first, deleted once the mark is as old as the grace time.

An artifact goes after all that was made from it, so that what stands in the store has all its inputs.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmbert import artifacts, marks, progress, storage
from mmbert.collection import layout, pool
from mmbert.collection.needs import RUNNING, Need
from mmbert.collection.survey import (
    CACHE,
    DUE,
    LEFT,
    MARKED,
    SUPERSEDED,
    UNREACHABLE,
    Group,
    Survey,
    survey,
)
from mmbert.collection.tickets import Ticket, alone
from mmbert.errors import InfrastructureError
from mmbert.lineage import Store
from mmbert.marks import Deletion
from mmbert.progress import Advance
from mmbert.storage import StoredFile, UnfinishedUpload

SHORTEST_GRACE_SECONDS = 3600.0
_UPLOAD_SECONDS = 86400.0
"""Longer than the upload of a file takes."""


@dataclass
class Collected:
    """What goes, or went: `gone` now, `marked` after the grace time where nothing needs it until then.

    `spared` are places that were to go, and that a run wants or that something else is still made from; `idle_lost` as
    the survey has them.
    """

    gone: list[Group] = field(default_factory=list)
    marked: list[Group] = field(default_factory=list)
    waiting: list[Group] = field(default_factory=list)
    spared: list[str] = field(default_factory=list)
    uploads: list[UnfinishedUpload] = field(default_factory=list)
    idle_lost: Mapping[str, str] = field(default_factory=dict)


def check(found: Survey) -> None:
    """Raises InfrastructureError where something could not be read: what it refers to is not known to be unneeded."""
    if found.problems:
        more = f"\nand {len(found.problems) - 10} more" if len(found.problems) > 10 else ""
        raise InfrastructureError(
            f"{found.root}: nothing is deleted, because it is not known of all whether it is needed:\n"
            + "\n".join(found.problems[:10])
            + more
        )


def planned(found: Survey, caches: bool) -> Collected:
    """What `collect` would do, as far as a look can tell. Raises as `check`."""
    check(found)
    due, spared = _in_order(found)
    plan = Collected(marked=found.of(UNREACHABLE), waiting=found.of(MARKED), spared=spared, idle_lost=found.idle_lost)
    plan.gone = [*due, *found.of(SUPERSEDED, LEFT), *_caches(found, caches)]
    plan.uploads = _old_uploads(found)
    return plan


def collect(
    root: str, outside: Callable[[Store], Iterable[Need]], grace: float, caches: bool = False,
    lost: Iterable[str] = (),
) -> Collected:  # fmt: skip
    """Delete and mark. `outside`, `grace` and `lost` as for `survey`; `caches`: also what of `work` can be made again.

    Raises InfrastructureError where the store or MLflow cannot be read whole, before anything is changed, or another
    collection is at work; what it had begun when it was killed is gone on with by the next one.
    """
    with alone(root) as ticket:
        found = survey(root, outside, grace, lost, ticket.go_on)
        check(found)
        done = Collected(waiting=found.of(MARKED), idle_lost=found.idle_lost)
        _take_off_marks(found, ticket.go_on)
        files = sum(len(group.files) for group in found.of(DUE, SUPERSEDED, LEFT))
        with progress.shown("deletion", files, "files") as advance:
            _delete_due(found, ticket, done, advance)
            for group in found.of(SUPERSEDED, LEFT):
                ticket.go_on()
                if _delete_rest(found.root, group, ticket.go_on):
                    done.gone.append(group)
                advance(len(group.files))
        # Asked again: what was deleted until here may have taken long.
        idle = caches and not any(need.state == RUNNING for need in outside(Store(found.root, {})))
        for group in _caches(found, idle):
            with progress.shown("deletion of old work", len(group.files), "files") as advance:
                _delete(found.root, [f.path for f in _markers_first(group.files)], ticket.go_on, advance)
            done.gone.append(group)
        done.marked = found.of(UNREACHABLE)
        pool.at_once(functools.partial(_mark, found.root), done.marked, ticket.go_on)
        for upload in _old_uploads(found):
            ticket.go_on()
            storage.abort_upload(upload.uri, upload.upload_id)
            done.uploads.append(upload)
        _drop_empty_places(found)
        return done


def _take_off_marks(found: Survey, go_on: Callable[[], None]) -> None:
    """Of what is needed again, and of places whose artifact somebody else has deleted."""
    standing = {group.place for group in found.of(MARKED, DUE)}
    uris = [storage.join(found.root, place) for place in found.marks if place not in standing]
    pool.at_once(marks.take_off, uris, go_on)


def _in_order(found: Survey) -> tuple[list[Group], list[str]]:
    """The groups that are due, each after all that was made from it, and the places that have to wait for others."""
    due = {group.place: group for group in found.of(DUE)}
    there = {group.place for group in found.groups if group.name == "artifact"} | set(due)
    ordered: list[Group] = []
    going: set[str] = set()
    while ready := [p for p in due if p not in going and all(_gone(c, there, going) for c in found.consumers[p])]:
        going |= set(ready)
        ordered += [due[place] for place in sorted(ready)]
    return ordered, sorted(set(due) - going)


def _gone(consumer: str, there: set[str], going: set[str]) -> bool:
    return consumer not in there or consumer in going


def _delete_due(found: Survey, ticket: Ticket, done: Collected, advance: Advance) -> None:
    ordered, done.spared = _in_order(found)
    spared: set[str] = set(done.spared)
    for group in ordered:
        ticket.go_on()
        held = any(consumer in spared for consumer in found.consumers[group.place])
        if held or not _delete_artifact(found, group, ticket):
            spared.add(group.place)
        else:
            done.gone.append(group)
        advance(len(group.files))
    done.spared = sorted(spared)


def _delete_artifact(found: Survey, group: Group, ticket: Ticket) -> bool:
    """False where a run wants it. Its manifest goes first: without it nothing is found done half."""
    uri = storage.join(found.root, group.place)
    deletion = Deletion(uri, found.marks[group.place])
    if not deletion.begin():
        return False
    deletion.go_on()
    storage.delete_file(storage.join(uri, artifacts.MANIFEST))

    def go_on() -> None:
        deletion.go_on()
        ticket.go_on()

    known = {f"{artifacts.MANIFEST}", marks.MARK, marks.WANTED}
    # What was surveyed and no more: whoever writes here after all keeps it.
    paths = [f.path for f in group.files if f.path.removeprefix(f"{group.place}/") not in known]
    _delete(found.root, paths, go_on)
    deletion.end()
    return True


def _delete_rest(root: str, group: Group, go_on: Callable[[], None]) -> bool:
    """Files that no manifest listed, but those that one lists or somebody wrote by now. False where none is left."""
    uri = storage.join(root, group.place)
    artifact = artifacts.look(uri)
    listed = {file.key for file in artifact.manifest.files} if artifact else set()
    there = {(file.path, file.modified) for file in storage.list_stored(uri) if file.path not in listed}
    paths = [f.path for f in group.files if (f.path.removeprefix(f"{group.place}/"), f.modified) in there]
    _delete(root, paths, go_on)
    return bool(paths)


def _mark(root: str, group: Group) -> None:
    """What an earlier run wanted of it is long ago, and would spare it for ever."""
    uri = storage.join(root, group.place)
    if any(file.path == f"{group.place}/{marks.WANTED}" for file in group.files):
        storage.delete_file(storage.join(uri, marks.WANTED))
    marks.put(uri)


def _caches(found: Survey, wanted: bool) -> list[Group]:
    """Pieces of work that nobody has written to within the grace time, where no work is running."""
    if not wanted or found.busy:
        return []
    pieces: dict[str, list[StoredFile]] = {}
    for group in found.of(CACHE):
        for file in group.files:
            pieces.setdefault(file.path.rpartition("/")[0], []).append(file)
    old = [fs for fs in pieces.values() if all(f.modified < found.when - found.grace for f in fs)]
    return [Group("work", CACHE, "work that is found done", files=[f for fs in old for f in fs])] if old else []


def _markers_first(files: Sequence[StoredFile]) -> list[StoredFile]:
    """A piece of work without its marker is not done, and made again."""
    return sorted(files, key=lambda file: (not file.path.endswith("/done.json"), file.path))


def _old_uploads(found: Survey) -> list[UnfinishedUpload]:
    """Uploads of files of artifacts, begun before the grace time and a day ago at least, that no running work makes."""
    begun_by = found.when - max(found.grace, _UPLOAD_SECONDS)
    uploads = storage.unfinished_uploads(found.root) or []
    return [upload for upload in uploads if upload.begun < begun_by and _is_nobodys(upload, found)]


def _is_nobodys(upload: UnfinishedUpload, found: Survey) -> bool:
    place = layout.where(upload.uri.removeprefix(f"{found.root}/")).place
    return bool(place) and layout.above(place) not in {layout.above(running) for running in found.running}


def _delete(root: str, paths: Sequence[str], go_on: Callable[[], None], advance: Advance = lambda _: None) -> None:
    for first in range(0, len(paths), storage.DELETED_AT_ONCE):
        go_on()
        some = paths[first : first + storage.DELETED_AT_ONCE]
        storage.delete_files(root, some)
        advance(len(some))
    if not storage.is_s3(root):
        for folder in sorted({os.path.dirname(path) for path in paths}, key=len, reverse=True):  # noqa: PTH120
            _drop_empty(Path(root), Path(folder))


def _drop_empty(root: Path, folder: Path) -> None:
    """Empty folders, but for those that a run may be about to write into: the artifact's own and those in it."""
    shared = len(layout.above(str(folder)).split("/")) + 1
    with contextlib.suppress(OSError):
        while len(folder.parts) > shared:
            (root / folder).rmdir()
            folder = folder.parent


def _drop_empty_places(found: Survey) -> None:
    """A folder store's places that held no file, and that nobody has written to, for the grace time."""
    if storage.is_s3(found.root):
        return
    root = Path(found.root)
    filled = {layout.above(group.place) for group in found.groups}
    for place in sorted(root.glob("*/*")):
        name = str(place.relative_to(root))
        if name in filled or layout.where(f"{name}/file").place != name or place.is_symlink():
            continue
        below = [place, *sorted(place.rglob("*"))]
        if all(folder.is_dir() and folder.stat().st_mtime < found.when - found.grace for folder in below):
            with contextlib.suppress(OSError):  # somebody writes there after all
                for folder in reversed(below):
                    folder.rmdir()
