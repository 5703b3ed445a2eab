"""What takes space and what goes, as text and as plain values."""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mmbert import storage
from mmbert.collection.collect import Collected
from mmbert.collection.survey import KEPT_STATES, Group, Survey
from mmbert.storage import UnfinishedUpload
from mmbert.tables import counted, table

_LARGEST = 10
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def size(count: float) -> str:
    """Bytes in the unit that people read, powers of 1,000 as stores bill them."""
    for unit in _UNITS:
        if count < 1000 or unit == _UNITS[-1]:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def survey_text(found: Survey, uploads: Sequence[UnfinishedUpload] | None, old: tuple[int, int], cache: Path) -> str:
    """The tables of `mmbert storage`. `old`: number and bytes of old versions that the bucket keeps."""
    order = {state: place for place, state in enumerate(KEPT_STATES)}
    rows: dict[tuple[str, str, str], list[Group]] = defaultdict(list)
    for group in found.groups:
        rows[group.state, group.kind, group.name].append(group)
    lines = [
        [state, kind, name, *_counts(groups), _whys(groups)]
        for (state, kind, name), groups in sorted(rows.items(), key=lambda r: (order.get(r[0][0], 9), r[0]))
    ]
    total = [group for group in found.groups if group.files]
    lines.append(["all", "", "", *_counts(total), ""])
    parts = [table(["state", "kind", "what", "places", "files", "size", "oldest", "for"], lines, left=3)]
    largest = sorted((g for g in found.groups if g.place), key=lambda g: -g.bytes)[:_LARGEST]
    if largest:
        shown = [
            [size(g.bytes), _day(g.oldest), g.state, f"{g.name}: {storage.join(found.root, g.place)}"] for g in largest
        ]
        parts.append("largest\n" + table(["size", "oldest", "state", "where"], shown, left=0))
    parts.append(_beside(uploads, old))
    parts.append(_cache_text(cache))
    if found.problems:
        parts.append(
            "cannot be read, or is missing (nothing is deleted until this is mended)\n" + "\n".join(found.problems)
        )
    return "\n\n".join(part for part in parts if part)


def survey_json(
    found: Survey, uploads: Sequence[UnfinishedUpload] | None, old: tuple[int, int], cache: Path
) -> dict[str, Any]:
    return {
        "root": found.root,
        "groups": [group_json(found.root, group) for group in found.groups],
        "problems": list(found.problems),
        "unfinished_uploads": None if uploads is None else [_upload_json(upload) for upload in uploads],
        "old_versions": {"files": old[0], "bytes": old[1]},
        "cache": {
            "folder": str(cache),
            "groups": [{"name": n, "files": f, "bytes": b} for n, f, b in _cache(cache)],
        },
    }


def collected_text(root: str, done: Collected, grace: float, deleted: bool) -> str:
    """What goes now, what later, and what stays for a while."""
    ages = f"{grace / 86400:g} days"
    parts = []
    gone = [[size(g.bytes), str(len(g.files)), g.kind, f"{g.name}: {storage.join(root, g.place)}"] for g in done.gone]
    if gone:
        parts.append(
            f"{'deleted' if deleted else 'would be deleted'}: {_sum(done.gone)}\n"
            + table(["size", "files", "kind", "what"], gone, left=0)
        )
    if done.uploads:
        held = sum(upload.size for upload in done.uploads)
        parts.append(
            f"{'ended' if deleted else 'would be ended'}: {len(done.uploads)} unfinished uploads, {size(held)}"
        )
    if done.marked:
        parts.append(
            f"{'marked' if deleted else 'would be marked'} as needed by nothing: {_sum(done.marked)}; they go once "
            f"they are marked for {ages}, if nothing needs them until then\n"
            + "\n".join(f"  {size(g.bytes):>9}  {storage.join(root, g.place)}" for g in _by_size(done.marked))
        )
    if done.waiting:
        parts.append(f"marked before, not yet for {ages}: {_sum(done.waiting)}")
    if done.spared:
        parts.append(
            "stays, because a run wants it or something is still made from it:\n"
            + "\n".join(f"  {storage.join(root, place)}" for place in done.spared)
        )
    if not parts:
        return "nothing to delete: all is needed, or too young"
    if not deleted:
        parts.append("nothing was changed; --delete does it")
    return "\n\n".join(parts)


def collected_json(root: str, done: Collected, deleted: bool) -> dict[str, Any]:
    return {
        "deleted": deleted,
        "gone": [group_json(root, group) for group in done.gone],
        "marked": [group_json(root, group) for group in done.marked],
        "waiting": [group_json(root, group) for group in done.waiting],
        "spared": [storage.join(root, place) for place in done.spared],
        "unfinished_uploads": [_upload_json(upload) for upload in done.uploads],
    }


def group_json(root: str, group: Group) -> dict[str, Any]:
    return {
        "state": group.state,
        "kind": group.kind,
        "name": group.name,
        "why": group.why,
        "uri": storage.join(root, group.place) if group.place else "",
        "files": len(group.files),
        "bytes": group.bytes,
        "oldest": group.oldest,
        "newest": group.newest,
    }


def _upload_json(upload: UnfinishedUpload) -> dict[str, Any]:
    return {"uri": upload.uri, "begun": upload.begun, "bytes": upload.size}


def _counts(groups: Sequence[Group]) -> list[str]:
    places = len({g.place for g in groups if g.place})
    files = sum(len(g.files) for g in groups)
    oldest = min((g.oldest for g in groups), default=0.0)
    return [f"{places:,}" if places else "-", f"{files:,}", size(sum(g.bytes for g in groups)), _day(oldest)]


def _whys(groups: Iterable[Group]) -> str:
    whys = list(dict.fromkeys(group.why for group in groups if group.why))
    more = f" and {len(whys) - 2} more" if len(whys) > 2 else ""
    return "; ".join(whys[:2]) + more


def _sum(groups: Sequence[Group]) -> str:
    """Artifacts, and places with superseded or left-over files, which are none."""
    places = len({g.place for g in groups if g.name != "artifact"})
    artifacts = counted(sum(g.name == "artifact" for g in groups), "artifact")
    what = " and ".join(
        [*([artifacts] if artifacts else []), *([f"rest in {counted(places, 'place')}"] if places else [])]
    )
    files = counted(sum(len(g.files) for g in groups), "file")
    return f"{what} in {files}, {size(sum(g.bytes for g in groups))}"


def _by_size(groups: Sequence[Group]) -> list[Group]:
    return sorted(groups, key=lambda group: -group.bytes)


def _day(seconds: float) -> str:
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d}" if seconds else "-"


def _beside(uploads: Sequence[UnfinishedUpload] | None, old: tuple[int, int]) -> str:
    lines = []
    if uploads is None:
        lines.append("unfinished uploads: this server does not list them")
    elif uploads:
        oldest = _day(min(upload.begun for upload in uploads))
        held = size(sum(upload.size for upload in uploads))
        lines.append(f"unfinished uploads: {len(uploads)}, {held}, the oldest of {oldest}")
    if old[0]:
        lines.append(
            f"old versions that the bucket keeps of what was deleted or overwritten: {old[0]:,}, {size(old[1])}"
        )
    return "\n".join(lines)


def _cache(folder: Path) -> list[tuple[str, int, int]]:
    """(folder, files, bytes) of each part of this machine's cache."""
    parts: dict[str, list[int]] = defaultdict(list)
    for file in storage.list_stored(str(folder)):
        parts[file.path.split("/")[0]].append(file.size)
    return sorted((name, len(sizes), sum(sizes)) for name, sizes in parts.items())


def _cache_text(folder: Path) -> str:
    parts = _cache(folder)
    if not parts:
        return ""
    rows = [[name, f"{files:,}", size(held)] for name, files, held in parts]
    return f"this machine's cache, {folder} (MMBERT_CACHE)\n" + table(
        ["part", "files", "size", ""], [[*r, ""] for r in rows], 1
    )
