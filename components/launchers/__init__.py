"""How a component is started. One setting: MMBERT_LAUNCHER.

`process` starts `mmbert run NAME` from the ML environment, `docker` in a container of the component's image,
`kubernetes` in pods of a cluster; an orchestrator never imports an ML library.
"""

from __future__ import annotations

import importlib.util
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

Tell = Callable[[str], None]
"""Hears, in a sentence, what a component waits for or what happened to it."""


def show(text: str) -> None:
    """Tells by printing."""
    print(text, flush=True)


# Their libraries are not loaded by every component that starts.
def _docker(plan: Plan, arguments: list[str], root: str, tell: Tell) -> tuple[int, str]:
    from components.launchers import docker

    return docker.run(plan, arguments, root, tell)


def _check_package() -> None:
    if importlib.util.find_spec("kubernetes") is None:
        raise UserError(
            "MMBERT_LAUNCHER=kubernetes: the package kubernetes is not installed here; start it from the "
            "orchestrator's environment (mmbert-pipeline[orchestrator])"
        )


def _kubernetes(plan: Plan, arguments: list[str], root: str, tell: Tell) -> tuple[int, str]:
    _check_package()
    from components.launchers import kubernetes

    return kubernetes.run(plan, arguments, root, tell)


LAUNCHERS: dict[str, Callable[[Plan, list[str], str, Tell], tuple[int, str]]] = {
    "process": process.run,
    "docker": _docker,
    "kubernetes": _kubernetes,
}
"""Each runs `mmbert` with these arguments for a plan, artifacts below the root, and returns exit code (negative: the
signal that killed it) and last line."""

_ERRORS: dict[int, type[MmbertError]] = {2: UserError, 3: InfrastructureError}


class ComponentFailedError(MmbertError):
    """A component ended with a bug: its log holds the stack trace."""


def check(item: Component, root: str) -> None:
    """Raise UserError where the configured launcher cannot do this component's work, as far as can be said without the
    store: so a wrong setting is not told as a store that does not answer."""
    if _name() == "kubernetes":
        _check_package()
        from components.launchers import kubernetes

        kubernetes.check(item, root)


def _name() -> str:
    name = os.environ.get("MMBERT_LAUNCHER", "process")
    if name not in LAUNCHERS:
        raise UserError(f"MMBERT_LAUNCHER={name}: there is no such launcher; it can be {', '.join(LAUNCHERS)}")
    return name


def launch(plan: Plan, root: str, task: str, tell: Tell = show) -> artifacts.Artifact:
    """Run a planned piece of work with the configured launcher and return its artifact.

    `tell` hears what it waits for, where the launcher knows.

    Raises UserError, InfrastructureError or ComponentFailedError by the component's exit code.
    """
    code, last_line = LAUNCHERS[_name()](plan, command_line(plan.component, plan.arguments, root, task), root, tell)
    if code == STOPPED:
        raise InfrastructureError(f"component '{plan.component.name}' was stopped from outside")
    if code != 0:
        error = _ERRORS.get(code, InfrastructureError if code < 0 else ComponentFailedError)
        killed = f" (killed by {_signal_name(-code)})" if code < 0 else ""
        raise error(f"component '{plan.component.name}' ended with exit code {code}{killed}: {last_line}")
    artifact = artifacts.find(plan.uri)
    if artifact is None:
        raise ComponentFailedError(
            f"component '{plan.component.name}' said it was done, but {plan.uri} is not complete"
        )
    return artifact


def _signal_name(number: int) -> str:
    """Real-time signals have no name of their own, and what ends a container may give a number that is none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def command_line(item: Component, arguments: Mapping[str, Any], root: str, task: str) -> list[str]:
    """`run NAME --...` for these arguments, to stand after `mmbert`."""
    line = ["run", item.name, "--root", root, "--task", task]
    for parameter in item.parameters:
        flag = f"--{parameter.name.replace('_', '-')}"
        value = arguments[parameter.name]
        for one in value if parameter.is_list else [value]:
            line += [flag, str(one)]
    return line
