"""Data components as processes, on a real S3 and MLflow, killed from outside at random moments."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmbert import storage, tracking
from mmbert.tracking.api import Api
from mmbert.tracking.election import search
from tests import small_run
from tests.chaos.data_run import Step, fresh_machine, undisturbed
from tests.chaos.matrix import Fault, Setting, Trial
from tests.chaos.processes import run_to_end, started
from tests.fixtures_stack import S3, MlflowServer, mlflow_running, s3_running
from tests.killing import mapped_shared_memory

_PARALLEL = ("curate", "tokenize")
_FULL = {"recipe": 2, "curate": 8, "tokenizer": 4, "tokenize": 8, "mixture": 2, "data_report": 2}
_QUICK = {"curate": 1, "tokenize": 1}
_FULL_WORKERS = {"curate": 3, "tokenize": 3}
_QUICK_WORKERS = {"curate": 1}
_TRIES = 4


@dataclass(frozen=True)
class Place:
    """One trial's own root, machine and MLflow run."""

    s3: S3
    mlflow: MlflowServer
    folder: Path
    name: str

    @property
    def root(self) -> str:
        return f"s3://data/{self.name}"

    def environment(self, threads: int) -> dict[str, str]:
        (self.folder / "tmp").mkdir(parents=True, exist_ok=True)
        return small_run.environment(
            self.folder,
            **self.s3.environment,
            **mlflow_environment(self.mlflow),
            MMBERT_WORKFLOW_RUN=self.name,
            TMPDIR=str(self.folder / "tmp"),
            OMP_NUM_THREADS=str(threads),
        )

    def check(self, step: Step) -> None:
        """Raises where the artifact is another one, something is left here, or MLflow's runs are not one, finished."""
        with fresh_machine(self.folder, **self.environment(1)):
            step.check_same(self.root)
            api = Api(self.mlflow.uri)
            experiment = tracking.connect("mmbert/mmbert-tiny")._experiment_id(api)
            fingerprint = step.artifact.manifest.fingerprint
            runs = search(api, experiment, {"mmbert.workflow_run": self.name, "mmbert.fingerprint": fingerprint})
        assert [run.status for run in runs] == ["FINISHED"], f"runs of {self.name} in MLflow: {runs}"
        left = [path for place in ("tmp", "cache/mlflow") for path in (self.folder / place).glob("*")]
        assert not left, f"left behind: {left}"


def mlflow_environment(server: MlflowServer) -> dict[str, str]:
    login = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": server.password}
    return {"MLFLOW_TRACKING_URI": server.uri, **login}


def killed(step: Step, place: Place, moment: float, worker: bool) -> float | None:
    """Kill a step's process, or a worker of it, after so many seconds, and run it again. The seconds of both; None
    where it was done before."""
    env, log = place.environment(_threads(step)), place.folder / "log"
    shared: list[str] = []
    began = time.monotonic()
    with started(step.command(place.root), env, log) as attempt:
        if not attempt.alive_after(moment):
            return None
        if worker:
            while not (workers := attempt.workers()):
                if not attempt.alive_after(0.01):
                    return None
            workers[-1].kill()
            assert attempt.end() == 3, attempt.said
            attempt.check_gone()
        else:
            shared = [line.split()[-1] for process in attempt.family() for line in mapped_shared_memory(process)]
            attempt.kill()
    with fresh_machine(place.folder, **env):
        step.check_readable(place.root)
    run_to_end(step.command(place.root), env, log)
    seconds = time.monotonic() - began
    place.check(step)
    assert not [path for path in shared if Path(path).exists()], f"shared memory is left: {shared}"
    return seconds


def _threads(step: Step) -> int:
    return 2 if step.component in _PARALLEL else 1


@dataclass(frozen=True, eq=False)
class _Scene:
    folder: Path
    s3: S3
    mlflow: MlflowServer
    steps: dict[str, Step]

    def place(self, name: str) -> Place:
        return Place(self.s3, self.mlflow, self.folder / name, name)

    @functools.cache  # noqa: B019 - as long as its fault's trials
    def seconds(self, component: str) -> float:
        """Of a step that nothing disturbs."""
        step, place = self.steps[component], self.place(f"undisturbed-{component}")
        env = place.environment(_threads(step))
        began = time.monotonic()
        run_to_end(step.command(place.root), env, place.folder / "log")
        seconds = time.monotonic() - began
        place.check(step)
        return seconds

    def attempt(self, component: str, share: float, worker: bool, name: str) -> float:
        moment = share * self.seconds(component)
        for number in range(_TRIES):
            # The machine is not always as slow as when the undisturbed run was measured.
            seconds = killed(self.steps[component], self.place(f"{name}-{number}"), moment / 2**number, worker)
            if seconds is not None:
                return max(0.0, seconds - self.seconds(component))
        raise AssertionError(f"{component} could not be caught at work")


def on_store(setting: Setting, s3: S3) -> dict[str, Step]:
    """The undisturbed run's steps with their inputs in S3."""
    steps = undisturbed(setting.shared)
    local, root = str(setting.shared / "undisturbed" / "root"), s3.make_bucket("inputs")
    with fresh_machine(setting.folder, **s3.environment):
        for path in storage.list_files(local):
            if not path.startswith("work/"):
                storage.upload(storage.join(root, path), Path(local, path))
    return {name: step.moved(local, root) for name, step in steps.items()}


def _trials(setting: Setting) -> Iterator[Trial]:
    for server in ("s3", "mlflow"):
        (setting.folder / server).mkdir()
    s3 = setting.stack.enter_context(s3_running(setting.folder / "s3"))
    mlflow = setting.stack.enter_context(mlflow_running(setting.folder / "mlflow", s3))
    s3.make_bucket("data")
    scene = _Scene(setting.folder, s3, mlflow, on_store(setting, s3))
    for worker, kills in (
        (False, _QUICK if setting.quick else _FULL),
        (True, _QUICK_WORKERS if setting.quick else _FULL_WORKERS),
    ):
        for component, times in kills.items():
            name = f"{component}-worker" if worker else component
            chance = setting.random(f"killed/{name}")
            for number in range(times):
                share = chance.uniform(0.02, 0.9)
                attempt = functools.partial(scene.attempt, component, share, worker, f"{name}-{number}")
                yield Trial(f"killed/{name}/{number}", attempt)


KILLED = Fault("killed", "data component, or a worker of it, killed from outside", _trials)
