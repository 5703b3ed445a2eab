"""How a component is started. One setting: MMBERT_LAUNCHER.

`process` starts `mmbert run NAME` from the ML environment, so an orchestrator never imports an ML library.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from components import profiles
from components.contract import Component
from components.planning import Plan
from mmbert import artifacts
from mmbert.errors import InfrastructureError, MmbertError, UserError
from mmbert.ranks import STOPPED, end_with_parent

_PROJECT = Path(__file__).resolve().parent.parent
ERROR = "error: "
"""What a component's closing message begins with."""
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
    code, last_line = LAUNCHERS[name](plan, root, task)
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
    """`mmbert run NAME --...` for these arguments."""
    line = ["run", item.name, "--root", root, "--task", task]
    for parameter in item.parameters:
        flag = f"--{parameter.name.replace('_', '-')}"
        value = arguments[parameter.name]
        for one in value if parameter.is_list else [value]:
            line += [flag, str(one)]
    return line


def _process(plan: Plan, root: str, task: str) -> tuple[int, str]:
    program = os.environ.get("MMBERT_COMMAND", str(_PROJECT / ".venv" / "bin" / "mmbert"))
    if not Path(program).exists():
        raise InfrastructureError(
            f"{program} is not there; run 'make setup', or set MMBERT_COMMAND to the mmbert command"
        )
    environment = {**os.environ, **profiles.environment(plan.component, plan.arguments)}
    command = [program, *command_line(plan.component, plan.arguments, root, task)]
    last_line = error = ""
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", start_new_session=True, preexec_fn=_die_with_parent,  # noqa: PLW1509
    ) as process, _ended_with_us(process):  # fmt: skip
        for line in process.stdout or ():
            # Its closing error is raised here, and told by who catches that.
            told, error = (error, line) if line.startswith(ERROR) else (error + line, "")
            sys.stdout.write(told)
            sys.stdout.flush()
            last_line = line.strip() or last_line
        code = process.wait()
    if code == 0:
        sys.stdout.write(error)
    return code, last_line.removeprefix(ERROR)


def _die_with_parent() -> None:
    # So that a component never outlives a killed orchestrator task and works beside its own retry for long.
    end_with_parent(signal.SIGTERM)


@contextlib.contextmanager
def _ended_with_us(process: subprocess.Popen[str]) -> Any:
    try:
        yield
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


LAUNCHERS: dict[str, Callable[[Plan, str, str], tuple[int, str]]] = {"process": _process}


def result_json(artifact: artifacts.Artifact, reused: bool) -> str:
    return json.dumps({"uri": artifact.uri, "reused": reused, "outputs": dict(artifact.outputs)})
