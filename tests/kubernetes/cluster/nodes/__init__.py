"""Nodes: pods that were bound to one run there. Who plays a pod (scripted, or podman) is the cluster's choice."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol


class CannotStartError(Exception):
    """A container waits and does not start, for a reason of the kubelet's: ErrImagePull, InvalidImageName, ..."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason, self.message = reason, message


@dataclass(frozen=True)
class Ended:
    """How a container ended; `reason` is Kubernetes' (Error, Completed, OOMKilled)."""

    code: int
    reason: str = ""
    message: str = ""


@dataclass
class Stop:
    """How a pod is asked to end: SIGTERM and, when the grace period is over, SIGKILL."""

    asked: threading.Event = field(default_factory=threading.Event)
    grace: float = 30

    def ask(self, grace: float) -> None:
        self.grace = min(grace, self.grace)
        self.asked.set()


@dataclass(frozen=True)
class Play:
    """A pod to play: the object, its variables with their values, the host names of the cluster's pods, what takes a
    line of its log, what is called when its container runs, and who may stop it."""

    pod: dict[str, Any]
    environment: dict[str, str]
    hosts: list[str]
    log: Callable[[str], None]
    started: Callable[[], None]
    stop: Stop


class Player(Protocol):
    """Plays pods. `play` returns when the pod's container has ended; CannotStartError where it does not start."""

    def play(self, play: Play) -> Ended: ...

    def close(self) -> None: ...
