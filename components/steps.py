"""One step of a workflow, as every orchestrator takes it: plan, find done or launch, return URI, label and outputs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components import launchers, planning
from components.contract import get_component
from components.runtime import link_reused
from mmbert import artifacts, storage


@dataclass(frozen=True)
class Step:
    uri: str
    label: str
    reused: bool
    outputs: Mapping[str, Any]
    repeated: bool = False
    """It was done, and had been done before: an effect outside the store, which is made sure of again."""


def run_step(
    component: str, arguments: Mapping[str, Any], *, root: str, task: str, workflow_run: str,
    tell: launchers.Tell = launchers.show,
) -> Step:  # fmt: skip
    """Find this piece of work done, or do it with the configured launcher; `tell` hears what it waits for.

    Raises UserError, InfrastructureError or ComponentFailedError.
    """
    root = root if storage.is_s3(root) else str(Path(root).absolute())  # a component may run in another folder
    item = get_component(component)
    with _workflow_run(workflow_run):
        launchers.check(item, root)
        plan = planning.plan(item, arguments, root)
        done = plan.done()
        if done is None:
            repeated = artifacts.find(plan.uri) is not None
            artifact = launchers.launch(plan, root, task, tell)
            return Step(artifact.uri, label(artifact.outputs, task), False, artifact.outputs, repeated)
        link_reused(plan, task, done)
        print(f"found done: {done.uri}", flush=True)
        return Step(done.uri, label(done.outputs, task), True, done.outputs)


def label(outputs: Mapping[str, Any], task: str) -> str:
    """What a person calls this instance of a mapped task (`decay-all`); the task's name where it has no other."""
    return str(outputs.get("label", task))


@contextlib.contextmanager
def _workflow_run(workflow_run: str) -> Iterator[None]:
    before = os.environ.get("MMBERT_WORKFLOW_RUN")
    os.environ["MMBERT_WORKFLOW_RUN"] = workflow_run
    try:
        yield
    finally:
        if before is None:
            del os.environ["MMBERT_WORKFLOW_RUN"]
        else:
            os.environ["MMBERT_WORKFLOW_RUN"] = before
