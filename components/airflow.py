"""The Airflow runner: makes a DAG's tasks of a workflow. One task is one component call, in the task's own process.

XCom carries artifact URIs and short lists of names; everything else goes through storage.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import os
import signal
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from airflow.sdk import Asset, AssetAlias, BaseOperator, BaseOperatorLink, Param
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from components import alerts, planning, profiles
from components.contract import get_component
from components.runtime import root_uri
from components.steps import Step, run_step
from mmbert import artifacts, tracking
from mmbert.errors import InfrastructureError, MmbertError, UserError
from mmbert.pages import links
from mmbert.ranks import end_with_parent
from mmbert.tracking.registry import connect_registry

# A URI with a scheme would load every provider's asset handlers, boto3 among them, when the DAG file is read.
MODEL_VERSIONS = Asset("mmbert_model_versions")
"""Gets an event for each new version of a registered model; its extra holds `recipe`, a file's place, and `version`."""
_REGISTERED = AssetAlias("mmbert_registered")
_REGISTER, _SELECT = "register", "select"

EXIT_CODE_KEY = "mmbert_exit_code"
STATE_KEY = "mmbert_state"
IDLE_KEY = "mmbert_idle"
"""XCom keys: how a component ended, what one that runs on a cluster waits for or what happened to it, and that a
scheduled re-evaluation had nothing to do."""
POOL = "cores"
# Only what is infrastructure's is tried again: an outage of five minutes is outlasted.
RETRIES: dict[str, Any] = {
    "retries": 5,
    "retry_delay": datetime.timedelta(seconds=10),
    "retry_exponential_backoff": True,
    "max_retry_delay": datetime.timedelta(minutes=5),
}


@dataclass(frozen=True)
class TriggerParameter:
    """Stands for a parameter of the DAG's trigger form; its value is read when a task runs.

    In a run that a new model version started, the value of `event` in that event's extra goes first.
    """

    name: str
    event: str = ""


def trigger_form(preset: str, about_preset: str, example: str, **more: Param) -> dict[str, Param]:
    """The parameters that every workflow's DAG has, `preset` by default, and its own between them."""
    return {
        "preset": Param(
            preset,
            type="string",
            minLength=1,
            title="Preset or recipe",
            examples=["tiny", "small", "base"],
            description="A preset's name, or a recipe file that every worker can read (a path or `s3://...`). "
            + about_preset,
        ),
        "overrides": Param(
            [],
            type="array",
            items={"type": "string", "pattern": "^[^=]+=.*$"},
            title="Overrides",
            description=f"Recipe keys to change, one a line: `{example}`. `mmbert recipe show tiny` lists all keys.",
        ),
        **more,
        "run_name": Param(
            None,
            type=["null", "string"],
            maxLength=100,
            title="Run name",
            description="Stands before the run's id in MLflow. Optional; results do not depend on it.",
        ),
    }


_ITEMS = ("item", "second_item")
"""The operator's parameters that a mapped task fills: Airflow maps over these, and a class has a fixed set of them."""


class MlflowLink(BaseOperatorLink):
    """A button on a task: its run in MLflow, whatever became of it."""

    name = "Run in MLflow"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:  # noqa: ARG002
        run = operator.mlflow_run()
        return links.mlflow_link(f"experiments/{run.experiment_id}/runs/{run.run_id}") if run else ""


class PageLink(BaseOperatorLink):
    """A button on a task that writes a page: the page."""

    name = "Page"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:  # noqa: ARG002
        run, page = operator.mlflow_run(), links.PAGES[operator.component]
        if run is None:
            return ""
        maker = run.tags.get(tracking.REUSED_FROM, run.run_id)  # of a step that was found done, it has the files
        return links.mlflow_link(f"experiments/{run.experiment_id}/runs/{maker}/artifacts/{page}")


class ComponentOperator(BaseOperator):
    """Runs one component. `over` names the arguments that `item` and `second_item` fill in a mapped task."""

    operator_extra_links: Collection[BaseOperatorLink] = (MlflowLink(),)

    template_fields = ("arguments", *_ITEMS)
    ui_color = "#e8f0fe"

    def __init__(
        self,
        *,
        component: str,
        arguments: dict[str, Any],
        over: Sequence[str] = (),
        item: Any = "",
        second_item: Any = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.component = component
        self.arguments = arguments
        self.over = over
        self.item = item
        self.second_item = second_item
        if component in links.PAGES:
            self.operator_extra_links = (MlflowLink(), PageLink())
        self._label = ""
        self._ending = False
        self._arguments: dict[str, Any] = {}

    @property
    def label(self) -> str:
        """What a person calls this instance of a mapped task: the item's label before the work, its own afterwards."""
        if not self._label:
            self._label = ", ".join(_item_label(str(item)) for item in (self.item, self.second_item) if item)
        return self._label

    def mlflow_run(self) -> tracking.Run | None:
        """This task's run in MLflow, for links; None where there is none, or MLflow is away."""
        with contextlib.suppress(MmbertError):
            experiment = f"mmbert/{planning.recipe_of(self._arguments).name}"
            return tracking.connect(experiment).run_of(links.airflow_task())
        return None

    def execute(self, context: Any) -> str:
        # Airflow's supervisor, killed, leaves this process: it would work on beside its own retry, with nobody to tell.
        end_with_parent(signal.SIGTERM)
        arguments = {name: _plain(value, context) for name, value in self.arguments.items()}
        for name, item in zip(self.over, (self.item, self.second_item), strict=False):
            arguments[name] = _plain(item, context)
        self._arguments = arguments
        os.environ[links.AIRFLOW_TASK] = _task(context)  # this process is the task's own
        try:
            if self.component == _SELECT and _nothing_to_do(arguments, context):
                context["ti"].xcom_push(key=IDLE_KEY, value=True)
                raise AirflowSkipException("no model is registered yet: there is nothing to evaluate again")
            step = run_step(
                self.component,
                arguments,
                root=root_uri(),
                task=self.task_id,
                workflow_run=_workflow_run(context),
                tell=functools.partial(_tell, context["ti"]),
            )
        except MmbertError as error:
            context["ti"].xcom_push(key=EXIT_CODE_KEY, value=error.exit_code)
            if isinstance(error, InfrastructureError):
                raise
            # Trying again does not help: neither wrong input nor a bug goes away.
            raise AirflowFailException(str(error)) from error
        if self.over:
            self._label = step.label
        if self.component == _REGISTER and not step.repeated:
            _announce(context, arguments, step)
        return step.uri

    def on_kill(self) -> None:
        """Airflow calls it at each SIGTERM and kills the task 5 seconds later: the launcher ends what runs."""
        if not self._ending:
            self._ending = True
            raise KeyboardInterrupt


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
        worked = _idle(context) or all(context["ti"].xcom_pull(task_ids=task) is not None for task in self.last)
        arguments = {name: _plain(value, context) for name, value in self.recipe.items()}
        os.environ["MMBERT_WORKFLOW_RUN"] = _workflow_run(context)  # this process is the task's own
        # A recipe that is wrong has no run to end. MLflow being away is tried again; a teardown cannot fail the run.
        with contextlib.suppress(UserError):
            experiment = f"mmbert/{planning.recipe_of(arguments).name}"
            tracking.connect(experiment).finish_workflow("FINISHED" if worked else "FAILED")


class AlertOperator(BaseOperator):
    """Sends a trend artifact's new alerts through the configured notifiers; where there is none says so, and fails."""

    template_fields = ("trend",)
    ui_color = "#fce8e6"

    def __init__(self, *, trend: Any, recipe: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.trend = trend
        self.recipe = recipe

    def execute(self, context: Any) -> list[str]:
        os.environ["MMBERT_WORKFLOW_RUN"] = _workflow_run(context)  # this process is the task's own
        found = ["the re-evaluation did not finish; Airflow shows which task failed"]
        name = str(context["dag_run"].dag_id)
        if self.trend:
            trend = artifacts.open_artifact(self.trend)
            name, found = str(trend.outputs["label"]), [str(line) for line in trend.outputs["alerts"]]
        elif _idle(context):
            found = []
        if found:
            arguments = {name: _plain(value, context) for name, value in self.recipe.items()}
            alerts.send(alerts.Alert(name, found, alerts.experiment_of(arguments)), context)
        if not self.trend and found:
            # Airflow judges the run by this task, the last, so it must not succeed.
            raise AirflowFailException(found[0])
        return found


class AirflowRunner:
    """Implements components.workflows.Runner inside a `with DAG(...)` block; handles are XComArgs."""

    def run(self, component: str, *, task: str = "", **arguments: Any) -> Any:
        outlets: dict[str, Any] = {"outlets": [_REGISTERED]} if component == _REGISTER else {}
        return ComponentOperator(
            task_id=task or component,
            component=component,
            arguments=arguments,
            **outlets,
            **_settings(component, arguments),
        ).output

    def map(self, component: str, *, over: dict[str, Any], task: str = "", **arguments: Any) -> Any:
        items = dict(zip(_ITEMS[: len(over)], over.values(), strict=True))
        return (
            ComponentOperator.partial(
                task_id=task or component,
                component=component,
                arguments=arguments,
                over=list(over),
                map_index_template="{{ task.label }}",
                **_settings(component, arguments),
            )
            .expand(**items)
            .output
        )

    def output(self, handle: Any, name: str) -> Any:
        return OutputOperator(task_id=f"{handle.operator.task_id}_{name}", uri=handle, output=name, **RETRIES).output

    def alert(self, trend: Any, **recipe: Any) -> None:
        """Tell what got worse once the trend is there, or that it is not; an alert that is not sent fails the run."""
        operator = AlertOperator(task_id="alert", trend=trend, recipe=recipe, **RETRIES)
        operator.as_teardown(on_failure_fail_dagrun=True)

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


def _tell(task: Any, state: str) -> None:
    """Where people look: in the task's log, and among its XComs while it still waits."""
    print(state, flush=True)
    with contextlib.suppress(Exception):  # the work does not depend on it
        task.xcom_push(key=STATE_KEY, value=state)


def _workflow_run(context: Any) -> str:
    """The name of the workflow's run in MLflow; the demo's driver looks for it."""
    return f"{context['params'].get('run_name') or ''} {context['dag_run'].run_id}".strip()


def _task(context: Any) -> str:
    """Which task this is, for the artifact that it makes: what leads to it in Airflow."""
    task = context["ti"]
    places = {"dag_id": task.dag_id, "run_id": task.run_id, "task_id": task.task_id}
    mapped = {"map_index": task.map_index} if task.map_index is not None and task.map_index >= 0 else {}
    return json.dumps({**places, **mapped})


def _nothing_to_do(arguments: dict[str, Any], context: Any) -> bool:
    """Whether the schedule came before the first model. Who starts a run by hand is told by the component."""
    from mmbert.evaluation.selection import any_registered

    if context["dag_run"].run_type != "scheduled" or arguments["model"]:
        return False
    registry = connect_registry()
    return registry is not None and not any_registered(registry, planning.recipe_of(arguments).release.model_name)


def _idle(context: Any) -> bool:
    return bool(context["ti"].xcom_pull(task_ids=_SELECT, key=IDLE_KEY))


def _announce(context: Any, arguments: dict[str, Any], step: Step) -> None:
    recipe = artifacts.open_artifact(arguments["recipe"], "recipe").remote(planning.RECIPE_FILE)
    context["outlet_events"][_REGISTERED].add(MODEL_VERSIONS, extra={"recipe": recipe, "version": step.label})


def _plain(value: Any, context: Any) -> Any:
    """Trigger parameters looked up, Airflow's lazy sequences made lists."""
    if isinstance(value, TriggerParameter):
        event = _event(context) if value.event else {}
        return event.get(value.event, context["params"][value.name])
    if isinstance(value, str) or not isinstance(value, Iterable):
        return value
    return [_plain(item, context) for item in value]


def _event(context: Any) -> dict[str, Any]:
    """The extra of the event that started this run, the last where there are several; empty for other runs."""
    events = context.get("triggering_asset_events") or {}
    extras = [dict(event.extra or {}) for event in events.get(MODEL_VERSIONS, ())]
    if len({str(extra.get("recipe")) for extra in extras}) > 1:
        print(f"several models are new; this run takes the last, others wait for their schedule: {extras}", flush=True)
    return extras[-1] if extras else {}


def _item_label(item: str) -> str:
    if "/" not in item:
        return item
    with contextlib.suppress(MmbertError):
        found = artifacts.find(item)
        if found is not None:
            return str(found.outputs.get("label", item.rsplit("/", 1)[-1]))
    return item
