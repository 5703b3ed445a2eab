"""How a component is started. One setting: MMBERT_LAUNCHER.

`process` starts `mmbert run NAME` from the ML environment, `docker` in a container of the component's image; either way
an orchestrator never imports an ML library.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from typing import Any

from components.contract import Component
from components.launchers import process
from components.planning import Plan
from mmbert import artifacts
from mmbert.errors import InfrastructureError, MmbertError, UserError
from mmbert.ranks import STOPPED


def _docker(plan: Plan, arguments: list[str], root: str) -> tuple[int, str]:
    # Its library is not loaded by every component that starts.
    from components.launchers import docker

    return docker.run(plan, arguments, root)


LAUNCHERS: dict[str, Callable[[Plan, list[str], str], tuple[int, str]]] = {
    "process": process.run,
    "docker": _docker,
}
"""Each runs `mmbert` with these arguments for a plan, artifacts below the root, and returns exit code (negative: the
signal that killed it) and last line."""

_ERRORS: dict[int, type[MmbertError]] = {2: UserError, 3: InfrastructureError}


class ComponentFailedError(MmbertError):
    """A component ended with a bug: its log holds the stack trace."""


def launch(plan: Plan, root: str, task: str) -> artifacts.Artifact:
    """Run a planned piece of work with the configured launcher and return its artifact.

    Raises UserError, InfrastructureError or ComponentFailedError by the component's exit code.
    """
    name = os.environ.get("MMBERT_LAUNCHER", "process")
    if name not in LAUNCHERS:
        raise UserError(f"MMBERT_LAUNCHER={name}: there is no such launcher; it can be {', '.join(LAUNCHERS)}")
    code, last_line = LAUNCHERS[name](plan, command_line(plan.component, plan.arguments, root, task), root)
    if code == STOPPED:
        raise InfrastructureError(f"component '{plan.component.name}' was stopped from outside")
    if code != 0:
        error = _ERRORS.get(code, InfrastructureError if code < 0 else ComponentFailedError)
        killed = f" (killed by {signal.Signals(-code).name})" if code < 0 else ""
        raise error(f"component '{plan.component.name}' ended with exit code {code}{killed}: {last_line}")
    artifact = artifacts.find(plan.uri)
    if artifact is None:
        raise ComponentFailedError(
            f"component '{plan.component.name}' said it was done, but {plan.uri} is not complete"
        )
    return artifact


def command_line(item: Component, arguments: Mapping[str, Any], root: str, task: str) -> list[str]:
    """`run NAME --...` for these arguments, to stand after `mmbert`."""
    line = ["run", item.name, "--root", root, "--task", task]
    for parameter in item.parameters:
        flag = f"--{parameter.name.replace('_', '-')}"
        value = arguments[parameter.name]
        for one in value if parameter.is_list else [value]:
            line += [flag, str(one)]
    return line
