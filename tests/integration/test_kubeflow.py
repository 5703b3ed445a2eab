"""The workflows as KFP pipelines, compiled and sent to a server; kfp's own library, no container."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from components import workflows
from components.code import code_digest, commit
from components.contract import component_names
from components.recipe.component import fan_out
from mmbert import tracking
from mmbert.recipe import load_recipe
from tests.fixtures_stack import ROOT, MlflowServer, clean_environment
from tests.integration.test_dag import orchestrator
from tests.kubeflow_server import KubeflowServer

SECRET_VALUE = "canary-2f9c1e"
PROFILE = """
threads: {small: 1, data: 1, train: 3, train.decay: 2, eval: 1}
processes: {train: 2}
memory: {train: 4}
"""

LOAD_COMPONENTS = """
import json, sys
from kfp import components
found = {}
for path in sys.argv[1:]:
    loaded = components.load_component_from_file(path).component_spec
    found[path] = {
        "inputs": {name: i.type for name, i in loaded.inputs.items()},
        "outputs": {name: o.type for name, o in loaded.outputs.items()},
    }
print(json.dumps(found))
"""


def mmbert(*words: str, **variables: str) -> tuple[int, str]:
    ended = subprocess.run(
        [str(ROOT / ".venv" / "bin" / "mmbert"), "kfp", *words],
        env=clean_environment() | variables, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return ended.returncode, ended.stdout + ended.stderr


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any]]:
    """By workflow: its compiled pipeline, and what of it is Kubernetes' own."""
    folder = tmp_path_factory.mktemp("kfp")
    (folder / "own.yaml").write_text(PROFILE, "utf-8")
    images = ("--image-prefix=registry.example/team/mmbert-", "--image-tag=v7", "--image=eval=e@sha256:abc")
    variables = {"AWS_SECRET_ACCESS_KEY": SECRET_VALUE, "MMBERT_PROFILE": str(folder / "own.yaml")}
    code, said = mmbert("compile", "--out", str(folder), *images, **variables)
    assert code == 0, said
    assert SECRET_VALUE not in "".join(path.read_text() for path in folder.iterdir())
    return {name: _documents(folder / f"mmbert_{name}.yaml") for name in workflows.WORKFLOWS}


def _documents(path: Path) -> tuple[Any, Any]:
    pipeline, platform = yaml.load_all(path.read_text("utf-8"), yaml.CSafeLoader)
    return pipeline, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


class Graph:
    """A runner that writes down the names of who needs whose result, lists laid out as the recipe's."""

    def __init__(self, **lists: list[str]) -> None:
        self.lists = fan_out(load_recipe("tiny")) | lists
        self.upstream: dict[str, set[str]] = {}

    def run(self, component: str, *, task: str = "", **arguments: Any) -> Any:
        return self._add(task or component, "", arguments)

    def map(self, component: str, *, over: dict[str, Any], task: str = "", **arguments: Any) -> Any:
        made = []
        for items in itertools.product(*over.values()):
            label = ", ".join(filter(None, (item[1] if isinstance(item, tuple) else item for item in items)))
            made.append(self._add(task or component, label, {**arguments, **dict(zip(over, items, strict=True))}))
        return made

    def output(self, handle: Any, name: str) -> Any:
        return self.lists.get(name, [handle] if name == "models" else handle)

    def _add(self, task: str, label: str, arguments: dict[str, Any]) -> tuple[str, str]:
        name = f"{task} {label}".strip()
        self.upstream[name] = {one[0] for value in arguments.values() for one in _handles(value)}
        return name, label


def _handles(value: Any) -> list[tuple[str, str]]:
    if isinstance(value, tuple):
        return [value]
    return [one for item in value for one in _handles(item)] if isinstance(value, list) else []


def edges(tasks: dict[str, Any]) -> dict[str, set[str]]:
    """By name of each task: those whose results it gets."""
    return {
        name: {
            one["taskOutputParameter"]["producerTask"]
            for one in task["inputs"]["parameters"].values()
            if "taskOutputParameter" in one
        }
        for name, task in tasks.items()
    }


def as_kfp_names(name: str) -> str:
    return re.sub(r"\W|_", "-", name)


@pytest.mark.parametrize("name", ["pretrain", "reevaluate", "add_languages"])
def test_the_graph_is_the_workflows(compiled: dict[str, Any], name: str) -> None:
    variants = {"variants": ["new-quarter", "new-half", "new-three-quarters"]} if name == "add_languages" else {}
    graph = Graph(**variants)
    workflows.WORKFLOWS[name](graph, "tiny", [], **({"model": "a/model"} if name == "add_languages" else {}))
    pipeline, _ = compiled[name]
    tasks = pipeline["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    assert edges(tasks) == {
        as_kfp_names(task): {as_kfp_names(one) for one in upstream} for task, upstream in graph.upstream.items()
    }
    # What servers of different versions do with loops, with the status of a graph and with other display names differs.
    for part in (pipeline["root"], *pipeline["components"].values()):
        for task, made in part.get("dag", {}).get("tasks", {}).items():
            assert made["taskInfo"]["name"] == task
            assert "parameterIterator" not in made
    assert "taskFinalStatus" not in json.dumps(pipeline)


def test_models_that_a_run_finds_are_evaluated_by_one_task(compiled: dict[str, Any]) -> None:
    pipeline, _ = compiled["reevaluate"]
    part = pipeline["components"]["comp-evaluate-demo"]
    assert part["inputDefinitions"]["parameters"]["model_list"]["parameterType"] == "LIST"
    assert part["outputDefinitions"]["parameters"]["uri"]["parameterType"] == "LIST"
    words = pipeline["deploymentSpec"]["executors"]["exec-evaluate-demo"]["container"]["args"]
    assert words[words.index("--model") + 1] == "{{$.inputs.parameters['model_list']}}"
    assert words[words.index("--each") + 1] == "model"


@pytest.mark.parametrize(("name", "last"), [("pretrain", ["promote", "data_report"]), ("reevaluate", ["trend"])])
def test_the_end_asks_for_the_last_tasks(compiled: dict[str, Any], name: str, last: list[str]) -> None:
    pipeline, _ = compiled[name]
    words = pipeline["deploymentSpec"]["executors"]["exec-end"]["container"]["args"]
    assert [words[i + 1] for i, word in enumerate(words) if word == "--last"] == last


def test_each_task_is_given_the_runs_id_as_a_server_fills_it_in(compiled: dict[str, Any]) -> None:
    for pipeline, _ in compiled.values():
        tasks = [
            task
            for part in (pipeline["root"], *pipeline["components"].values())
            for task in part.get("dag", {}).get("tasks", {}).values()
            if "dag" not in pipeline["components"][task["componentRef"]["name"]]
        ]
        assert len(tasks) > 5
        for task in tasks:
            given = task["inputs"]["parameters"]["workflow_run"]
            assert given == {"runtimeValue": {"constant": "{{$.pipeline_job_uuid}}"}}
        for executor in pipeline["deploymentSpec"]["executors"].values():
            words = executor["container"]["args"]
            assert words[words.index("--workflow-run") + 1] == "{{$.inputs.parameters['workflow_run']}}"
            assert "pipeline_job" not in json.dumps(executor)


def test_uris_are_text_parameters_and_lists_are_lists(compiled: dict[str, Any]) -> None:
    pipeline, _ = compiled["reevaluate"]
    select = pipeline["components"]["comp-select"]["outputDefinitions"]["parameters"]
    kinds = {name: one["parameterType"] for name, one in select.items()}
    assert kinds == {"uri": "STRING", "models": "LIST", "documents": "LIST", "result": "STRING"}
    for pipeline, _ in compiled.values():
        for part in pipeline["components"].values():
            for way in ("inputDefinitions", "outputDefinitions"):
                assert "artifacts" not in part.get(way, {})


def test_every_container_has_its_image_its_run_and_no_cache(compiled: dict[str, Any]) -> None:
    pipeline, _ = compiled["pretrain"]
    executors = {n: e["container"] for n, e in pipeline["deploymentSpec"]["executors"].items()}
    assert executors["exec-train-extend"]["image"] == "registry.example/team/mmbert-train:v7"
    assert executors["exec-report"]["image"] == "e@sha256:abc"
    for name, container in executors.items():
        assert name == "exec-end" or container["resources"]["resourceCpuLimit"]
    train = {one["name"]: one["value"] for one in executors["exec-train-decay-decay-all"]["env"]}
    # The profile is a file of this machine: what it says goes along.
    assert "MMBERT_PROFILE" not in train
    assert (train["OMP_NUM_THREADS"], train["MMBERT_PROCESSES"]) == ("2", "2")
    resources = executors["exec-train-decay-decay-all"]["resources"]
    assert (resources["resourceCpuLimit"], resources["resourceMemoryLimit"]) == ("4", "4096Mi")
    tasks = pipeline["components"]["comp-exit-handler-1"]["dag"]["tasks"].values()
    assert not any(task["cachingOptions"].get("enableCache") for task in tasks)
    assert all(task["retryPolicy"]["maxRetryCount"] == 2 for task in tasks)


def test_containers_are_told_whose_code_they_have_to_be(compiled: dict[str, Any]) -> None:
    for pipeline, _ in compiled.values():
        for executor in pipeline["deploymentSpec"]["executors"].values():
            given = {one["name"]: one["value"] for one in executor["container"]["env"]}
            assert given["MMBERT_CODE"] == f"{code_digest()} {commit()}"


def test_loaders_have_shared_memory_and_all_a_folder_to_write(compiled: dict[str, Any]) -> None:
    _, pretrain = compiled["pretrain"]
    _, reevaluate = compiled["reevaluate"]
    work = {"volumeName": "work", "mountPath": "/work"}
    shared = {"volumeName": "shared-memory", "mountPath": "/dev/shm", "medium": "Memory"}  # noqa: S108
    for name in ("exec-train-pretrain", "exec-evaluate-untrained"):
        assert pretrain[name]["emptyDirMounts"] == [work, shared]
    assert reevaluate["exec-evaluate-demo"]["emptyDirMounts"] == [work, shared]
    assert reevaluate["exec-select"]["emptyDirMounts"] == reevaluate["exec-end"]["emptyDirMounts"] == [work]


def test_credentials_come_from_secrets(compiled: dict[str, Any]) -> None:
    for pipeline, platform in compiled.values():
        assert platform.keys() == pipeline["deploymentSpec"]["executors"].keys()
        for one in platform.values():
            (secret,), (settings,) = one["secretAsEnv"], one["configMapAsEnv"]
            assert (secret["secretName"], settings["configMapName"]) == ("mmbert-secrets", "mmbert-settings")
            assert {"AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD"} <= {e["envVar"] for e in secret["keyToEnv"]}
            assert "MLFLOW_TRACKING_URI" in {e["envVar"] for e in settings["keyToEnv"]}


CLUSTER = """
threads: {small: 1, data: 1, train: 3, train.decay: 2, eval: 1}
processes: {train: 2}
memory: {train: 4}
kubernetes:
  namespace: mmbert
  service_account: mmbert-component
  training: trainer
  image_pull_secret: registry
  classes:
    small: {scratch: 5}
    data: {scratch: 50, scratch_class: fast, queue: mmbert-cpu}
    train: {nodes: 2, shared_memory: 8}
    train.decay:
      nodes: 1
      gpus: 4
      queue: mmbert-h100
      node_selector: {pool: h100}
      tolerations: [{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}]
      deadline_hours: 2
"""


TRAIN = "r/train@sha256:" + "0123456789abcdef" * 4


@pytest.fixture(scope="module")
def placed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """The pipeline `pretrain` compiled with a profile that speaks of a cluster."""
    folder = tmp_path_factory.mktemp("placed")
    (folder / "own.yaml").write_text(CLUSTER, "utf-8")
    images = (f"--image=train={TRAIN}", "--image=orchestrator=r/o:v7", "--image-tag=v7")
    code, said = mmbert("compile", "pretrain", "--out", str(folder), *images, MMBERT_PROFILE=str(folder / "own.yaml"))
    assert code == 0, said
    return _documents(folder / "mmbert_pretrain.yaml")


def test_placement_comes_from_the_profile(placed: tuple[Any, Any]) -> None:
    pipeline, platform = placed
    train = platform["exec-train-decay-decay-all"]
    assert train["nodeSelector"] == {"labels": {"pool": "h100"}}
    assert train["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert train["podMetadata"] == {"labels": {"kueue.x-k8s.io/queue-name": "mmbert-h100"}}
    assert train["imagePullSecret"] == [{"secretName": "registry"}]
    assert train["activeDeadlineSeconds"] == "7200"
    work, shared = train["emptyDirMounts"]
    assert (work["sizeLimit"], shared["sizeLimit"]) == ("20Gi", "8Gi")
    (volume,) = platform["exec-tokenizer"]["genericEphemeralVolume"]
    assert (volume["mountPath"], volume["storageClassName"], volume["size"]) == ("/work", "fast", "50Gi")
    assert "nodeSelector" not in platform["exec-recipe"]
    container = pipeline["deploymentSpec"]["executors"]["exec-train-decay-decay-all"]["container"]
    assert container["resources"]["accelerator"]["resourceCount"] == "4"


def test_training_on_several_nodes_is_launched_by_its_step(placed: tuple[Any, Any]) -> None:
    pipeline, platform = placed
    executors = {n: e["container"] for n, e in pipeline["deploymentSpec"]["executors"].items()}
    step, alone = executors["exec-train-pretrain"], executors["exec-train-decay-decay-all"]
    assert step["args"][-2:] == ["--launcher", "kubernetes"]
    assert "--launcher" not in alone["args"]
    assert (step["image"], alone["image"]) == ("r/o:v7", TRAIN)
    given = {one["name"]: one["value"] for one in step["env"]}
    assert given["MMBERT_IMAGE_TRAIN"] == TRAIN
    assert given["MMBERT_CODE"] == f"{code_digest()} {commit()}"
    assert yaml.safe_load(given["MMBERT_PROFILE"]) == yaml.safe_load(CLUSTER)
    assert step["resources"]["resourceCpuLimit"] == "1"
    assert "accelerator" not in step["resources"]
    assert platform["exec-train-pretrain"]["emptyDirMounts"][0]["sizeLimit"] == "5Gi"
    assert {"secretAsEnv", "configMapAsEnv"} <= platform["exec-train-pretrain"].keys()


def test_a_launched_image_needs_its_digest(tmp_path: Path) -> None:
    code, said = mmbert("compile", "pretrain", "--out", str(tmp_path), MMBERT_PROFILE="dev")
    assert code == 2
    assert "image mmbert-train:latest has no digest" in said
    assert "--image train=REGISTRY/mmbert-train@sha256:..." in said


@pytest.mark.slow
def test_the_largest_preset_is_far_from_kubernetes_limit(tmp_path: Path) -> None:
    code, said = mmbert("compile", "pretrain", "--preset=base", "--out", str(tmp_path), MMBERT_PROFILE="gpu")
    assert code == 0, said
    pipeline, platform = _documents(tmp_path / "mmbert_pretrain.yaml")
    assert len(json.dumps([pipeline, platform])) < 700_000
    tasks = pipeline["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    assert len([name for name in tasks if name.startswith("curate")]) == 64
    train = pipeline["deploymentSpec"]["executors"]["exec-train-extend"]["container"]["resources"]
    assert train["accelerator"]["resourceType"] == "nvidia.com/gpu"
    given = pipeline["deploymentSpec"]["executors"]["exec-train-extend"]["container"]["env"]
    assert {"name": "MMBERT_PROCESSES", "value": "gpus"} in given


def test_kfp_loads_every_component_yaml(tmp_path: Path) -> None:
    paths = [str(ROOT / "components" / name / "component.yaml") for name in component_names()]
    found = orchestrator(LOAD_COMPONENTS, *paths, home=tmp_path)
    assert list(found) == paths
    for path, one in found.items():
        assert one["inputs"]["root"] == "String", path
        assert one["outputs"]["uri"] == "String", path
    merge, select = (found[str(ROOT / "components" / name / "component.yaml")] for name in ("merge", "select"))
    assert merge["inputs"]["checkpoints"] == "List"
    assert select["outputs"]["models"] == "List"


def test_airflow_does_not_read_the_kfp_pipelines(tmp_path: Path) -> None:
    script = (
        "import json, sys; from airflow.utils.file import list_py_file_paths;"
        "print(json.dumps(sorted(list_py_file_paths(sys.argv[1], safe_mode=False))))"
    )
    found = orchestrator(script, str(ROOT / "dags"), home=tmp_path)
    names = ["mmbert_add_languages.py", "mmbert_pretrain.py", "mmbert_reevaluate.py"]
    assert [Path(path).name for path in found] == names


@pytest.fixture
def server() -> Iterator[KubeflowServer]:
    server = KubeflowServer()
    yield server
    server.stop()


def test_a_run_is_submitted_with_its_arguments(server: KubeflowServer) -> None:
    words = ("pretrain", "--endpoint", server.url, "--root=s3://b/r", "--set=seed=7", "--run-name=first")
    words += ("--service-account=trainer",)
    code, said = mmbert("submit", *words, MMBERT_KFP_TOKEN="the-token")
    assert code == 0, said
    assert said.splitlines()[-1] == f"{server.url}/#/runs/details/the-runs"
    body, token = server.made("runs")
    assert token == "Bearer the-token"
    assert (body["display_name"], body["experiment_id"]) == ("first", "the-experiments")
    assert body["service_account"] == "trainer"
    assert body["runtime_config"]["parameters"] == {"root": "s3://b/r"}
    assert "seed=7" in json.dumps(body["pipeline_spec"])


def test_reevaluation_becomes_a_recurring_run_without_catching_up(server: KubeflowServer) -> None:
    words = ("reevaluate", "--endpoint", server.url, "--root=s3://b/r", "--schedule=30 3 * * 1", "--model=@candidate")
    code, said = mmbert("submit", *words)
    assert code == 0, said
    body, _ = server.made("recurringruns")
    assert body["trigger"] == {"cron_schedule": {"cron": "0 30 3 * * 1"}}
    assert (body["no_catchup"], body["max_concurrency"], body["mode"]) == (True, 1, "ENABLE")
    assert body["runtime_config"]["parameters"] == {"root": "s3://b/r", "model": "@candidate"}


@pytest.mark.parametrize(
    ("refused", "status", "expected"),
    [
        ("healthz", 401, 2),
        ("healthz", 503, 3),
        ("experiments", 403, 2),
        ("runs", 400, 2),
        ("runs", 503, 3),
    ],
)
def test_a_refusal_is_told_with_its_reason(server: KubeflowServer, refused: str, status: int, expected: int) -> None:
    server.refuse, server.refused = status, {refused}
    code, said = mmbert("submit", "reevaluate", "--endpoint", server.url, "--root=s3://b/r")
    assert code == expected
    assert f"{server.url}: Kubeflow Pipelines answered {status}" in said
    assert "the server says no" in said
    assert ("put a token into MMBERT_KFP_TOKEN" in said) == (status in (401, 403))
    assert "Traceback" not in said
    assert server.asked <= 5


def test_a_login_page_is_no_server(server: KubeflowServer) -> None:
    server.login_page = True
    code, said = mmbert("submit", "reevaluate", "--endpoint", server.url, "--root=s3://b/r")
    assert code == 2
    assert "no Kubeflow Pipelines server but a page, a login perhaps" in said


WRONG = {
    ("submit", "pretrain", "--endpoint=http://127.0.0.1:9", "--root=s3://b/r"): (
        3, "http://127.0.0.1:9: no Kubeflow Pipelines server answers there"),
    ("submit", "pretrain", "--endpoint=http://127.0.0.1:9", "--root=out"): (
        2, "--root out: containers see no folder of this machine; give an s3:// prefix"),
    ("submit", "reevaluate", "--endpoint=http://127.0.0.1:9", "--root=s3://b/r", "--schedule=often"): (
        2, "--schedule 'often': give five cron fields"),
    ("submit", "pretrain", "--endpoint=http://127.0.0.1:9", "--root=s3://b/r", "--model=7"): (
        2, "the workflow 'pretrain' takes no model"),
    ("compile", "--out=never-made", "--preset=mine.yaml"): (2, "--preset mine.yaml: no preset"),
    ("compile", "--out=never-made", "--set=phases.decay.tokns=1M"): (2, "phases.decay.tokns = '1M': unknown key"),
    ("compile", "--out=never-made", "--image=gpu=x"): (2, "--image gpu=x: it is data=IMAGE"),
    ("run", "pretrain", "--root=s3://b/r"): (3, "no Docker API answers at unix:///nowhere.sock"),
    ("end", "--experiment=e", "--root=s3://b/r", "--last=t", "--workflow-run={{$.pipeline_job_uuid}}"): (
        2, "--workflow-run {{$.pipeline_job_uuid}}: the Kubeflow Pipelines server did not fill this in"),
}  # fmt: skip

COMMANDS = """
import contextlib, functools, io, json, sys
from components.cli import _exit_code, cli
found = []
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = _exit_code(functools.partial(cli, ["kfp", *words], standalone_mode=False))
    found.append((code, said.getvalue()))
print(json.dumps(found))
"""


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    found = orchestrator(COMMANDS, json.dumps(list(WRONG)), home=tmp_path, DOCKER_HOST="unix:///nowhere.sock")
    for (words, (code, message)), (ended, said) in zip(WRONG.items(), found, strict=True):
        assert (ended, message in said, "Traceback" in said) == (code, True, False), (words, said)
    assert not (ROOT / "never-made").exists()


def test_without_kfp_it_says_what_to_install(tmp_path: Path) -> None:
    """A folder of that name, as `--out kfp` makes one, is not the package."""
    (tmp_path / "kfp").mkdir()
    python = ROOT / ".venv" / "bin" / "python"
    for path, message in ((tmp_path / "python", "there is no"), (python, "the package kfp is not installed there")):
        variables = {"MMBERT_ORCHESTRATOR_PYTHON": str(path), "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
        code, said = mmbert("compile", "--out", str(tmp_path), **variables)
        assert code == 2
        assert message in said
        assert "mmbert-pipeline[orchestrator]" in said


def test_the_last_step_ends_the_workflows_run_in_mlflow(
    mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
    monkeypatch.setenv("MMBERT_CACHE", str(tmp_path))
    mlflow = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_TRACKING_")}
    name = "mmbert/kfp-end"
    expected = {"both": "FINISHED", "found": "FINISHED", "one failed": "FAILED", "one is missing": "FAILED"}
    for workflow_run in expected:
        tracker = tracking.connect(name, workflow_run)
        tracker.component_run(task="promote", component="promote", fingerprint="1", tags={}).finish("FINISHED")
        if workflow_run == "found":
            tracker.link_reused("data_report", "2", "", "s3://b/data_report/2")
        elif workflow_run != "one is missing":
            ended: tracking.Status = "FAILED" if workflow_run == "one failed" else "FINISHED"
            tracker.component_run(task="data_report", component="data_report", fingerprint="2", tags={}).finish(ended)
        words = (f"--root={tmp_path}", f"--workflow-run={workflow_run}", "--last=promote", "--last=data_report")
        code, said = mmbert("end", f"--experiment={name}", *words, **mlflow)
        assert code == 0, said
    client = MlflowClient(mlflow_server.uri)
    experiment = client.get_experiment_by_name(name)
    runs = client.search_runs([experiment.experiment_id], "tags.`mmbert.role` = 'workflow'")
    assert {run.info.run_name: run.info.status for run in runs} == expected
