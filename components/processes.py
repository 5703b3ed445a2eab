"""Several processes for one component on this node, started by Composer's launcher.

How many: the resource profile's `processes`. How many nodes, which of them this is and where they meet: NNODES,
NODE_RANK, MASTER_ADDR and MASTER_PORT, or torchrun's variables for these (PET_NNODES ...), which Kubeflow Trainer sets.
Where a launcher has started this process already (WORLD_SIZE is set), it is one
of several and starts none.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from components import launchers, profiles
from components.contract import Component
from components.planning import Plan
from mmbert import logs
from mmbert.errors import InfrastructureError, UserError
from mmbert.ranks import STOPPED, end_with_parent

LAUNCHED = "MMBERT_LAUNCHED"
"""Set in processes whose result their starter tells."""
# Composer's launcher gives its processes 30 seconds to end.
_CLEANUP_SECONDS = 45


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

    Raises SystemExit with their exit code where process 0 has told the error, InfrastructureError where they were
    killed.
    """
    line = [sys.executable, "-m", "composer.cli.launcher", "--nproc", str(group.processes)]
    if group.nodes > 1:
        line += ["--world_size", str(group.processes * group.nodes), "--node_rank", str(group.node)]
        line += ["--master_addr", _given("MASTER_ADDR"), "--master_port", _given("MASTER_PORT")]
    line += ["-m", "components.cli", *launchers.command_line(plan.component, plan.arguments, root, task)]
    environment = {**os.environ, LAUNCHED: "1"}
    # The launcher's own lines and those of libraries that write past Python become messages too.
    retold: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} if logs.is_json() else {}
    with subprocess.Popen(
        line, env=environment, start_new_session=True, preexec_fn=_stop_with_parent, **retold  # noqa: PLW1509
    ) as launcher, _ended_with_us(launcher):  # fmt: skip
        if launcher.stdout is not None:
            logs.retell(launcher.stdout)
        code = launcher.wait()
    if code == 0:
        return
    if code in (1, 2, 3, STOPPED):
        raise SystemExit(code)
    raise InfrastructureError(
        f"a process of '{plan.component.name}' was killed (exit code {code}), by lack of memory perhaps; "
        "run it again to go on"
    )


def _stop_with_parent() -> None:
    # SIGINT is what the launcher ends its processes at.
    end_with_parent(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def _ended_with_us(launcher: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        if launcher.poll() is None:
            launcher.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                launcher.wait(_CLEANUP_SECONDS)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(launcher.pid, signal.SIGKILL)
