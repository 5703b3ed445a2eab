"""Watching a trainer's progress from outside, and killing it."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_SECONDS = 400


@dataclass
class Trainer:
    """A running command of which each process leads batches; `lines` is what it has said so far."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    batch: int = 0

    def wait_for_batch(self, number: int) -> None:
        """Return once it has trained that batch. Fails where it ends before."""
        deadline = time.monotonic() + _SECONDS
        while self.batch < number:
            assert self.process.poll() is None, f"it ended before batch {number}:\n{''.join(self.lines)}"
            assert time.monotonic() < deadline, f"no batch {number} within {_SECONDS} s"
            time.sleep(0.005)

    def family(self) -> list[psutil.Process]:
        """Its processes, the first one first."""
        first = psutil.Process(self.process.pid)
        return [first, *first.children(recursive=True)]

    def kill_group(self) -> None:
        """As a power cut: all of its processes at once."""
        for process in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self.process.wait()

    def end(self) -> tuple[int, str]:
        """Its exit code and all that it said, once it has ended."""
        code = self.process.wait(_SECONDS)
        self._reader.join()
        return code, "".join(self.lines)

    def read(self) -> None:
        def follow() -> None:
            for line in self.process.stdout or ():
                self.lines.append(line)
                if found := re.match(r"batch ([\d,]+):", line):
                    self.batch = int(found[1].replace(",", ""))

        self._reader = threading.Thread(target=follow, daemon=True)
        self._reader.start()


@contextlib.contextmanager
def training(command: list[str], env: dict[str, str]) -> Iterator[Trainer]:
    """Start a command that trains; nothing of it is left afterwards."""
    process = subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    trainer = Trainer(process)
    trainer.read()
    try:
        yield trainer
    finally:
        if process.poll() is None:
            trainer.kill_group()


def wait_until_gone(processes: list[psutil.Process], seconds: float) -> None:
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    assert not alive, f"still there: {[(p.pid, p.cmdline()) for p in alive]}"


def mapped_shared_memory(process: psutil.Process) -> list[str]:
    """The shared memory files of a process that a kill would leave behind."""
    maps = Path(f"/proc/{process.pid}/maps").read_text("utf-8").splitlines()
    return [line for line in maps if "/dev/shm/" in line and not line.endswith("(deleted)")]  # noqa: S108
