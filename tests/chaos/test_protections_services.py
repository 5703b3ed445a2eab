"""What DAG runs rely on when services die: each protection holds, and without it something is lost."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from components import runtime
from components.contract import get_component
from infra.local import processes
from infra.local.airflow_config import write_airflow_config
from infra.local.credentials import load_or_create
from infra.local.settings import Ports, Settings, base_environment
from mmbert import artifacts
from mmbert.tracking import election
from tests.fixtures_stack import ROOT, clean_environment
from tests.killing import wait_until_gone

ORCHESTRATOR = ROOT / ".venv-orchestrator" / "bin" / "python"


@pytest.fixture(scope="module")
def airflow_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The settings of a stack that is never started."""
    home = tmp_path_factory.mktemp("home")
    settings = Settings(home, Ports(1, 2, 3))
    write_airflow_config(settings, load_or_create(home))
    return settings.airflow_home


def started(script: str, home: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    """A script in Airflow's environment, which prints one line of JSON once it is where it should be killed."""
    settings = Settings(home.parent, Ports(1, 2, 3))
    environment = base_environment(settings, clean_environment()) | {"AIRFLOW_HOME": str(home), **variables}
    command = [str(ORCHESTRATOR), "-c", SAY + script, *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> Any:
    """Its line, and what else it prints passed over."""
    for line in process.stdout or ():
        if line.startswith("{"):
            return json.loads(line)
    raise AssertionError(f"it ended with {process.wait()}")


def ended(script: str, home: Path, *arguments: str, **variables: str) -> Any:
    process = started(script, home, *arguments, **variables)
    found = said(process)
    assert process.wait() == 0
    return found


# In one piece, beside what workers log.
SAY = """
import json, os
def say(found):
    os.write(1, f"\\n{json.dumps(found)}\\n".encode())
"""

# A scheduler's executor with two idle workers, a task that runs under a worker and one whose worker is gone.
EXECUTOR = """
import datetime, subprocess, sys, time
from types import SimpleNamespace
from infra.local.executor import AdoptingExecutor
from airflow.executors.local_executor import LocalExecutor
from setproctitle import setproctitle

executor = {"ours": AdoptingExecutor, "airflow's": LocalExecutor}[sys.argv[1]](parallelism=2)
executor.start()
setproctitle("airflow worker")

def task(pid):
    return SimpleNamespace(
        state="running", pid=pid, start_date=datetime.datetime.now(datetime.UTC), max_tries=5, last_heartbeat_at=None
    )

running = subprocess.Popen(["sleep", "100"])
dead = subprocess.Popen(["true"])
dead.wait()
tasks = {"runs": task(running.pid), "is dead": task(dead.pid), "another's": task(running.pid)}
tasks["another's"].start_date -= datetime.timedelta(hours=1)
reset = executor.try_adopt_task_instances(list(tasks.values()))
running.kill()
say({
    "workers": list(executor.workers),
    "reset": [name for name, task in tasks.items() if task in reset],
    "tries": {name: task.max_tries for name, task in tasks.items()},
})
time.sleep(100)
"""


@pytest.mark.parametrize(("executor", "keeps_environment"), [("ours", "1"), ("ours", ""), ("airflow's", "1")])
def test_a_dead_schedulers_tasks_go_on_and_its_idle_workers_end(
    airflow_home: Path, executor: str, keeps_environment: str
) -> None:
    scheduler = started(EXECUTOR, airflow_home, executor, SPT_NOENV=keeps_environment)
    found = said(scheduler)
    workers = [psutil.Process(pid) for pid in found["workers"]]
    scheduler.kill()
    scheduler.wait()
    if executor == "ours" and keeps_environment:
        assert found["reset"] == ["is dead", "another's"]
        assert found["tries"] == {"runs": 5, "is dead": 6, "another's": 6}
        wait_until_gone(workers, 20)
        return
    # Without it a running task is started a second time.
    assert found["reset"] == ["runs", "is dead", "another's"]
    if executor == "ours":
        wait_until_gone(workers, 20)
        return
    # Each has a retry less, and the workers wait for ever.
    assert set(found["tries"].values()) == {5}
    _, alive = psutil.wait_procs(workers, timeout=3)
    for worker in alive:
        worker.kill()
    assert len(alive) == 2


# A scheduler that ends by an error of its own, while its workers' tasks go on.
ENDING = """
import sys, time
from infra.local.executor import AdoptingExecutor
from airflow.executors import local_executor

local_executor._run_worker = lambda **given: time.sleep(100)
executor = {"ours": AdoptingExecutor, "airflow's": local_executor.LocalExecutor}[sys.argv[1]](parallelism=2)
executor.start()
say({"workers": list(executor.workers)})
executor.end()
"""


@pytest.mark.parametrize("executor", ["ours", "airflow's"])
def test_a_scheduler_that_fails_ends_and_its_tasks_do_not(airflow_home: Path, executor: str) -> None:
    scheduler = started(ENDING, airflow_home, executor)
    workers = [psutil.Process(pid) for pid in said(scheduler)["workers"]]
    try:
        if executor == "ours":
            assert scheduler.wait(30) == 0
            assert all(worker.is_running() for worker in workers)
        else:
            # `up` takes it for running, and nothing goes on until the tasks have ended.
            with pytest.raises(subprocess.TimeoutExpired):
                scheduler.wait(4)
    finally:
        for process in (scheduler, *workers):
            with contextlib.suppress(psutil.Error):
                process.kill()


# A supervisor as Airflow's: it forks, the child executes a task, whose component runs for long.
SUPERVISOR = """
import sys, time
from types import SimpleNamespace
import components.airflow

if sys.argv[1] == "without":
    components.airflow.end_with_parent = lambda number: None
TASK = SimpleNamespace(xcom_push=print, dag_id="dag", run_id="run", task_id="recipe", map_index=-1)
child = os.fork()
if child == 0:
    operator = components.airflow.ComponentOperator(
        task_id="recipe", component="recipe", arguments={"preset": "tiny", "overrides": []}
    )
    import signal
    signal.signal(signal.SIGTERM, lambda *_: operator.on_kill())
    operator.execute({"params": {}, "ti": TASK, "dag_run": SimpleNamespace(run_id="run")})
say({"task": child})
time.sleep(100)
"""


@pytest.mark.parametrize("protected", [True, False])
def test_a_task_and_its_component_end_with_their_supervisor(
    airflow_home: Path, tmp_path: Path, protected: bool
) -> None:
    program = tmp_path / "mmbert"
    program.write_text(f"#!/bin/sh\n: > {tmp_path}/began\nexec sleep 100\n")
    program.chmod(0o755)
    variables = {"MMBERT_COMMAND": str(program), "MMBERT_ROOT": str(tmp_path / "root")}
    supervisor = started(SUPERVISOR, airflow_home, "with" if protected else "without", **variables)
    task = psutil.Process(said(supervisor)["task"])
    await_true((tmp_path / "began").exists)
    left = [task, *task.children(recursive=True)]
    assert len(left) == 2
    supervisor.kill()
    supervisor.wait()
    if protected:
        wait_until_gone(left, 20)
        return
    # Without it they work on, beside their own retry and with nobody to tell.
    _, alive = psutil.wait_procs(left, timeout=2)
    for process in alive:
        process.kill()
    assert len(alive) == 2


# A task that is killed has no time to end its component.
LAUNCHING = """
import sys
from pathlib import Path
from components.contract import get_component
from components.launchers import process
from components.planning import Plan

if sys.argv[1] == "without":
    process._die_with_parent = lambda: None
plan = Plan(get_component("select"), {"recipe": "tiny", "model": ""}, {}, {}, "fingerprint", "unused")
process.run(plan, [], "", print)
"""


@pytest.mark.parametrize("protected", [True, False])
def test_a_component_ends_with_its_task(airflow_home: Path, tmp_path: Path, protected: bool) -> None:
    program = tmp_path / "mmbert"
    program.write_text("#!/bin/sh\necho '{}'\nexec sleep 100\n")
    program.chmod(0o755)
    task = started(LAUNCHING, airflow_home, "with" if protected else "without", MMBERT_COMMAND=str(program))
    said(task)
    (component,) = psutil.Process(task.pid).children()
    task.kill()
    task.wait()
    _, alive = psutil.wait_procs([component], timeout=20 if protected else 2)
    for process in alive:
        process.kill()
    assert bool(alive) is not protected


# How long a task asks Airflow's API server before it gives up, and what its retries outlast.
PATIENCE = """
import contextlib
import httpx
from airflow.configuration import conf
from airflow.sdk.api import client
from components.airflow import RETRIES

waited = []
client.Client.request.retry.sleep = waited.append
def refuse(request):
    raise httpx.ConnectError("refused")
asked = client.Client(base_url="http://127.0.0.1:1", token="", transport=httpx.MockTransport(refuse))
with contextlib.suppress(httpx.ConnectError):
    asked.request("GET", "http://127.0.0.1:1/")
delay = RETRIES["retry_delay"].total_seconds()
longest = RETRIES["max_retry_delay"].total_seconds()
say({
    "api": sum(waited),
    "retries": sum(min(delay * 2**number, longest) for number in range(RETRIES["retries"])),
    **{key: conf.getfloat("scheduler", key) for key in (
        "orphaned_tasks_check_interval", "scheduler_health_check_threshold", "task_instance_heartbeat_timeout")},
})
"""


def test_outages_of_a_minute_pass_unnoticed_and_a_dead_scheduler_is_noticed(airflow_home: Path, tmp_path: Path) -> None:
    ours, airflows = ended(PATIENCE, airflow_home), ended(PATIENCE, tmp_path)
    # The API server was seen to take 45 s to start.
    assert ours["api"] > 45 > airflows["api"]
    assert ours["task_instance_heartbeat_timeout"] > ours["api"]
    assert ours["retries"] >= 300
    noticing = [
        found["orphaned_tasks_check_interval"] + found["scheduler_health_check_threshold"] for found in (ours, airflows)
    ]
    assert noticing[0] < 30 < noticing[1]


class Mlflow:
    """The calls of MLflow's API that an election makes, each as atomic as the server makes it."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, str]] = {}
        self._lock = threading.Lock()
        self._both_found_none = threading.Barrier(2)
        self._searches = threading.local()

    def call(self, path: str, body: dict[str, Any]) -> Any:
        if path == "runs/search" and not hasattr(self._searches, "first"):
            self._searches.first = True
            with self._lock:
                found = self._found()
            self._both_found_none.wait(10)
            return found
        with self._lock:
            return getattr(self, path.removeprefix("runs/").replace("-", "_"))(body)

    def _found(self) -> Any:
        info = {"experiment_id": "1", "status": "RUNNING", "artifact_uri": ""}
        return {"runs": [
            {"info": {"run_id": name, **info}, "data": {"tags": [{"key": k, "value": v} for k, v in tags.items()]}}
            for name, tags in self.runs.items()
        ]}  # fmt: skip

    def search(self, body: dict[str, Any]) -> Any:
        return self._found()

    def create(self, body: dict[str, Any]) -> Any:
        name = f"run-{len(self.runs)}-{threading.get_ident()}"
        self.runs[name] = {tag["key"]: tag["value"] for tag in body["tags"]}
        return {"run": {"info": {"run_id": name}}}

    def set_tag(self, body: dict[str, Any]) -> Any:
        self.runs[body["run_id"]][body["key"]] = body["value"]

    def delete(self, body: dict[str, Any]) -> Any:
        del self.runs[body["run_id"]]


@pytest.mark.parametrize("protected", [True, False])
def test_a_task_and_its_overlapping_retry_share_one_mlflow_run(
    protected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not protected:

        def made(api: Any, *rest: Any) -> Any:
            return api.call("runs/search", {})["runs"] or election._create(api, *rest)

        monkeypatch.setattr(
            election, "find_or_create", lambda api, number, name, identity, tags: made(api, number, name, tags)
        )
    server: Any = Mlflow()
    attempts = [
        threading.Thread(target=election.find_or_create, args=(server, "1", "train", {"mmbert.task": "train"}, {}))
        for _ in range(2)
    ]
    for attempt in attempts:
        attempt.start()
    for attempt in attempts:
        attempt.join()
    assert len(server.runs) == (1 if protected else 2)


class Tracker:
    """Remembers how a run was ended."""

    active, registry, ended = False, None, ""

    def component_run(self, **_: Any) -> Any:
        run = runtime.tracking.ComponentRun()
        run.finish = lambda status: setattr(self, "ended", status)  # type: ignore[method-assign, assignment]
        return run


@pytest.mark.parametrize("protected", [True, False])
def test_an_attempt_that_is_ended_late_does_not_undo_its_retrys_finished_run(
    protected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not protected:
        monkeypatch.setattr(runtime, "_is_done", lambda work_plan: False)
    monkeypatch.setenv("MMBERT_CACHE", str(tmp_path / "cache"))
    item, root, arguments = get_component("recipe"), str(tmp_path / "root"), {"preset": "tiny", "overrides": []}
    tracker = Tracker()
    work = runtime.planning.plan(item, arguments, root)
    monkeypatch.setattr(runtime.tracking, "connect", lambda experiment, **_: tracker)

    def retry_is_quicker(*_: Any) -> dict[str, Any]:
        artifacts.ArtifactWriter(work.uri, item.produces, work.fingerprint, {}, {}).commit({})
        raise KeyboardInterrupt

    monkeypatch.setattr(runtime, "_producer", retry_is_quicker)
    with pytest.raises(KeyboardInterrupt):
        runtime.run_component(item, arguments, root)
    assert tracker.ended == ("FINISHED" if protected else "KILLED")


@pytest.mark.parametrize("protected", [True, False])
def test_up_starts_a_service_though_another_process_has_its_number(
    protected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a power cut, when the same number is given again."""
    if not protected:
        monkeypatch.setattr(processes, "_SAME_START_SECONDS", float("inf"))
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        (tmp_path / "s3.json").write_text(json.dumps({"pid": bystander.pid, "started": time.time() - 3600}))
        found = processes.find("s3", tmp_path)
    finally:
        bystander.kill()
        bystander.wait()
    # Without it `up` takes the service for running.
    assert (found is None) is protected


def await_true(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
