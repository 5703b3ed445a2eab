"""Several processes for one component on this node.

How many: the resource profile's `processes`. How many nodes, which of them this is and where they meet: NNODES,
NODE_RANK, MASTER_ADDR and MASTER_PORT, or torchrun's variables for these (PET_NNODES ...), which Kubeflow Trainer sets.
Where a launcher has started this process already (WORLD_SIZE is set), it is one of several and starts none.

Composer's and torch's own launchers would do, but both import all of their package before they start anything (some ten
seconds of a processor), and kill what is left 30 seconds after one process was lost, an upload with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from components import launchers, profiles
from components.contract import Component
from components.planning import Plan
from mmbert.errors import InfrastructureError, UserError
from mmbert.ranks import STOPPED, end_with_parent, ending_seconds

LAUNCHED = "MMBERT_LAUNCHED"
"""Set in processes whose result their starter tells."""
_TOLD = (1, 2, 3, STOPPED)
"""Exit codes of a process that has told why, or has heard that another one does."""
_LOOK_SECONDS = 0.1
_NOTICING_SECONDS = 30.0
_ENDING_SHARE = 0.95
"""Of the grace; a process that cannot end by itself (mmbert/ranks.py) is killed then, and there is time to say so."""

Process = subprocess.Popen[bytes]


@dataclass(frozen=True)
class Group:
    processes: int
    """On this node."""
    nodes: int
    node: int

    @property
    def leads(self) -> bool:
        return self.node == 0


def wanted(item: Component, arguments: Mapping[str, Any]) -> Group | None:
    """The processes that this component should have; None where it is this one.

    Raises UserError for a number of nodes without the rest.
    """
    if not item.distributed or "WORLD_SIZE" in os.environ:
        return None
    count = profiles.processes(item, arguments)
    nodes = _number("NNODES", "1")
    if nodes > 1:
        for name in ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT"):
            if not _given(name):
                raise UserError(f"NNODES is {nodes}, and {name} is not set; set NODE_RANK, MASTER_ADDR and MASTER_PORT")
    if count * nodes == 1:
        return None
    return Group(count, nodes, _number("NODE_RANK", "0"))


def _given(name: str) -> str:
    """A variable of ours, or torchrun's for the same."""
    return os.environ.get(name) or os.environ.get(f"PET_{name}", "")


def _number(name: str, default: str) -> int:
    value = _given(name) or default
    if not value.isdigit():
        raise UserError(f"{name if name in os.environ else f'PET_{name}'}={value}: it must be a whole number")
    return int(value)


def start(group: Group, plan: Plan, root: str, task: str) -> None:
    """Run the processes to their end.

    Raises SystemExit with their exit code where one of them has told the error, InfrastructureError where they were
    killed.
    """
    line = [sys.executable, "-m", "components.cli", *launchers.command_line(plan.component, plan.arguments, root, task)]
    members: list[Process] = []
    with _ended_with_us(members):
        members.extend(_started(line, variables) for variables in _environments(group))
        first = _first_failure(members)
        if first is None:
            return
        # The others see it by themselves, and tell it; those that have not met yet do not.
        _wait(members, _NOTICING_SECONDS)
        _end(members)
    codes = [first.returncode, *(member.returncode for member in members)]
    for code in codes:
        if code in _TOLD:
            raise SystemExit(code)
    raise InfrastructureError(
        f"a process of '{plan.component.name}' was killed (exit code {codes[0]}), by lack of memory perhaps; "
        "run it again to go on"
    )


def _environments(group: Group) -> list[dict[str, str]]:
    """Each process's variables, as torch's rendezvous wants them."""
    meeting = {"MASTER_ADDR": _given("MASTER_ADDR"), "MASTER_PORT": _given("MASTER_PORT")}
    if group.nodes == 1:
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    shared = {
        **os.environ,
        **meeting,
        LAUNCHED: "1",
        "WORLD_SIZE": str(group.nodes * group.processes),
        "LOCAL_WORLD_SIZE": str(group.processes),
        "NODE_RANK": str(group.node),
    }
    begin = group.node * group.processes
    return [{**shared, "RANK": str(begin + n), "LOCAL_RANK": str(n)} for n in range(group.processes)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _started(line: list[str], variables: dict[str, str]) -> Process:
    # What the others print, warnings of libraries say, would stand there once a process; errors go to stderr.
    out = None if variables["LOCAL_RANK"] == "0" else subprocess.DEVNULL
    return subprocess.Popen(
        line, env=variables, stdout=out, start_new_session=True, preexec_fn=_stop_with_parent  # noqa: PLW1509
    )  # fmt: skip


def _stop_with_parent() -> None:
    end_with_parent(signal.SIGTERM)


def _first_failure(members: list[Process]) -> Process | None:
    """The first process that did not end well; None once all ended well."""
    running = list(members)
    while running:
        for member in running:
            if member.poll():
                return member
        running = [member for member in running if member.returncode is None]
        time.sleep(_LOOK_SECONDS)
    return None


@contextlib.contextmanager
def _ended_with_us(members: list[Process]) -> Iterator[None]:
    try:
        yield
    finally:
        _end(members)


def _end(members: list[Process]) -> None:
    """Ask the processes to end, and kill in the end what is left of them and of what they started."""
    for member in members:
        if member.poll() is None:
            member.terminate()
    _wait(members, ending_seconds(_ENDING_SHARE))
    for member in members:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(member.pid, signal.SIGKILL)
        member.wait()


def _wait(members: list[Process], seconds: float) -> None:
    """Until all have ended, for so many seconds at most."""
    deadline = time.monotonic() + seconds
    for member in members:
        with contextlib.suppress(subprocess.TimeoutExpired):
            member.wait(max(0.0, deadline - time.monotonic()))
