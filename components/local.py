"""The plain runner: a workflow as a loop in one process, one component after the other."""

from __future__ import annotations

import contextlib
import inspect
import itertools
from typing import Any

from components.steps import Step, run_step
from components.workflows import WORKFLOWS
from mmbert import tracking
from mmbert.errors import InfrastructureError, UserError
from mmbert.recipe import load_recipe


class LocalRunner:
    def __init__(self, root: str, workflow_run: str) -> None:
        self.root = root
        self.workflow_run = workflow_run
        self.steps: list[tuple[str, Step]] = []
        self._outputs: dict[str, Step] = {}

    def run(self, component: str, *, task: str = "", **arguments: Any) -> str:
        step = run_step(component, arguments, root=self.root, task=task or component, workflow_run=self.workflow_run)
        self.steps.append((task or component, step))
        self._outputs[step.uri] = step
        return step.uri

    def map(self, component: str, *, over: dict[str, Any], task: str = "", **arguments: Any) -> list[str]:
        pairs = itertools.product(*over.values())
        return [self.run(component, task=task, **dict(zip(over, items, strict=True)), **arguments) for items in pairs]

    def output(self, handle: str, name: str) -> list[str]:
        found: list[str] = self._outputs[handle].outputs[name]
        return found


def run_workflow(
    name: str, preset: str, overrides: list[str], root: str, workflow_run: str, **arguments: str
) -> LocalRunner:
    """Run a whole workflow here; `arguments` are its own. Raises what its first failing component raises."""
    if name not in WORKFLOWS:
        raise UserError(f"no workflow '{name}'; there are {', '.join(WORKFLOWS)}")
    for argument in arguments.keys() - inspect.signature(WORKFLOWS[name]).parameters.keys():
        raise UserError(f"the workflow '{name}' takes no {argument}")
    experiment = f"mmbert/{load_recipe(preset, overrides).name}"
    runner = LocalRunner(root, workflow_run)
    status: tracking.Status = "FAILED"
    try:
        WORKFLOWS[name](runner, preset, overrides, **arguments)
        status = "FINISHED"
    finally:
        with contextlib.suppress(InfrastructureError):
            tracking.connect(experiment, workflow_run).finish_workflow(status)
    return runner
