"""The plain runner: a workflow as a loop in one process, one component after the other."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import math
from collections.abc import Mapping
from typing import Any

from components.recipe.component import fan_out
from components.steps import Step, run_step
from components.workflows import WORKFLOWS, add_languages
from mmbert import artifacts, progress, tracking
from mmbert.errors import InfrastructureError, UserError
from mmbert.recipe import Recipe, load_recipe
from mmbert.recipe.new_languages import variants_for


class LocalRunner:
    def __init__(self, root: str, workflow_run: str, advance: progress.Advance = lambda _: None) -> None:
        self.root = root
        self.workflow_run = workflow_run
        self.advance = advance
        self.steps: list[tuple[str, Step]] = []
        self._outputs: dict[str, Step] = {}

    def run(self, component: str, *, task: str = "", **arguments: Any) -> str:
        step = run_step(component, arguments, root=self.root, task=task or component, workflow_run=self.workflow_run)
        self.steps.append((task or component, step))
        self._outputs[step.uri] = step
        self.advance(1)
        return step.uri

    def map(self, component: str, *, over: dict[str, Any], task: str = "", **arguments: Any) -> list[str]:
        pairs = itertools.product(*over.values())
        return [self.run(component, task=task, **dict(zip(over, items, strict=True)), **arguments) for items in pairs]

    def output(self, handle: str, name: str) -> list[str]:
        found: list[str] = self._outputs[handle].outputs[name]
        return found

    def places(self) -> list[tuple[str, str]]:
        """What a person opens: pages, and folders of released models."""
        found = []
        for artifact in [artifacts.open_artifact(step.uri) for _, step in self.steps]:
            found += [("page", artifact.remote(path)) for path in artifact.paths() if path.endswith(".html")]
            if artifact.manifest.kind == "model":
                found.append(("model", artifact.remote_folder("")))
        return found


def run_workflow(
    name: str, preset: str, overrides: list[str], root: str, workflow_run: str, **arguments: str
) -> LocalRunner:
    """Run a whole workflow here; `arguments` are its own. Raises what its first failing component raises."""
    if name not in WORKFLOWS:
        raise UserError(f"no workflow '{name}'; there are {', '.join(WORKFLOWS)}")
    own = _own_parameters(name)
    for argument in arguments.keys() - own.keys():
        raise UserError(f"the workflow '{name}' takes no --{argument}")
    for argument, needed in own.items():
        if needed and not arguments.get(argument):
            raise UserError(f"the workflow '{name}' needs --{argument}; `mmbert workflow --help` says what it can be")
    recipe = load_recipe(preset, overrides)
    experiment = f"mmbert/{recipe.name}"
    status: tracking.Status = "FAILED"
    with progress.shown(f"workflow {name}", count_steps(name, recipe, overrides), "steps") as advance:
        runner = LocalRunner(root, workflow_run, advance)
        try:
            WORKFLOWS[name](runner, preset, overrides, **arguments)
            status = "FINISHED"
        finally:
            with contextlib.suppress(InfrastructureError):
                tracking.connect(experiment, workflow_run).finish_workflow(status)
    return runner


def _own_parameters(name: str) -> dict[str, bool]:
    """What a workflow takes besides runner, preset and overrides, and whether it has to be given."""
    _, _, _, *own = inspect.signature(WORKFLOWS[name]).parameters.values()
    return {parameter.name: parameter.default is parameter.empty for parameter in own}


def count_steps(name: str, recipe: Recipe, overrides: list[str]) -> int | None:
    """How many steps a workflow takes; None where only a step of its own finds out (re-evaluation: the models)."""
    lists = fan_out(recipe)
    counter = _Counter(lists)
    try:
        if WORKFLOWS[name] is add_languages:
            lists["variants"] = variants_for(recipe, overrides)
        WORKFLOWS[name](counter, "", [], **{own: "" for own, needed in _own_parameters(name).items() if needed})
    except (KeyError, UserError):  # what is wrong with the recipe, its component tells
        return None
    return counter.steps


class _Counter:
    """Implements components.workflows.Runner; a handle is how many items it stands for."""

    def __init__(self, lists: Mapping[str, list[str]]) -> None:
        self.steps = 0
        self._lists = lists

    def run(self, component: str, **_: Any) -> int:  # noqa: ARG002 - the runner's signature
        self.steps += 1
        return 1

    def map(self, component: str, *, over: dict[str, int], **_: Any) -> int:  # noqa: ARG002
        items = math.prod(over.values())
        self.steps += items
        return items

    def output(self, handle: int, name: str) -> int:  # noqa: ARG002
        return len(self._lists[name])
