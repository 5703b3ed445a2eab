"""Components in processes of their own, which are watched, stopped and killed from outside."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

SECONDS = 300
"""Within which every attempt of a small step ends."""
_GOING_SECONDS = 30


@dataclass(frozen=True)
class Attempt:
    """A running command in a session of its own; what it and its children say goes to the file `log`."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text("utf-8", "replace")

    def alive_after(self, seconds: float) -> bool:
        """Let it work for so long; whether it is still there then."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        return self.process.poll() is None

    def end(self) -> int:
        """Its exit code, once it has ended."""
        return self.process.wait(SECONDS)

    def end_well(self) -> None:
        assert self.end() == 0, self.said

    def family(self) -> list[psutil.Process]:
        """All that live of its session, whoever their parents are by now."""
        return [process for process in psutil.process_iter() if _session(process.pid) == self.process.pid]

    def workers(self) -> list[psutil.Process]:
        """Those of its children that compute, oldest first: not multiprocessing's servants."""
        servants = ("resource_tracker", "forkserver import")
        found = []
        for process in self.family():
            with contextlib.suppress(psutil.Error):
                line = " ".join(process.cmdline())
                if process.pid != self.process.pid and not any(servant in line for servant in servants):
                    found.append(process)
        return sorted(found, key=lambda process: process.pid)

    def send(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        """SIGKILL to the first process alone. Raises where the others of its session do not end by themselves."""
        self.send(signal.SIGKILL)
        self.process.wait()
        self.check_gone()

    def check_gone(self) -> None:
        deadline = time.monotonic() + _GOING_SECONDS
        while left := self.family():
            assert time.monotonic() < deadline, f"orphans: {[(p.pid, _line(p)) for p in left]}\n{self.said}"
            time.sleep(0.05)


@contextlib.contextmanager
def started(command: Sequence[str], env: Mapping[str, str], log: Path) -> Iterator[Attempt]:
    """Start a command; nothing of its session is left afterwards."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    attempt = Attempt(process, log)
    try:
        yield attempt
    finally:
        for member in attempt.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait()


def run_to_end(command: Sequence[str], env: Mapping[str, str], log: Path) -> None:
    """Raises where it does not end well, or leaves a process."""
    with started(command, env, log) as attempt:
        attempt.end_well()
        attempt.check_gone()


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


def _line(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return "ended"
