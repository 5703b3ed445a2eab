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
runs = []
if read.timetable.can_be_scheduled:
    import pendulum
    last = DataInterval.exact(pendulum.instance(now - datetime.timedelta(weeks=50)))
    while not runs or runs[-1] < now:
        run = read.timetable.next_dagrun_info(last_automated_data_interval=last, restriction=rule)
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
import json, sys
from airflow.sdk import BaseNotifier
from components.airflow import AlertOperator, TriggerParameter
from mmbert import artifacts
from mmbert.errors import MmbertError

trend = None
if sys.argv[2] != "none":
    writer = artifacts.ArtifactWriter(sys.argv[1] + "/trend/x", "trend", "x", {}, {})
    writer.outputs |= {"label": "mmbert-test", "alerts": json.loads(sys.argv[2])}
    trend = writer.commit({}).uri
class Run:
    run_id, dag_id = "run-1", "mmbert_reevaluate"
operator = AlertOperator(task_id="alert", trend=trend, recipe={"preset": TriggerParameter("preset"), "overrides": []})
try:
    told = operator.execute({"params": {"preset": "tiny", "run_name": None}, "dag_run": Run(), "dag": None})
    print(json.dumps(["told", told]))
except MmbertError as error:
    print(json.dumps(["not told", str(error)]))
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


def alert(folder: Path, alerts: list[str] | None, *notifiers: dict[str, str]) -> Any:
    (folder / "own_notifiers.py").write_text(NOTIFIER)
    text = "none" if alerts is None else json.dumps(alerts)
    paths = f"{folder}:{ROOT}"
    return orchestrator(ALERT, str(folder), text, home=folder, PYTHONPATH=paths, MMBERT_NOTIFIERS=json.dumps(notifiers))


def test_new_alerts_go_through_the_configured_notifiers(tmp_path: Path) -> None:
    out = tmp_path / "told.txt"
    to_file = {"notifier": "own_notifiers.ToFile", "path": str(out)}
    assert alert(tmp_path, [], to_file) == ["told", []]
    assert not out.exists()
    assert alert(tmp_path, ["one fell", "another fell"], to_file)[0] == "told"
    assert out.read_text() == "mmbert-test: 2 alerts: one fell\nanother fell"


def test_a_run_that_did_not_finish_is_told(tmp_path: Path) -> None:
    out = tmp_path / "told.txt"
    alert(tmp_path, None, {"notifier": "own_notifiers.ToFile", "path": str(out)})
    assert "did not finish" in out.read_text()


def test_a_notifier_that_fails_is_named_and_the_others_still_tell(tmp_path: Path) -> None:
    out = tmp_path / "told.txt"
    broken, to_file = {"notifier": "own_notifiers.Broken"}, {"notifier": "own_notifiers.ToFile", "path": str(out)}
    how, message = alert(tmp_path, ["one fell"], broken, to_file)
    assert how == "not told"
    assert "Broken (ConnectionError: no mail server)" in message
    assert out.exists()


def test_a_wrong_notifier_is_said_so(tmp_path: Path) -> None:
    how, message = alert(tmp_path, ["one fell"], {"notifier": "own_notifiers.Nothing"})
    assert how == "not told"
    assert "MMBERT_NOTIFIERS: there is no notifier own_notifiers.Nothing" in message
