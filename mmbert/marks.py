"""How what nothing needs is deleted while runs look for it, on a store without locks (docs/storage.md).

Two objects stand beside a manifest, where there is something to say:

    unreachable.json   the mark: since when nothing needs the artifact, and, while it is being deleted, until when
    wanted.json        that a run found it marked and wants it

The collection marks what it found unreachable. Once the mark is as old as the grace time it says so in the mark,
*then* looks for `wanted.json`, and takes the mark off where that is there. A run that finds a mark writes
`wanted.json`, *then* reads the mark again, and waits where a deletion is going on. Whoever comes second of the two sees
what the first wrote, so an artifact is never used and deleted at once (Dekker's two flags). Stores are strongly
consistent: a read sees all writes that ended before it began.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass

from mmbert import storage
from mmbert.errors import InfrastructureError

MARK = "unreachable.json"
WANTED = "wanted.json"
LEASE_SECONDS = 300.0
"""How long a collection may go on deleting before it has to say so again."""
STALL_SECONDS = 1200.0
"""Longer than a request takes from the moment it was decided on, its repetitions included."""
_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Mark:
    """Times are in seconds since 1970. `until` is 0 where nothing is being deleted (yet)."""

    since: float
    until: float = 0.0


class LostError(InfrastructureError):
    """A collection stood still for longer than it may: others do not count on it any more."""


def settle(uri: str) -> None:
    """Before an artifact is looked for, begun or committed: have it spared if it is marked, and wait out its deletion.

    After this, what stands at `uri` is not deleted within the grace time. A request where it bears no mark. A deletion
    counts as dead when its mark has not been renewed for LEASE_SECONDS and STALL_SECONDS: by the store's clock between
    the mark and `wanted.json`, and from then on by this process's own, whatever the time is on this machine.
    """
    if read(uri) is None:
        return
    storage.write_bytes(storage.join(uri, WANTED), json.dumps({"when": now()}).encode())
    seen: Mark | None = None
    dead_at = 0.0
    while True:
        when = elapsed()
        mark = read(uri)
        if mark is None or not mark.until:
            return
        if mark != seen:
            if seen is None:
                print(f"{uri}: waiting until its deletion by `mmbert storage collect` has ended", flush=True)
            seen, dead_at = mark, when + LEASE_SECONDS + STALL_SECONDS - _unrenewed(uri)
        elif when > dead_at:
            # Its collection was killed. What is left of the files can be gone on from like a killed attempt's.
            storage.delete_file(storage.join(uri, MARK))
            return
        pause(_POLL_SECONDS)


def _unrenewed(uri: str) -> float:
    """For how long the mark had not been renewed when this run wrote `wanted.json`, by the store's clock."""
    try:
        wanted_at, renewed = (storage.modified(storage.join(uri, name)) for name in (WANTED, MARK))
    except storage.MissingFileError:  # one of them was deleted since
        return 0.0
    return max(0.0, wanted_at - renewed)


def read(uri: str) -> Mark | None:
    """An artifact's mark. Raises InfrastructureError where it cannot be read."""
    try:
        data = storage.read_bytes(storage.join(uri, MARK))
    except storage.MissingFileError:
        return None
    try:
        match json.loads(data):
            case {"since": int() | float() as since, "until": int() | float() as until}:
                return Mark(since, until)
    except ValueError:
        pass
    raise InfrastructureError(f"{storage.join(uri, MARK)}: no mark of `mmbert storage collect`; delete it")


def put(uri: str) -> Mark:
    """Mark an artifact that nothing needs."""
    mark = Mark(now())
    _write(uri, mark)
    return mark


def take_off(uri: str) -> None:
    storage.delete_file(storage.join(uri, MARK))


class Deletion:
    """The deletion of what a mark stands at. One collection at a time works on a store."""

    def __init__(self, uri: str, mark: Mark) -> None:
        self.uri = uri
        self._since = mark.since
        self._until = 0.0

    def begin(self) -> bool:
        """Say that it is being deleted. False, and the mark is off, where a run wants it."""
        self._renew()
        if wanted(self.uri):
            take_off(self.uri)
            return False
        return True

    def go_on(self) -> None:
        """To be called before each request that deletes. Raises LostError where it stood still for too long."""
        if elapsed() > self._until:
            raise LostError(f"{self.uri}: the collection stood still for {LEASE_SECONDS:.0f} s; run it again")
        if elapsed() > self._until - LEASE_SECONDS / 2:
            self._renew()

    def end(self) -> None:
        """Once all is gone: from now on its work may be begun anew."""
        self.go_on()
        take_off(self.uri)

    def _renew(self) -> None:
        self._until = elapsed() + LEASE_SECONDS
        _write(self.uri, Mark(self._since, now() + LEASE_SECONDS))


def wanted(uri: str) -> bool:
    """Whether a run found the artifact marked and wants it."""
    return storage.exists(storage.join(uri, WANTED))


def _write(uri: str, mark: Mark) -> None:
    storage.write_bytes(storage.join(uri, MARK), json.dumps(asdict(mark)).encode())


def now() -> float:
    return time.time()


def elapsed() -> float:
    """Seconds of a clock that nobody sets; on Linux it goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def pause(seconds: float) -> None:
    time.sleep(seconds)
