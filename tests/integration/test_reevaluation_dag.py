"""The DAG `mmbert_reevaluate` as Airflow reads it: its graph, when it runs, and how it tells; no server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from components import workflows
from tests.fixtures_stack import ROOT
from tests.integration.test_dag import HEAVY, GraphRecorder, orchestrator

DESCRIBE = """
import datetime, json, sys
import airflow.sdk
from airflow.dag_processing.dagbag import DagBag
before = set(sys.modules)
bag = DagBag(sys.argv[1], bundle_name="dags-folder", load_op_links=False)
imported = sorted({name.split(".")[0] for name in set(sys.modules) - before})
dag = bag.dags.get("mmbert_reevaluate")
if dag is None:
    print(json.dumps({"errors": bag.import_errors}))
    sys.exit()
from airflow.serialization.serialized_objects import DagSerialization
from airflow.timetables.base import DataInterval, TimeRestriction
read = DagSerialization.from_dict(DagSerialization.to_dict(dag))
now = datetime.datetime.now(datetime.UTC)
rule = TimeRestriction(earliest=None, latest=None, catchup=read.catchup)
import pendulum
last, runs = DataInterval.exact(pendulum.instance(now - datetime.timedelta(weeks=50))), []
while not runs or runs[-1] < now:
    run = read.timetable.next_dagrun_info(last_automated_data_interval=last, restriction=rule)
    if run is None:
        break
    last = run.data_interval
    runs.append(run.run_after)
assets = [asset.name for _, asset in read.timetable.asset_condition.iter_assets()]
print(json.dumps({
    "errors": bag.import_errors, "imported": imported, "catchup": dag.catchup, "assets": assets,
    "missed": [run.isoformat() for run in runs if run <= now],
    "next": [run.isoformat() for run in runs if run > now],
    "preset": dag.params["preset"],
    "forms": {name: len(param.description or "") for name, param in dag.params.items()},
    "tasks": {t.task_id: {"upstream": sorted(t.upstream_task_ids), "teardown": t.is_teardown,
              "fails": getattr(t, "on_failure_fail_dagrun", False)} for t in dag.tasks},
}))
"""

ALERT = """
import json, os, sys
from airflow.sdk.exceptions import AirflowFailException
from components.airflow import AlertOperator, TriggerParameter
from mmbert import artifacts
from mmbert.errors import MmbertError

class Run:
    run_id, dag_id = "run-1", "mmbert_reevaluate"

class Task:
    def xcom_pull(self, **asked):
        return None

def outcome(place, alerts, notifiers):
    os.environ["MMBERT_NOTIFIERS"] = json.dumps(notifiers)
    trend = None
    if alerts is not None:
        writer = artifacts.ArtifactWriter(place, "trend", "x", {}, {})
        writer.outputs |= {"label": "mmbert-test", "alerts": alerts}
        trend = writer.commit({}).uri
    recipe = {"preset": TriggerParameter("preset"), "overrides": []}
    operator = AlertOperator(task_id="alert", trend=trend, recipe=recipe)
    try:
        context = {"params": {"preset": "tiny", "run_name": None}, "dag_run": Run(), "dag": None, "ti": Task()}
        return ["told", operator.execute(context)]
    except MmbertError as error:
        return ["not told", str(error)]
    except AirflowFailException as error:
        return ["told, and failed", str(error)]

print(json.dumps([outcome(f"{sys.argv[1]}/{i}", *case) for i, case in enumerate(json.loads(sys.argv[2]))]))
"""

IDLE = """
import json
from components import airflow
from mmbert.errors import UserError

class Task:
    dag_id, run_id, task_id, map_index = "mmbert_reevaluate", "run-1", "select", None
    def __init__(self):
        self.values = {}
    def xcom_push(self, key, value):
        self.values[key] = value
    def xcom_pull(self, task_ids, key="return_value"):
        return self.values.get(key)

class Run:
    run_id, dag_id = "run-1", "mmbert_reevaluate"
    def __init__(self, run_type):
        self.run_type = run_type

class Registry:
    def __init__(self, aliases):
        self.aliases = aliases
    def by_alias(self, name, alias):
        return name if alias in self.aliases else None

class Tracker:
    def finish_workflow(self, status):
        told.append(status)

def refuses(*arguments, **options):
    raise UserError("neither a champion nor a candidate")

def outcome(run_type, model, aliases):
    told.clear()
    airflow.connect_registry = lambda: None if aliases is None else Registry(aliases)
    recipe = {"preset": "tiny", "overrides": []}
    context = {"params": {}, "dag_run": Run(run_type), "ti": Task(), "dag": None}
    try:
        airflow.ComponentOperator(
            task_id="select", component="select", arguments={**recipe, "model": model}
        ).execute(context)
    except Exception as error:
        told.append(type(error).__name__)
    airflow.EndOperator(task_id="end", recipe=recipe, last=["trend"]).execute(context)
    try:
        airflow.AlertOperator(task_id="alert", trend=None, recipe=recipe).execute(context)
    except Exception as error:
        told.append(type(error).__name__)
    return list(told)

told = []
airflow.end_with_parent = lambda signal: None
airflow.run_step = refuses
airflow.tracking.connect = lambda experiment: Tracker()
airflow.alerts.send = lambda alert, context: told.append("alert")
print(json.dumps([outcome(*case) for case in [
    ("scheduled", "", []), ("manual", "", []), ("asset_triggered", "", []), ("scheduled", "7", []),
    ("scheduled", "", ["candidate"]), ("scheduled", "", ["champion"]), ("scheduled", "", None),
]]))
"""

NOTIFIER = """
from pathlib import Path
from airflow.sdk import BaseNotifier

class ToFile(BaseNotifier):
    template_fields = ("text",)
    def __init__(self, path, text="{{ alert_subject }}: {{ alert_text }}"):
        super().__init__()
        self.path, self.text = path, text
    def notify(self, context):
        Path(self.path).write_text(self.text)

class Broken(BaseNotifier):
    def notify(self, context):
        raise ConnectionError("no mail server")
"""

DAG_FILE = str(ROOT / "dags" / "mmbert_reevaluate.py")


def described(home: Path, **variables: str) -> Any:
    return orchestrator(DESCRIBE, DAG_FILE, home=home, **variables)


@pytest.fixture(scope="module")
def dag(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return described(tmp_path_factory.mktemp("airflow"))


def test_the_graph_is_the_workflows_and_reading_it_is_light(dag: Any) -> None:
    assert dag["errors"] == {}
    assert not HEAVY & set(dag["imported"])
    recorder = GraphRecorder()
    workflows.reevaluate(recorder, "tiny", [])
    tasks = {name: set(task["upstream"]) for name, task in dag["tasks"].items() if not task["teardown"]}
    assert tasks == recorder.upstream
    assert all(length > 40 for length in dag["forms"].values())


def test_after_fifty_missed_weeks_one_run_is_due(dag: Any) -> None:
    assert dag["catchup"] is False
    assert len(dag["missed"]) == 1
    assert len(dag["next"]) == 1


def test_a_new_model_version_starts_it_too(dag: Any) -> None:
    assert dag["assets"] == ["mmbert_model_versions"]


def test_an_alert_that_is_not_sent_fails_the_run_and_the_end_does_not(dag: Any) -> None:
    teardowns = {name: task["fails"] for name, task in dag["tasks"].items() if task["teardown"]}
    assert teardowns == {"alert": True, "end": False}


def test_schedule_and_recipe_are_settings(tmp_path: Path) -> None:
    never = described(tmp_path, MMBERT_REEVALUATE_SCHEDULE="never", MMBERT_REEVALUATE_RECIPE="small")
    assert (never["missed"], never["next"], never["preset"]) == ([], [], "small")
    assert never["assets"] == ["mmbert_model_versions"]
    wrong = described(tmp_path, MMBERT_REEVALUATE_SCHEDULE="sometimes")
    assert "MMBERT_REEVALUATE_SCHEDULE=sometimes: no cron expression" in str(wrong["errors"])


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[Any], str]]:
    """By case: what the task did, and what the notifier that writes to a file was given."""
    folder = tmp_path_factory.mktemp("alerts")
    (folder / "own_notifiers.py").write_text(NOTIFIER)

    def to_file(case: str) -> dict[str, str]:
        return {"notifier": "own_notifiers.ToFile", "path": str(folder / case)}

    cases: dict[str, tuple[list[str] | None, list[dict[str, str]]]] = {
        "nothing": ([], [to_file("nothing")]),
        "two": (["one fell", "another fell"], [to_file("two")]),
        "no trend": (None, [to_file("no trend")]),
        "broken": (["one fell"], [{"notifier": "own_notifiers.Broken"}, to_file("broken")]),
        "wrong": (["one fell"], [{"notifier": "own_notifiers.Nothing"}]),
    }
    text = json.dumps(list(cases.values()))
    outcomes = orchestrator(ALERT, str(folder / "trends"), text, home=folder, PYTHONPATH=f"{folder}:{ROOT}")
    files = {case: (folder / case).read_text() if (folder / case).exists() else "" for case in cases}
    return {case: (outcome, files[case]) for case, outcome in zip(cases, outcomes, strict=True)}


def test_new_alerts_go_through_the_configured_notifiers(told: dict[str, Any]) -> None:
    assert told["nothing"] == (["told", []], "")
    assert told["two"] == (
        ["told", ["one fell", "another fell"]],
        "mmbert-test: 2 alerts: one fell\nanother fell",
    )


def test_a_run_that_did_not_finish_is_told_and_fails(told: dict[str, Any]) -> None:
    assert told["no trend"][0][0] == "told, and failed"
    assert "did not finish" in told["no trend"][1]


def test_a_notifier_that_fails_is_named_and_the_others_still_tell(told: dict[str, Any]) -> None:
    (how, message), text = told["broken"]
    assert how == "not told"
    assert "Broken (ConnectionError: no mail server)" in message
    assert "one fell" in text


def test_a_wrong_notifier_is_said_so(told: dict[str, Any]) -> None:
    assert told["wrong"][0][0] == "not told"
    assert "MMBERT_NOTIFIERS: there is no notifier own_notifiers.Nothing" in told["wrong"][0][1]


def test_the_schedule_before_the_first_model_is_no_failure_and_a_run_by_hand_is_told(tmp_path: Path) -> None:
    first, *others = orchestrator(IDLE, home=tmp_path)
    assert first == ["AirflowSkipException", "FINISHED"]
    # Airflow judges the run by its task `alert`.
    assert others == [["AirflowFailException", "FAILED", "alert", "AirflowFailException"]] * 6
