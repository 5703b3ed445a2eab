"""What a file below a root is, by its path alone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from mmbert import artifacts, marks

TICKETS = "collection"
"""Where a collection says that it is at work."""
_KIND = re.compile(r"[a-z][a-z0-9_]*")
_BATCH = re.compile(r"\d{12}")
_PLACE = re.compile(
    rf"(?:^|/)({_KIND.pattern}/{artifacts.FINGERPRINT.pattern}(?:/{artifacts.PERMANENT}/{_BATCH.pattern})?)/"
)
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}")
_CACHES = ("curation", "evaluation")
_PLACE_PARTS = 2


class Part(StrEnum):
    """`UNKNOWN` is none of ours. Of a place: all from `MANIFEST` to `TEMPORARY`."""

    MANIFEST = "manifest"
    MARK = "mark"
    WORK = "work note"
    ATTEMPT = "attempt"
    KEPT = "kept"
    RESUME = "resume checkpoint"
    TEMPORARY = "temporary file"
    CACHE = "cache"
    SPOOL = "spool"
    RECORD = "record"
    TICKET = "ticket"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Where:
    """`place` is an artifact's path below the root, empty for what belongs to none."""

    part: Part
    place: str = ""


_SINGLE = {
    artifacts.MANIFEST: Part.MANIFEST,
    marks.MARK: Part.MARK,
    marks.WANTED: Part.MARK,
    artifacts.WORK: Part.WORK,
}
_FOLDERS = {"attempts": Part.ATTEMPT, artifacts.KEPT: Part.KEPT, artifacts.RESUME: Part.RESUME}
_TOP = {"spool": Part.SPOOL, "results": Part.RECORD, TICKETS: Part.TICKET}


def where(path: str) -> Where:
    top, _, rest = path.partition("/")
    if top in _TOP and rest:
        return Where(_TOP[top])
    if top == "work" and rest:
        return Where(Part.CACHE if rest.split("/")[0] in _CACHES else Part.RECORD)
    parts = path.split("/")
    if len(parts) <= _PLACE_PARTS or not _KIND.fullmatch(top) or not artifacts.FINGERPRINT.fullmatch(parts[1]):
        return Where(Part.UNKNOWN)
    place, inner = parts[:_PLACE_PARTS], parts[_PLACE_PARTS:]
    # A phase's permanent checkpoints are artifacts below its own.
    if inner[0] == artifacts.PERMANENT and len(inner) > _PLACE_PARTS and _BATCH.fullmatch(inner[1]):
        place, inner = [*place, *inner[:2]], inner[2:]
    return Where(_part(inner), "/".join(place))


def place_in(uri: str) -> str:
    """The artifact's path below its root that a URI has in it; empty where it has none."""
    found = _PLACE.search(f"{uri}/")
    return found[1] if found else ""


def above(place: str) -> str:
    """The place that a permanent checkpoint belongs to; the place itself for others."""
    return "/".join(place.split("/")[:_PLACE_PARTS])


def attempt(place: str, path: str) -> str:
    """The name of the attempt that a file of a place is of."""
    return path.removeprefix(f"{place}/").split("/")[1]


def is_kind(name: str) -> bool:
    """Whether a folder at the top of a store can be of artifacts."""
    return _KIND.fullmatch(name) is not None and name not in {*_TOP, "work"}


def kind(path: str) -> str:
    return path.split("/", maxsplit=1)[0]


def _part(inner: list[str]) -> Part:
    if len(inner) == 1:
        named = _SINGLE.get(inner[0])
        return named or (Part.TEMPORARY if _TEMPORARY.fullmatch(inner[0]) else Part.UNKNOWN)
    return _FOLDERS.get(inner[0], Part.UNKNOWN)
