"""Real DAG runs of the small recipe on local stacks of their own, followed from outside."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import psutil

from infra.local.airflow_api import AirflowApi, NotFoundError, ensure_pool
from infra.local.stack import POOL
from mmbert.errors import InfrastructureError, UserError
from tests.chaos.matrix import Setting
from tests.fixtures_stack import ROOT, clean_environment
from tests.local_stack import LocalStack
from tests.small_run import WHOLE_WORKFLOW, own_text

T = TypeVar("T")

NAME = "mmbert-chaos"
DAG = "/dags/mmbert_pretrain"
# One thread everywhere: the undisturbed run is one process, and bytes are promised for one number of threads.
PROFILE = json.dumps({"threads": {"small": 1, "data": 1, "train": 1, "eval": 1}})
# Their effects lie outside the store.
DONE_AGAIN = {"release", "promotion"}
_RUN_SECONDS = 1800.0
_GOES_ON_SECONDS = 180.0
_API_SECONDS = 180.0
_POLL_SECONDS = 0.2


def small_recipe(setting: Setting) -> list[str]:
    """Overrides of `tiny`, the same for all faults."""
    folder = setting.folder.parent / "sentences"
    source = folder / "source"
    if not source.exists():
        folder.mkdir()
        source.write_text(own_text(folder))
    return [*WHOLE_WORKFLOW, f"name={NAME}", f"release.model_name={NAME}", source.read_text()]


def undisturbed(setting: Setting) -> dict[str, str]:
    """What comes of the recipe where nothing is killed; made once for all faults."""
    folder = setting.folder.parent / "undisturbed-workflow"
    if not folder.exists():
        folder.mkdir()
        command = [sys.executable, "-m", "tests.chaos.undisturbed", str(folder), json.dumps(small_recipe(setting))]
        environment = clean_environment() | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        ended = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    return digests(folder / "root")


def digests(root: Path) -> dict[str, str]:
    """What is complete below a folder of artifacts, each digested file read and compared with its manifest."""
    found = {}
    for path in sorted(root.glob("*/*/manifest.json")):
        manifest = json.loads(path.read_text())
        if manifest["kind"] in DONE_AGAIN:
            continue
        for file in manifest["files"]:
            if file["digested"]:
                data = (path.parent / file["key"]).read_bytes()
                assert hashlib.sha256(data).hexdigest() == file["sha256"], f"{path.parent}: {file['path']}"
        found[f"{manifest['kind']}/{manifest['fingerprint']}"] = manifest["content_digest"]
    return found


@dataclass
class Watched:
    """A stack on which DAG runs are disturbed."""

    stack: LocalStack
    runs: list[str] = field(default_factory=list)

    def up(self) -> None:
        ended = self.stack.run("up", MMBERT_PROFILE=PROFILE, MMBERT_START_SECONDS="600")
        assert ended.returncode == 0, ended.stdout + ended.stderr

    def down(self) -> None:
        ended = self.stack.run("down")
        assert ended.returncode == 0, ended.stdout + ended.stderr

    @property
    def airflow(self) -> AirflowApi:
        password = self.stack.credentials()["AIRFLOW_ADMIN_PASSWORD"]
        return AirflowApi(f"http://127.0.0.1:{self.stack.airflow_port}", "admin", password)

    def prepare(self, slots: int) -> None:
        """Wait for the DAGs; no re-evaluation of the model that is made; so many threads of tasks at once."""

        def read() -> bool:
            with contextlib.suppress(NotFoundError):
                self.airflow.get(DAG)
                self.airflow.patch("/dags/mmbert_reevaluate", {"is_paused": True})
                return True
            return False

        _await("Airflow to read the DAGs", lambda: _patiently(read), _API_SECONDS)
        _patiently(lambda: ensure_pool(self.airflow, POOL, slots, ""))

    def trigger(self, overrides: Sequence[str]) -> str:
        """Start a DAG run; its id."""
        run = f"chaos-{len(self.runs)}"
        conf = {"preset": "tiny", "overrides": list(overrides), "run_name": None}

        def start() -> None:
            with contextlib.suppress(UserError):  # it was started, and the answer came too late
                self.airflow.post(f"{DAG}/dagRuns", {"dag_run_id": run, "logical_date": None, "conf": conf})
            self.airflow.get(f"{DAG}/dagRuns/{run}")

        _patiently(start)
        self.runs.append(run)
        return run

    def tasks(self, run: str) -> list[dict[str, Any]]:
        return self.airflow.pages(f"{DAG}/dagRuns/{run}/taskInstances", "task_instances")

    def state(self, run: str) -> str:
        return str(self.airflow.get(f"{DAG}/dagRuns/{run}")["state"])

    def log(self, task: str) -> str:
        """What all attempts of a task have said in all DAG runs."""
        files = self.stack.home.glob(f"airflow/logs/dag_id=mmbert_pretrain/run_id=*/task_id={task}/**/attempt=*.log")
        return "\n".join(path.read_text(errors="replace") for path in sorted(files))

    def components(self, task: str = "") -> list[psutil.Process]:
        """The processes of components, of one task's where it is given, not counting what these started themselves."""
        found = []
        for process in self.stack.processes():
            with contextlib.suppress(psutil.Error):
                if any(a == "--task" and task in ("", b) for a, b in itertools.pairwise(process.cmdline())):
                    found.append(process)
        return found

    def await_task(self, task: str, batch: int = 0) -> None:
        """Until a task's component runs, or has trained that batch; a quick one may have ended already."""

        def there() -> bool:
            said = self.log(task)
            begun = f'"batch {batch}: ' in said if batch else bool(self.components(task))
            return begun or "::group::Post Execute" in said

        _await(f"{task} {batch or ''}", there, _RUN_SECONDS)

    def try_again(self, run: str, task: str) -> None:
        """As a person who takes a running task for lost: mark it failed, and clear it with what comes after it.

        Once the DAG run has failed: a scheduler that is still writing what follows from the failure ends with an error.
        """
        path = f"{DAG}/dagRuns/{run}/taskInstances/{task}"
        _patiently(lambda: self.airflow.patch(path, {"new_state": "failed"}))
        _await(f"{run} to fail", lambda: self.state(run) == "failed", _GOES_ON_SECONDS)
        again = {"dry_run": False, "dag_run_id": run, "task_ids": [task], "only_failed": False}
        again |= {"include_downstream": True, "reset_dag_runs": True}
        _patiently(lambda: self.airflow.post(f"{DAG}/clearTaskInstances", again))

    def keep_up(self) -> None:
        """Start a scheduler that ended, as Airflow's does where a task is cleared while it writes that task's row."""
        if not psutil.pid_exists(self.stack.pid("airflow-scheduler")):
            self.up()

    def await_second(self, task: str) -> None:
        """Until two components of one task train at once."""

        def both() -> bool:
            self.keep_up()
            return len(self.components(task)) > 1 and self.log(task).count('"batch 2: ') > 1

        _await(f"a second {task}", both, _GOES_ON_SECONDS)

    def goes_on(self, kept: Sequence[psutil.Process]) -> float:
        """Seconds from the scheduler's first line, after its imports, to where the DAG run went on.

        That is where a task began, ended or trained a batch; or where the scheduler had settled what its predecessor
        left, while one of the components `kept` had never stopped.
        """
        log = self.stack.home / "logs" / "airflow-scheduler.log"

        def times(pattern: str, text: str) -> list[float]:
            return [_seconds(when) for when in re.findall(pattern, text, re.MULTILINE)]

        def said(what: str) -> list[float]:
            return times(rf"^(\S+) .*{what}", log.read_text(errors="replace"))

        since = _await("the scheduler to start", lambda: said("Starting the scheduler"), _GOES_ON_SECONDS)[0]

        def event() -> float | None:
            tasks = [task for run in self.runs for task in self.tasks(run)]
            found = [_seconds(task[key]) for task in tasks for key in ("start_date", "end_date") if task[key]]
            for name in ("train_pretrain", "train_extend", "train_decay"):
                found += times(r'"timestamp":"([^"]+)"[^\n]*"event":"batch ', self.log(name))
            if any(component.is_running() for component in kept):
                found += said("Marked 1 SchedulerJob")
            return min((when for when in found if when > since), default=None)

        return _await("the DAG run to go on", event, _GOES_ON_SECONDS) - since

    def await_end(self) -> None:
        """Until every DAG run has ended well, by itself."""
        for run in self.runs:
            state = _await(f"{run} to end", partial(self._ended, run), _RUN_SECONDS)
            assert state == "success", [(t["task_id"], t["state"], t["try_number"]) for t in self.tasks(run)]

    def _ended(self, run: str) -> str | None:
        state = self.state(run)
        return state if state in {"success", "failed"} else None

    def check(self, undisturbed: dict[str, str]) -> None:
        """Nothing was lost: the same artifacts, nothing left to do in Airflow, one MLflow run a piece of work."""
        made = digests(self.stack.home / "s3" / "mmbert" / "artifacts")
        differing = {name: made.get(name, "not made") for name in undisturbed if made.get(name) != undisturbed[name]}
        assert not differing, f"not as undisturbed: {differing}; made: {sorted(made)}"
        # The recipe of a re-evaluation that was due.
        assert {name for name in made.keys() - undisturbed.keys() if not name.startswith("recipe/")} == set()
        for run in self.runs:
            left = {(t["task_id"], t["state"]) for t in self.tasks(run) if t["state"] != "success"}
            assert not left, left
        self._check_mlflow()

    def _check_mlflow(self) -> None:
        experiment = self.stack.mlflow(f"experiments/get-by-name?experiment_name=mmbert/{NAME}")["experiment"]
        wanted = {"experiment_ids": [experiment["experiment_id"]], "max_results": 1000}
        runs = self.stack.mlflow("runs/search", wanted)["runs"]
        tags = [{tag["key"]: tag["value"] for tag in run["data"]["tags"]} for run in runs]
        unfinished = [
            (tag.get("mmbert.task"), run["info"]["status"])
            for run, tag in zip(runs, tags, strict=True)
            if run["info"]["status"] != "FINISHED"
        ]
        assert not unfinished, unfinished
        workflows = [tag["mmbert.workflow_run"] for tag in tags if tag["mmbert.role"] == "workflow"]
        assert sorted(workflows) == sorted(self.runs)
        work = Counter(
            (tag["mmbert.workflow_run"], tag["mmbert.task"], tag["mmbert.fingerprint"])
            for tag in tags
            if tag["mmbert.role"] == "component"
        )
        assert max(work.values()) == 1, [item for item, count in work.items() if count > 1]
        tasks = {
            (run, t["task_id"]) for run in self.runs for t in self.tasks(run) if t["operator"] == "ComponentOperator"
        }
        assert {(run, task) for run, task, _ in work} == tasks


@contextlib.contextmanager
def watched(home: Path) -> Iterator[Watched]:
    """A stack that runs; afterwards nothing of it does, and that is checked where all went well."""
    home.mkdir()
    found = Watched(LocalStack.new(home))
    try:
        found.up()
        yield found
        found.down()
        left = found.stack.processes()
        assert not left, [(p.pid, p.cmdline()) for p in left]
    finally:
        found.stack.run("down")


def kill_service(stack: LocalStack, name: str, group: bool = True) -> None:
    """SIGKILL from outside; for the scheduler, without `group`, its workers and their tasks live on."""
    pid = stack.pid(name)
    (os.killpg if group else os.kill)(pid, signal.SIGKILL)
    _await(
        f"{name} to be gone",
        lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE,
        20,
    )


def kill_everything(stack: LocalStack) -> None:
    """As a power cut: services, tasks and components at once."""
    for process in stack.processes():
        with contextlib.suppress(psutil.Error):
            process.kill()


def _await(what: str, found: Callable[[], T | None], seconds: float) -> T:
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(_POLL_SECONDS)
    return value


def _patiently(action: Callable[[], T]) -> T:
    """On a busy machine the API server's answer may come too late. The action may be done twice."""
    deadline = time.monotonic() + _API_SECONDS
    while True:
        try:
            return action()
        except InfrastructureError:
            if time.monotonic() > deadline:
                raise


def _seconds(text: str) -> float:
    return datetime.datetime.fromisoformat(text).timestamp()
