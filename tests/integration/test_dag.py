"""The DAG file as Airflow reads it, and its tasks' way with errors; the real Airflow library, no server."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from components import workflows
from tests.fixtures_stack import ROOT, clean_environment

HEAVY = {
    "torch",
    "composer",
    "streaming",
    "transformers",
    "datatrove",
    "numpy",
    "pandas",
    "boto3",
    "mlflow",
    "sklearn",
    "plotly",
}

DESCRIBE = """
import json, sys, time
import airflow.sdk
from airflow.dag_processing.dagbag import DagBag
before = set(sys.modules)
began = time.process_time()
bag = DagBag(sys.argv[1], bundle_name="dags-folder", load_op_links=False)
seconds = time.process_time() - began
dag = bag.dags["mmbert_pretrain"]
from airflow.serialization.serialized_objects import DagSerialization
first, second = (json.dumps(DagSerialization.to_dict(dag), sort_keys=True) for _ in range(2))
print(json.dumps({
    "errors": bag.import_errors,
    "seconds": seconds,
    "imported": sorted({name.split(".")[0] for name in set(sys.modules) - before}),
    "params": {name: {**param.schema, "description": param.description} for name, param in dag.params.items()},
    "stable": first == second,
    "tasks": {t.task_id: {
        "upstream": sorted(t.upstream_task_ids), "mapped": t.is_mapped, "pool": t.pool, "slots": t.pool_slots,
        "retries": t.retries, "backoff": bool(t.retry_exponential_backoff), "teardown": t.is_teardown,
    } for t in dag.tasks},
}))
"""

EXECUTE = """
import json, sys
from airflow.sdk.exceptions import AirflowFailException
from components.airflow import ComponentOperator, TriggerParameter
from mmbert.errors import InfrastructureError

pushed = {}
class TaskInstance:
    dag_id, run_id, task_id, map_index = "mmbert_pretrain", "run-1", "recipe", -1
    def xcom_push(self, key, value):
        pushed[key] = value
class Run:
    run_id = "run-1"
operator = ComponentOperator(
    task_id="recipe", component="recipe",
    arguments={"preset": TriggerParameter("preset"), "overrides": TriggerParameter("overrides")},
)
params = {"preset": "tiny", "overrides": json.loads(sys.argv[1]), "run_name": None}
try:
    print(json.dumps(["done", operator.execute({"params": params, "ti": TaskInstance(), "dag_run": Run()}), pushed]))
except AirflowFailException as error:
    print(json.dumps(["failed for good", str(error), pushed]))
except InfrastructureError as error:
    print(json.dumps(["to be retried", str(error), pushed]))
"""


def orchestrator(script: str, *arguments: str, home: Path, **variables: str) -> Any:
    """What a script prints last, run in the orchestrator's environment."""
    environment = clean_environment() | {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        "MMBERT_CACHE": str(home / "cache"),
        **variables,
    }
    command = [str(ROOT / ".venv-orchestrator" / "bin" / "python"), "-c", script, *arguments]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


class GraphRecorder:
    """A runner that only writes down who needs whose result."""

    def __init__(self) -> None:
        self.upstream: dict[str, set[str]] = {}
        self.mapped: set[str] = set()

    def run(self, component: str, *, task: str = "", **arguments: Any) -> str:
        return self._add(task or component, arguments)

    def map(self, component: str, *, over: dict[str, Any], task: str = "", **arguments: Any) -> str:
        self.mapped.add(task or component)
        return self._add(task or component, {**arguments, **over})

    def output(self, handle: str, name: str) -> str:
        return self._add(f"{handle.removeprefix('@')}_{name}", {"uri": handle})

    def _add(self, task: str, arguments: dict[str, Any]) -> str:
        assert task not in self.upstream
        self.upstream[task] = {name for value in arguments.values() for name in self._handles(value)}
        return f"@{task}"

    def _handles(self, value: Any) -> list[str]:
        if isinstance(value, str):
            return [value[1:]] if value.startswith("@") else []
        return [name for item in value for name in self._handles(item)]


@pytest.fixture(scope="module")
def dag(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return orchestrator(DESCRIBE, str(ROOT / "dags" / "mmbert_pretrain.py"), home=tmp_path_factory.mktemp("airflow"))


def test_reading_the_dag_file_is_light(dag: Any) -> None:
    assert dag["errors"] == {}
    assert not HEAVY & set(dag["imported"])
    # 0.5 s were measured; Airflow itself warns from 2 s on.
    assert dag["seconds"] < 2


def test_the_graph_is_the_workflows(dag: Any) -> None:
    recorder = GraphRecorder()
    workflows.pretrain(recorder, "tiny", [])
    tasks = {name: task for name, task in dag["tasks"].items() if not task["teardown"]}
    assert {name: set(task["upstream"]) for name, task in tasks.items()} == recorder.upstream
    assert {name for name, task in tasks.items() if task["mapped"]} == recorder.mapped
    assert {"curate", "tokenize", "train_decay"} <= recorder.mapped


def test_the_end_is_a_teardown_so_that_it_cannot_hide_a_failure(dag: Any) -> None:
    assert [name for name, task in dag["tasks"].items() if task["teardown"]] == ["end"]
    assert dag["tasks"]["end"]["upstream"] == ["data_report", "promote"]


def test_no_training_waits_for_the_data_report(dag: Any) -> None:
    waiting = [name for name, task in dag["tasks"].items() if "data_report" in task["upstream"]]
    assert waiting == ["end"]


def test_tasks_share_the_cores_and_are_retried(dag: Any) -> None:
    components = {n: t for n, t in dag["tasks"].items() if t["pool"] == "cores"}
    assert len(components) >= 15
    assert all(task["retries"] == 5 and task["backoff"] for task in components.values())
    assert components["train_pretrain"]["slots"] == 2
    assert components["train_decay"]["slots"] == 1


def test_the_trigger_form_is_typed_and_explained(dag: Any) -> None:
    assert list(dag["params"]) == ["preset", "overrides", "run_name"]
    for schema in dag["params"].values():
        assert schema["type"]
        assert schema["title"]
        assert len(schema["description"]) > 40
    assert dag["params"]["preset"]["examples"] == ["tiny", "small", "base"]


def test_airflow_sees_one_version_of_an_unchanged_file(dag: Any) -> None:
    assert dag["stable"]


def test_a_task_returns_its_artifacts_uri(tmp_path: Path) -> None:
    root = str(tmp_path / "artifacts")
    done, uri, pushed = orchestrator(EXECUTE, "[]", home=tmp_path, MMBERT_ROOT=root)
    assert (done, pushed) == ("done", {})
    assert uri.startswith(f"{root}/recipe/")
    # What leads from the artifact to the task in Airflow.
    task = json.loads((Path(uri) / "manifest.json").read_text("utf-8"))["producer"]["airflow"]
    assert task == {"dag_id": "mmbert_pretrain", "run_id": "run-1", "task_id": "recipe"}


def test_wrong_input_fails_for_good_with_its_message_and_code(tmp_path: Path) -> None:
    overrides = json.dumps(["phases.decay.tokns=1M"])
    how, message, pushed = orchestrator(EXECUTE, overrides, home=tmp_path, MMBERT_ROOT=str(tmp_path / "artifacts"))
    assert how == "failed for good"
    assert "tokns" in message
    assert pushed == {"mmbert_exit_code": 2}


def test_a_bug_fails_for_good(tmp_path: Path) -> None:
    command = tmp_path / "mmbert"
    command.write_text("#!/bin/sh\necho 'Traceback: a bug'\nexit 1\n")
    command.chmod(0o755)
    root = str(tmp_path / "artifacts")
    how, message, pushed = orchestrator(EXECUTE, "[]", home=tmp_path, MMBERT_ROOT=root, MMBERT_COMMAND=str(command))
    assert how == "failed for good"
    assert "Traceback: a bug" in message
    assert pushed == {"mmbert_exit_code": 1}


WAITING = """
from components import launchers

def waits(plan, arguments, root, tell):
    tell("waits for quota in queue mmbert-h100: full")
    return 3, "it waited too long"

launchers.LAUNCHERS["process"] = waits
"""


def test_what_a_task_waits_for_is_an_xcom_of_it(tmp_path: Path) -> None:
    root = str(tmp_path / "artifacts")
    how, message, pushed = orchestrator(WAITING + EXECUTE, "[]", home=tmp_path, MMBERT_ROOT=root)
    assert (how, "it waited too long" in message) == ("to be retried", True)
    assert pushed == {"mmbert_state": "waits for quota in queue mmbert-h100: full", "mmbert_exit_code": 3}


@pytest.mark.parametrize("reason", ["unreachable store", "killed"])
def test_infrastructure_is_tried_again(tmp_path: Path, reason: str) -> None:
    variables = {"MMBERT_ROOT": str(tmp_path / "artifacts")}
    if reason == "killed":
        command = tmp_path / "mmbert"
        command.write_text("#!/bin/sh\nkill -9 $$\n")
        command.chmod(0o755)
        variables["MMBERT_COMMAND"] = str(command)
    else:
        keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
        variables = {"MMBERT_ROOT": "s3://mmbert/artifacts", "AWS_ENDPOINT_URL": "http://127.0.0.1:9", **keys}
    how, _, pushed = orchestrator(EXECUTE, "[]", home=tmp_path, **variables)
    assert how == "to be retried"
    assert pushed == {"mmbert_exit_code": 3}


RENDER = """
import json, sys
from airflow.sdk import DAG
from components.airflow import AirflowRunner, TriggerParameter, _plain

with DAG(dag_id="rendered", schedule=None) as dag:
    runner = AirflowRunner()
    runner.run("recipe", preset=TriggerParameter("preset"), overrides=TriggerParameter("overrides"))
(operator,) = dag.tasks
context = {"params": {"preset": sys.argv[1], "overrides": [sys.argv[1]]}, "secret": "the-secret"}
operator.render_template_fields(context)
print(json.dumps({name: _plain(value, context) for name, value in operator.arguments.items()}))
"""


def test_a_template_in_the_trigger_form_is_text(tmp_path: Path) -> None:
    """Whoever may start a run may not have Airflow's templates run something in its worker."""
    hostile = "name={{ secret }}{{ ''.__class__.__mro__ }}{% raw %}"
    assert orchestrator(RENDER, hostile, home=tmp_path) == {"preset": hostile, "overrides": [hostile]}
