"""The launcher `process`: a component in a process of the ML environment."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from components import profiles
from components.launchers.output import Shown
from components.planning import Plan
from mmbert.errors import InfrastructureError
from mmbert.ranks import end_with_parent

_PROJECT = Path(__file__).resolve().parents[2]


def run(
    plan: Plan,
    arguments: list[str],
    root: str,  # noqa: ARG001 (every launcher's arguments)
    tell: Callable[[str], None],  # noqa: ARG001
) -> tuple[int, str]:
    """Run `mmbert` with these arguments; exit code (negative: the signal that killed it) and last line."""
    program = os.environ.get("MMBERT_COMMAND", str(_PROJECT / ".venv" / "bin" / "mmbert"))
    if not Path(program).exists():
        raise InfrastructureError(
            f"{program} is not there; run 'make setup', or set MMBERT_COMMAND to the mmbert command"
        )
    environment = {**os.environ, **profiles.environment(plan.component, plan.arguments)}
    shown = Shown()
    with subprocess.Popen(
        [program, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", start_new_session=True, preexec_fn=_die_with_parent,  # noqa: PLW1509
    ) as process, _ended_with_us(process):  # fmt: skip
        shown.follow(process.stdout or ())
        code = process.wait()
    return code, shown.last_line(code)


def _die_with_parent() -> None:
    # So that a component never outlives a killed orchestrator task and works beside its own retry for long.
    end_with_parent(signal.SIGTERM)


@contextlib.contextmanager
def _ended_with_us(process: subprocess.Popen[str]) -> Iterator[None]:
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
