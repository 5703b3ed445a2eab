"""What containers wrote, and how it is read (API reference, Pod, "read log of the specified Pod")."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from tests.kubernetes.cluster.store import seconds_of


def _stamp(nanoseconds: int) -> str:
    """RFC 3339 with nanoseconds, as container runtimes write it."""
    seconds, rest = divmod(nanoseconds, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


@dataclass
class Log:
    """The lines of one container, each with its time; `changed` is notified of every one."""

    changed: threading.Condition
    lines: list[tuple[int, str]] = field(default_factory=list)
    is_closed: bool = False
    is_lost: bool = False
    """Its node cannot be reached."""

    def write(self, line: str) -> None:
        with self.changed:
            # No two lines with one time: who goes on by `sinceTime` tells them apart.
            last = self.lines[-1][0] if self.lines else 0
            self.lines.append((max(time.time_ns(), last + 1), line))
            self.changed.notify_all()

    def close(self) -> None:
        with self.changed:
            self.is_closed = True
            self.changed.notify_all()

    def tail(self, lines: int = 80, letters: int = 2048) -> str:
        """The end of it, as a termination message (Determine the Reason for Pod Failure)."""
        return "\n".join(text for _, text in self.lines[-lines:])[-letters:]


@dataclass(frozen=True)
class Wanted:
    """The parameters of a request for a log."""

    is_followed: bool = False
    has_times: bool = False
    since: str = ""
    since_seconds: int | None = None
    last: int | None = None

    def first(self, log: Log) -> int:
        """The number of the first line: `sinceTime` counts whole seconds (API reference: the value is an RFC3339
        timestamp; the kubelet compares it with the line's time), `tailLines` from the end."""
        start = 0
        if self.since:
            since = seconds_of(self.since) * 10**9
            start = sum(written < since for written, _ in log.lines)
        if self.since_seconds is not None:
            since = time.time_ns() - self.since_seconds * 10**9
            start = sum(written < since for written, _ in log.lines)
        return start if self.last is None else max(start, len(log.lines) - self.last)

    def read(self, log: Log, is_interrupted: Callable[[], bool]) -> Iterator[str]:
        """Lines as they are served; where they are followed until the container ends, or an interruption is due."""
        with log.changed:
            position = self.first(log)
        is_last = False
        while not is_last:
            with log.changed:
                while position >= len(log.lines) and self.is_followed and not log.is_closed and not is_last:
                    is_last = is_interrupted()
                    if not is_last:
                        log.changed.wait()
                found = log.lines[position:]
                is_last = is_last or log.is_closed or not self.is_followed
            for written, text in found:
                yield f"{_stamp(written)} {text}\n" if self.has_times else f"{text}\n"
            position += len(found)
