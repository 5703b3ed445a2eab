"""A real S3 and MLflow for all trials of processes, and a place of its own there for each."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from mmbert import storage, tracking
from mmbert.tracking.api import Api
from mmbert.tracking.election import search
from tests import small_run
from tests.chaos.data_run import Step, fresh_machine, undisturbed
from tests.chaos.matrix import Setting
from tests.chaos.processes import run_to_end
from tests.fixtures_stack import S3, MlflowServer, mlflow_running, s3_running

_PARALLEL = ("curate", "tokenize")


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

    def environment(self, step: Step) -> dict[str, str]:
        (self.folder / "tmp").mkdir(parents=True, exist_ok=True)
        return small_run.environment(
            self.folder,
            **self.s3.environment,
            **mlflow_environment(self.mlflow),
            MMBERT_WORKFLOW_RUN=self.name,
            TMPDIR=str(self.folder / "tmp"),
            OMP_NUM_THREADS="2" if step.component in _PARALLEL else "1",
        )

    def command(self, step: Step) -> list[str]:
        return step.command(self.root)

    def check(self, step: Step) -> None:
        """Raises where the artifact is another one, something is left here, or MLflow's runs are not one, finished."""
        with fresh_machine(self.folder, **self.environment(step)):
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


@dataclass(frozen=True)
class Scene:
    """The undisturbed run's steps with their inputs in S3, and the servers."""

    folder: Path
    s3: S3
    mlflow: MlflowServer
    steps: dict[str, Step]
    _seconds: dict[str, float] = field(default_factory=dict)

    def place(self, name: str) -> Place:
        return Place(self.s3, self.mlflow, self.folder / name, name)

    def seconds(self, component: str) -> float:
        """Of a step that nothing disturbs, in a process."""
        if component not in self._seconds:
            step, place = self.steps[component], self.place(f"undisturbed-{component}")
            env = place.environment(step)
            began = time.monotonic()
            run_to_end(place.command(step), env, place.folder / "log")
            self._seconds[component] = time.monotonic() - began
            place.check(step)
        return self._seconds[component]


def make_scene(setting: Setting) -> Scene:
    """One for all faults."""
    folder = setting.shared / "scene"
    if folder not in _scenes:
        for server in ("s3", "mlflow"):
            (folder / server).mkdir(parents=True)
        s3 = setting.lasting.enter_context(s3_running(folder / "s3"))
        mlflow = setting.lasting.enter_context(mlflow_running(folder / "mlflow", s3))
        s3.make_bucket("data")
        _scenes[folder] = Scene(folder, s3, mlflow, _on_store(setting, s3))
    return _scenes[folder]


_scenes: dict[Path, Scene] = {}


def _on_store(setting: Setting, s3: S3) -> dict[str, Step]:
    """The undisturbed run's steps with their inputs in S3."""
    steps = undisturbed(setting.shared)
    local, root = str(setting.shared / "undisturbed" / "root"), s3.make_bucket("inputs")
    with fresh_machine(setting.folder, **s3.environment):
        for path in storage.list_files(local):
            if not path.startswith("work/"):
                storage.upload(storage.join(root, path), Path(local, path))
    return {name: step.moved(local, root) for name, step in steps.items()}
