"""Pods without containers: a function says what each does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tests.kubernetes.cluster.nodes import CannotStartError, Ended, Play

_WAITING = {
    "ContainerCreating", "CreateContainerConfigError", "CreateContainerError", "ErrImagePull", "ErrImageNeverPull",
    "ImagePullBackOff", "InvalidImageName",
}  # fmt: skip
FOREVER = math.inf


@dataclass(frozen=True)
class Run:
    """What a pod does: write lines (a generator may wait between them), run for these seconds, end with this code.

    A `reason` of those for which containers wait (ErrImagePull, InvalidImageName, CreateContainerConfigError, ...) lets
    it never start, with `message`; another one is that of its end (OOMKilled). `stopped` is its exit code when it is
    asked to end; None: it does not listen, and is killed (137), here at once.
    """

    lines: Iterable[str] = ()
    seconds: float = 0
    code: int = 0
    reason: str = ""
    message: str = ""
    stopped: int | None = 143


class Scripted:
    """Plays pods by what `behaviour` returns for each; called once a pod, when its container would start."""

    def __init__(self, behaviour: Callable[[dict[str, Any]], Run] = lambda pod: Run()) -> None:
        self.behaviour = behaviour

    def play(self, play: Play) -> Ended:
        run = self.behaviour(play.pod)
        if run.reason in _WAITING:
            raise CannotStartError(run.reason, run.message)
        play.started()
        for line in run.lines:
            play.log(line)
            if play.stop.asked.is_set():
                break
        if self._is_stopped(play, run.seconds):
            if run.stopped is None or play.stop.grace <= 0:
                return Ended(137, "Error")
            return Ended(run.stopped, "Error" if run.stopped else "Completed")
        return Ended(run.code, run.reason or ("Error" if run.code else "Completed"), run.message)

    @staticmethod
    def _is_stopped(play: Play, seconds: float) -> bool:
        return play.stop.asked.wait(None if seconds == FOREVER else seconds)

    def close(self) -> None:
        pass
