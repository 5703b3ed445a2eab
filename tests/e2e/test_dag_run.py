"""A whole DAG run as its user sees it: real S3, MLflow, Airflow and components, from raw text to a registered model."""

from __future__ import annotations

import contextlib
import re
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import psutil
import pytest

from mmbert import storage
from mmbert.artifacts import open_artifact
from mmbert.evaluation.results.store import artifact_scorecard, record
from tests.local_stack import LocalStack
from tests.small_run import WHOLE_WORKFLOW, own_text

# The first test's time holds a whole demo.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

# Smaller than `tiny`: this asks whether everything works together, not whether the model learns.
SMALL = (
    *WHOLE_WORKFLOW,
    "name=mmbert-e2e",
    "release.model_name=mmbert-e2e",
    "curation.groups=2",
    "phases.decay.variants={decay-eng: {languages: [eng_Latn]}, decay-all: {languages: all}}",
)
# Their effects lie outside the store, or they say how things are now.
DONE_AGAIN = {"release", "promotion", "selection", "trend"}


@dataclass(frozen=True)
class Demo:
    """One `demo`: how it ended, what it printed, and what Airflow holds of its run."""

    code: int
    printed: str
    tasks: list[dict[str, Any]]

    def uris(self) -> dict[tuple[str, int], Any]:
        return {(task["task_id"], task["map_index"]): task["uri"] for task in self.tasks}


def flags(overrides: Sequence[str]) -> list[str]:
    return [f"--set={override}" for override in overrides]


def run_demo(stack: LocalStack, overrides: Sequence[str]) -> Demo:
    ended = stack.run("demo", *flags(overrides))
    printed = ended.stdout + ended.stderr
    run_id = re.search(r"^mmbert_pretrain (\S+)", printed, re.MULTILINE)
    assert run_id, printed
    token, path = stack.token(), f"/api/v2/dags/mmbert_pretrain/dagRuns/{urllib.parse.quote(run_id[1])}"
    tasks = stack.airflow(f"{path}/taskInstances?limit=100", token=token)["task_instances"]
    for task in tasks:
        xcom = f"{path}/taskInstances/{task['task_id']}/xcomEntries?map_index={task['map_index']}"
        entries = stack.airflow(xcom, token=token)["xcom_entries"]
        task["uri"] = None
        if any(entry["key"] == "return_value" for entry in entries):
            value = xcom.replace("xcomEntries", "xcomEntries/return_value")
            task["uri"] = stack.airflow(value, token=token)["value"]
    return Demo(ended.returncode, printed, tasks)


def manifests(stack: LocalStack) -> dict[str, float]:
    """When each artifact of the store was committed, but those that each run makes again."""
    found = (stack.home / "s3" / "mmbert" / "artifacts").glob("*/*/manifest.json")
    return {str(path): path.stat().st_mtime for path in found if path.parts[-3] not in DONE_AGAIN}


def mlflow_runs(stack: LocalStack) -> list[dict[str, Any]]:
    """The demo's own runs, the latest first."""
    return [run for run in workflow_runs(stack) if run["info"]["run_name"].startswith("manual__")]


def workflow_runs(stack: LocalStack) -> list[dict[str, Any]]:
    experiment = stack.mlflow("experiments/get-by-name?experiment_name=mmbert/mmbert-e2e")["experiment"]
    wanted = {"experiment_ids": [experiment["experiment_id"]], "filter": "tags.`mmbert.role` = 'workflow'"}
    found: list[dict[str, Any]] = stack.mlflow("runs/search", wanted)["runs"]
    return found


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    stack = LocalStack.new(tmp_path_factory.mktemp("stack"))
    try:
        yield stack
    finally:
        stack.run("down")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of `tiny`."""
    return [*SMALL, own_text(tmp_path_factory.mktemp("own"))]


@pytest.fixture(scope="module")
def first(stack: LocalStack, small: list[str]) -> Demo:
    demo = run_demo(stack, small)
    assert demo.code == 0, demo.printed
    return demo


def test_every_task_succeeds_under_a_readable_name(first: Demo) -> None:
    assert {task["state"] for task in first.tasks} == {"success"}
    labels = {task["rendered_map_index"] for task in first.tasks if task["task_id"] == "train_decay"}
    assert labels == {"decay-eng", "decay-all"}


def test_results_and_links_are_printed(stack: LocalStack, first: Demo) -> None:
    assert f"http://127.0.0.1:{stack.airflow_port}/dags/mmbert_pretrain/runs/" in first.printed
    for word in ("bits", "MLflow run", "report/report.html", "data_report/data_report.html"):
        assert word in first.printed


def test_airflow_mlflow_and_the_report_lead_to_each_other(stack: LocalStack, first: Demo) -> None:
    run_id = re.search(r"^mmbert_pretrain (\S+)", first.printed, re.MULTILINE)
    assert run_id
    quoted = urllib.parse.quote(run_id[1], safe="")
    tasks = f"/api/v2/dags/mmbert_pretrain/dagRuns/{quoted}/taskInstances"

    def buttons(task: str, map_index: int = -1) -> dict[str, str]:
        path = f"{tasks}/{task}/links?map_index={map_index}"
        found: dict[str, str] = stack.airflow(path, token=stack.token())["extra_links"]
        return found

    shown = re.fullmatch(r"http://.+/#/experiments/\d+/runs/(\w+)", buttons("train_decay", 1)["Run in MLflow"])
    assert shown
    tags = {tag["key"]: tag["value"] for tag in stack.mlflow(f"runs/get?run_id={shown[1]}")["run"]["data"]["tags"]}
    page = f"http://127.0.0.1:{stack.airflow_port}/dags/mmbert_pretrain/runs/{quoted}"
    assert tags["mmbert.task"] == "train_decay"
    assert f"({page}/tasks/train_decay/mapped/1)" in tags["mlflow.note.content"]
    (workflow,) = mlflow_runs(stack)
    workflow_tags = {tag["key"]: tag["value"] for tag in workflow["data"]["tags"]}
    assert f"({page})" in workflow_tags["mlflow.note.content"]

    report = buttons("report")
    assert report["Page"] == f"{report['Run in MLflow']}/artifacts/report/report.html"
    (written,) = (stack.home / "s3" / "mmbert" / "artifacts" / "report").rglob("report.html")
    html = written.read_text("utf-8")
    for link in (report["Run in MLflow"].rpartition("/")[2], f"{page}/tasks/report", f"{page}/tasks/merge"):
        assert link in html


def test_the_model_is_registered_as_candidate(stack: LocalStack, first: Demo) -> None:
    found = stack.mlflow("registered-models/alias?name=mmbert-e2e&alias=candidate")["model_version"]
    assert found["source"].startswith(first.uris()["convert", -1])


def test_the_workflows_run_in_mlflow_is_finished(stack: LocalStack, first: Demo) -> None:
    assert [run["info"]["status"] for run in mlflow_runs(stack)] == ["FINISHED"]


def test_a_second_run_finds_everything_done(stack: LocalStack, small: list[str], first: Demo) -> None:
    made = manifests(stack)
    second = run_demo(stack, small)
    assert second.code == 0, second.printed
    assert second.uris() == first.uris()
    now = manifests(stack)
    assert {path for path, when in made.items() if now[path] != when} == set()
    assert [run["info"]["status"] for run in mlflow_runs(stack)] == ["FINISHED", "FINISHED"]
    assert len(stack.mlflow("registered-models/get?name=mmbert-e2e")["registered_model"]["latest_versions"]) == 1


def test_wrong_input_ends_with_its_message_and_code(stack: LocalStack, small: list[str], first: Demo) -> None:
    wrong = run_demo(stack, [*small, "phases.extend.max_seq_len=64"])
    assert wrong.code == 2
    assert "recipe failed" in wrong.printed
    assert "max_seq_len" in wrong.printed
    attempts = {task["try_number"] for task in wrong.tasks if task["task_id"] == "recipe"}
    assert attempts == {1}


REEVALUATE = "/api/v2/dags/mmbert_reevaluate/dagRuns"


def ended(stack: LocalStack, run_type: str) -> dict[str, Any]:
    """The latest re-evaluation of that type, once it has ended."""
    deadline, token = time.monotonic() + 600, stack.token()
    while True:
        found = stack.airflow(f"{REEVALUATE}?run_type={run_type}&order_by=-run_after", token=token)["dag_runs"]
        if found and found[0]["state"] in {"success", "failed"}:
            return dict(found[0])
        assert time.monotonic() < deadline, found
        time.sleep(1)


def returned(stack: LocalStack, run: dict[str, Any], task: str, map_index: int = -1) -> Any:
    path = f"{REEVALUATE}/{urllib.parse.quote(run['dag_run_id'])}/taskInstances/{task}"
    return stack.airflow(f"{path}/xcomEntries/return_value?map_index={map_index}", token=stack.token())["value"]


def test_a_new_version_is_evaluated_again_by_itself(stack: LocalStack, first: Demo) -> None:
    run = ended(stack, "asset_triggered")
    assert run["state"] == "success"
    assert returned(stack, run, "evaluate", 0) == first.uris()["evaluate_model", 0]
    assert stack.mlflow("registered-models/alias?name=mmbert-e2e&alias=champion")["model_version"]["version"] == "1"
    assert returned(stack, run, "alert") == []


def test_a_drop_is_told_and_the_trend_page_stands_in_mlflow(
    stack: LocalStack, small: list[str], first: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in stack.environment().items():
        monkeypatch.setenv(name, value)
    storage.s3_client.cache_clear()
    root = "s3://mmbert/artifacts"
    card = artifact_scorecard(open_artifact(first.uris()["evaluate_model", 0]))
    better = tuple(
        replace(s, value=s.value / 2, low=s.low / 2, high=s.high / 2, data_revision="old") for s in card.scores
    )
    record(root, replace(card, scores=better, when="2026-01-05T03:00:00+00:00"))
    storage.s3_client.cache_clear()
    conf = {"preset": "tiny", "overrides": small, "run_name": "by hand"}
    stack.airflow(REEVALUATE, {"logical_date": None, "conf": conf}, token=stack.token())
    run = ended(stack, "manual")
    assert run["state"] == "success"
    assert returned(stack, run, "evaluate", 0) == first.uris()["evaluate_model", 0]
    told = returned(stack, run, "alert")
    assert any("version 1 (champion), against its evaluation before: demo" in line for line in told)
    (tracked,) = [r for r in workflow_runs(stack) if r["info"]["run_name"] == f"by hand {run['dag_run_id']}"]
    tags = {tag["key"]: tag["value"] for tag in tracked["data"]["tags"]}
    assert told[0] in tags["mmbert.alert"]
    files = stack.mlflow(f"artifacts/list?run_id={tracked['info']['run_id']}&path=trend")["files"]
    assert [file["path"] for file in files] == ["trend/trend.html"]


def test_no_secret_stands_in_logs_xcom_mlflow_or_artifacts(stack: LocalStack, first: Demo) -> None:
    """After runs that worked and one that failed: task logs, both databases, the whole store, command lines."""
    assert list(stack.home.glob("airflow/logs/dag_id=mmbert_pretrain/**/*.log"))
    assert stack.leaks() == {}


@pytest.mark.slow
def test_a_run_goes_on_after_everything_was_killed(stack: LocalStack, small: list[str], first: Demo) -> None:
    other = [*small, "seed=18"]
    with ThreadPoolExecutor(1) as pool:
        interrupted = pool.submit(stack.run, "demo", *flags(other))
        deadline = time.monotonic() + 300
        while not any("train_pretrain" in " ".join(command_line(p)) for p in stack.processes()):
            assert time.monotonic() < deadline
            assert not interrupted.done(), interrupted.result().stdout
            time.sleep(0.2)
        for process in stack.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        run_id = re.search(r"^mmbert_pretrain (\S+)", interrupted.result().stdout, re.MULTILINE)
    resumed = run_demo(stack, other)
    assert resumed.code == 0, resumed.printed
    assert f"mmbert_pretrain {run_id and run_id[1]} " in resumed.printed
    fresh = run_demo(stack, other)
    assert fresh.uris() == resumed.uris()


def command_line(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []
