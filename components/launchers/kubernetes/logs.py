"""A pod's log as it is written: no line lost and none told twice, however often the connection is cut.

Each line comes with its time (Kubernetes' API reference, pods/log, `timestamps`). After a cut the log is read again
from a little before the last line, and what was told is left out: lines before its time, and as many of its time as
were told.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator

from kubernetes.client.exceptions import ApiException

from components.launchers.kubernetes.api import BROKEN, Cluster
from components.launchers.output import Shown
from mmbert.errors import MmbertError

_PAUSE_SECONDS = 0.5
_DENIED_PAUSE_SECONDS = 15.0
"""Permissions and credentials do not come back within a second."""
_MARGIN_SECONDS = 5
"""For the difference between when a line was written and when it came here."""
_LAST_TRIES = 5
"""How often the rest of a log is asked for: a node that is lost has none to give."""
_ENDING_SECONDS = 90.0
"""A reading that hangs ends by its timeout before that."""
_LINE = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)(?: |$)")


class Place:
    """How far a log was told. Lines are given whole, each with its time before it."""

    def __init__(self) -> None:
        self._time: tuple[str, str] = ("", "")
        self._of_that_time = 0
        self._again = 0
        self._catching_up = False
        self._heard_at: float | None = None

    def begin(self) -> int | None:
        """Say that the log is read again; how many seconds back it has to be, None for from its start."""
        self._again, self._catching_up = 0, True
        if self._heard_at is None:
            return None
        return int(time.monotonic() - self._heard_at) + _MARGIN_SECONDS

    def new(self, line: str) -> str | None:
        """A line without its time, or None where it was told before."""
        found = _LINE.match(line)
        if found is None:
            return line
        when = (found[1], (found[2] or "").ljust(9, "0"))
        if self._catching_up:
            if when < self._time:
                return None
            if when == self._time:
                self._again += 1
                if self._again <= self._of_that_time:
                    return None
            # From here on all is new; a node's clock may be set back.
            self._catching_up = False
        self._of_that_time = self._of_that_time + 1 if when == self._time else 1
        self._time, self._heard_at = when, time.monotonic()
        return line[found.end() :]


class Follower:
    """Shows a pod's log in a thread of its own."""

    def __init__(self, cluster: Cluster, pod: str, container: str) -> None:
        self.shown = Shown()
        self._cluster, self._pod, self._container = cluster, pod, container
        self._ended, self._stopped = threading.Event(), threading.Event()
        self.denied: MmbertError | None = None
        """Why the log may not be read; None once it may be."""
        self._thread = threading.Thread(target=self._follow, name=f"log of {pod}", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Show what is left of a log whose container has ended."""
        self._ended.set()
        self._thread.join(_ENDING_SECONDS)
        self.stop()

    def stop(self) -> None:
        self._stopped.set()

    def _follow(self) -> None:
        self.shown.follow(self._lines())

    def _lines(self) -> Iterator[str]:
        place, tries = Place(), 0
        while not self._stopped.is_set() and tries < _LAST_TRIES:
            # What a log holds after its end is its whole rest.
            last = self._ended.is_set()
            tries += last
            try:
                yield from self._read(place, last)
                if last:
                    return
            except ApiException as error:
                self.denied = self._cluster.refused_log(error)
                if last and error.status in (400, 404):
                    return
            except BROKEN:
                pass
            if last:
                self._stopped.wait(_PAUSE_SECONDS)
            else:
                self._ended.wait(_PAUSE_SECONDS if self.denied is None else _DENIED_PAUSE_SECONDS)

    def _read(self, place: Place, last: bool) -> Iterator[str]:
        begun = b""
        for chunk in self._cluster.log(self._pod, self._container, place.begin(), follow=not last):
            self.denied = None
            *lines, begun = (begun + chunk).split(b"\n")
            for line in lines:
                if (told := place.new(line.decode("utf-8", "replace"))) is not None:
                    yield f"{told}\n"
            if self._stopped.is_set():
                return
        # Of a log that may have been cut, a line without its end comes again.
        if last and begun and (told := place.new(begun.decode("utf-8", "replace"))) is not None:
            yield f"{told}\n"
