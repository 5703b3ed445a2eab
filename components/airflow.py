"""The Airflow runner: makes a DAG's tasks of a workflow. One task is one component call, in the task's own process.

XCom carries artifact URIs and short lists of names; everything else goes through storage.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowFailException

from components import planning, profiles
from components.contract import get_component
from components.runtime import root_uri
from components.steps import run_step
from mmbert import artifacts, tracking
from mmbert.errors import InfrastructureError, MmbertError, UserError

EXIT_CODE_KEY = "mmbert_exit_code"
POOL = "cores"
RETRIES: dict[str, Any] = {
    "retries": 2,
    "retry_delay": datetime.timedelta(seconds=10),
    "retry_exponential_backoff": True,
    "max_retry_delay": datetime.timedelta(minutes=5),
}


@dataclass(frozen=True)
class TriggerParameter:
    """Stands for a parameter of the DAG's trigger form; its value is read when a task runs."""

    name: str


class ComponentOperator(BaseOperator):
    """Runs one component. `over` names the argument that `item` fills in a mapped task; both are empty elsewhere."""

    template_fields = ("arguments", "item")
    ui_color = "#e8f0fe"

    def __init__(
        self, *, component: str, arguments: dict[str, Any], over: str = "", item: Any = "", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.component = component
        self.arguments = arguments
        self.over = over
        self.item = item
        self._label = ""

    @property
    def label(self) -> str:
        """What a person calls this instance of a mapped task: the item's label before the work, its own afterwards."""
        if not self._label:
            self._label = _item_label(str(self.item))
        return self._label

    def execute(self, context: Any) -> str:
        params = context["params"]
        arguments = {name: _plain(value, params) for name, value in self.arguments.items()}
        if self.over:
            arguments[self.over] = _plain(self.item, params)
        try:
            step = run_step(
                self.component,
                arguments,
                root=root_uri(),
                task=self.task_id,
                workflow_run=_workflow_run(context),
            )
        except MmbertError as error:
            context["ti"].xcom_push(key=EXIT_CODE_KEY, value=error.exit_code)
            if isinstance(error, InfrastructureError):
                raise
            # Trying again does not help: neither wrong input nor a bug goes away.
            raise AirflowFailException(str(error)) from error
        if self.over:
            self._label = step.label
        return step.uri


class OutputOperator(BaseOperator):
    """Returns a list that a component left in its artifact, because Airflow maps over return values only."""

    template_fields = ("uri",)
    ui_color = "#f1f3f4"

    def __init__(self, *, uri: Any, output: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.uri = uri
        self.output_name = output

    def execute(self, context: Any) -> list[str]:  # noqa: ARG002
        return [str(item) for item in artifacts.open_artifact(self.uri).outputs[self.output_name]]


class EndOperator(BaseOperator):
    """Ends the workflow's own run in MLflow, by whether each of its last tasks left a result."""

    def __init__(self, *, recipe: dict[str, Any], last: list[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.recipe = recipe
        self.last = last

    def execute(self, context: Any) -> None:
        worked = all(context["ti"].xcom_pull(task_ids=task) is not None for task in self.last)
        arguments = {name: _plain(value, context["params"]) for name, value in self.recipe.items()}
        os.environ["MMBERT_WORKFLOW_RUN"] = _workflow_run(context)  # this process is the task's own
        # A recipe that is wrong has no run to end. MLflow being away is tried again; a teardown cannot fail the run.
        with contextlib.suppress(UserError):
            experiment = f"mmbert/{planning.recipe_of(arguments).name}"
            tracking.connect(experiment).finish_workflow("FINISHED" if worked else "FAILED")


class AirflowRunner:
    """Implements components.workflows.Runner inside a `with DAG(...)` block; handles are XComArgs."""

    def run(self, component: str, *, task: str = "", **arguments: Any) -> Any:
        return ComponentOperator(
            task_id=task or component, component=component, arguments=arguments, **_settings(component, arguments)
        ).output

    def map(self, component: str, *, over: dict[str, Any], task: str = "", **arguments: Any) -> Any:
        ((name, items),) = over.items()
        return (
            ComponentOperator.partial(
                task_id=task or component,
                component=component,
                arguments=arguments,
                over=name,
                map_index_template="{{ task.label }}",
                **_settings(component, arguments),
            )
            .expand(item=items)
            .output
        )

    def output(self, handle: Any, name: str) -> Any:
        return OutputOperator(task_id=f"{handle.operator.task_id}_{name}", uri=handle, output=name, **RETRIES).output

    def end(self, last: list[Any], **recipe: Any) -> None:
        """After the workflow's last tasks, whatever became of them; it has no say in whether the DAG run succeeded."""
        operators = [handle.operator for handle in last]
        names = [operator.task_id for operator in operators]
        operators >> EndOperator(task_id="end", recipe=recipe, last=names, **RETRIES).as_teardown()


def _settings(component: str, arguments: dict[str, Any]) -> dict[str, Any]:
    item = get_component(component)
    return {
        "pool": POOL,
        "pool_slots": profiles.threads(item, arguments),
        "doc_md": f"{item.summary}\n\n{item.description}",
        **RETRIES,
    }


def _workflow_run(context: Any) -> str:
    """The name of the workflow's run in MLflow; the demo's driver looks for it."""
    return f"{context['params'].get('run_name') or ''} {context['dag_run'].run_id}".strip()


def _plain(value: Any, params: Any) -> Any:
    """Trigger parameters looked up, Airflow's lazy sequences made lists."""
    if isinstance(value, TriggerParameter):
        return params[value.name]
    if isinstance(value, str) or not isinstance(value, Iterable):
        return value
    return [_plain(item, params) for item in value]


def _item_label(item: str) -> str:
    if "/" not in item:
        return item
    with contextlib.suppress(MmbertError):
        found = artifacts.find(item)
        if found is not None:
            return str(found.outputs.get("label", item.rsplit("/", 1)[-1]))
    return item
