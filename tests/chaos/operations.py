"""Data components stopped at each of their object-store operations in turn: before it, amid it, and behind it."""

from __future__ import annotations

import contextlib
import functools
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from unittest import mock

from mmbert import storage
from mmbert.artifacts import MANIFEST
from tests.chaos.data_run import Step, fresh_machine, undisturbed
from tests.chaos.matrix import Fault, Setting, Trial

READS = ("read_bytes", "read_range", "_read_range", "open_read", "download", "exists", "list_files", "list_versions")
TEARABLE = ("write_bytes", "upload")
WRITES = (*TEARABLE, "copy", "delete_file", "delete_tree")
Moment = Literal["before", "amid", "behind"]
_QUICK_TRIALS = 4


class StoppedError(BaseException):
    """Nothing catches it, as nothing catches a power cut."""


@dataclass
class Stop:
    """Where to stop: operation number `at`, from 0, before, amid (half of the bytes are written) or behind its effect.
    From there on none has any effect."""

    at: int | None = None
    moment: Moment = "before"
    started: list[str] = field(default_factory=list)
    """The operations, in order."""
    written: set[str] = field(default_factory=set)
    """URIs of `write_bytes` that took effect."""
    _stopped: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _inside: threading.local = field(default_factory=threading.local)

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if getattr(self._inside, "yes", False):  # storage's functions call each other
                return function(*args, **kwargs)
            here = self._start(name)
            self._inside.yes = True
            try:
                with torn() if here and self.moment == "amid" else contextlib.nullcontext():
                    value = function(*args, **kwargs)
                if name == "write_bytes":
                    self.written.add(args[0])
                return value
            finally:
                self._inside.yes = False
                self._end(here)

        return wrapped

    def _start(self, name: str) -> bool:
        """Whether this operation is the one to stop in or behind."""
        with self._lock:
            here = len(self.started) == self.at
            self.started.append(name)
            self._stopped |= here and self.moment == "before"
            if self._stopped:
                raise StoppedError
            return here

    def _end(self, here: bool) -> None:
        with self._lock:
            self._stopped |= here
            if self._stopped:
                raise StoppedError

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for name in (*READS, *WRITES):
                stack.enter_context(mock.patch.object(storage, name, self.around(name, getattr(storage, name))))
            yield


@contextlib.contextmanager
def torn() -> Iterator[None]:
    """Whatever is written is written by half, and then all is over."""

    def write_bytes(path: Path, data: bytes) -> None:
        with path.open("wb") as out:
            out.write(data[: len(data) // 2])
        raise StoppedError

    def copyfile(source: str | Path, target: str | Path) -> None:
        write_bytes(Path(target), Path(source).read_bytes())

    with mock.patch.object(Path, "write_bytes", write_bytes), mock.patch.object(shutil, "copyfile", copyfile):
        yield


def operations(step: Step) -> tuple[list[str], float]:
    """The operations of a step that nothing stops, and its seconds."""
    stop = Stop()
    with tempfile.TemporaryDirectory() as name, fresh_machine(Path(name)), stop.watching():
        began = time.monotonic()
        step.run(str(Path(name, "root")))
    return stop.started, time.monotonic() - began


def stopped(step: Step, at: int, moment: Moment) -> float:
    """Stop a step there, see that nothing uncommitted can be read, and run it again. The seconds of both attempts."""
    with tempfile.TemporaryDirectory() as name, fresh_machine(Path(name)):
        root = str(Path(name, "root"))
        stop = Stop(at, moment)
        began = time.monotonic()
        with stop.watching(), contextlib.suppress(StoppedError):
            step.run(root)
            raise AssertionError(f"{step.component} has no operation {at}")
        committed = storage.join(step.place(root), MANIFEST) in stop.written
        assert step.check_readable(root) == committed, "there without its commit, or gone after it"
        step.run(root)
        seconds = time.monotonic() - began
        step.check_same(root)
    return seconds


def places(names: Sequence[str]) -> list[tuple[int, Moment]]:
    """Where operations of these names can be stopped; of a read it makes no difference when."""
    found: list[tuple[int, Moment]] = []
    for at, name in enumerate(names):
        found.append((at, "before"))
        if name in (*TEARABLE, "download"):
            found.append((at, "amid"))
        if name in WRITES:
            found.append((at, "behind"))
    return found


def _trials(setting: Setting) -> Iterator[Trial]:
    for step in undisturbed(setting.shared).values():
        names, seconds = operations(step)
        chosen = places(names)
        if setting.quick:
            chosen = sorted(setting.random(step.component).sample(chosen, min(_QUICK_TRIALS, len(chosen))))
        for at, moment in chosen:
            yield Trial(
                f"stopped/{step.component}/{at:03d}-{moment}", functools.partial(_lost, step, at, moment, seconds)
            )


def _lost(step: Step, at: int, moment: Moment, undisturbed_seconds: float) -> float:
    return max(0.0, stopped(step, at, moment) - undisturbed_seconds)


STOPPED = Fault("stopped", "data component stopped at an object-store operation", _trials)
