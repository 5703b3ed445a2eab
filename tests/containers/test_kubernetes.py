"""Components in pods: what they make is what the process launcher makes, on one node and on two.

Without MMBERT_KUBECONFIG the cluster is the stand-in, whose pods podman plays. With it the same runs on that cluster:
images from MMBERT_IMAGE_DATA, MMBERT_IMAGE_TRAIN and MMBERT_IMAGE_EVAL (by digest), artifacts below MMBERT_TEST_ROOT
(s3://, which this machine and the pods both reach), in the namespace MMBERT_TEST_NAMESPACE (`mmbert`), where the secret
mmbert-secrets and the config map mmbert-settings hold what pods need. docs/kubernetes.md.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from components import steps
from components.contract import get_component
from mmbert import artifacts, storage
from mmbert.errors import InfrastructureError
from tests.containers.conftest import Images
from tests.containers.test_workflow import OF_A_REGISTRY, SMALL, Ran
from tests.fixtures_stack import ROOT, S3
from tests.kubernetes.cluster import Cluster
from tests.small_run import OVERRIDES, environment, own_text

pytestmark = pytest.mark.containers

KUBECONFIG = os.environ.get("MMBERT_KUBECONFIG")
TARGETS = ("data", "train", "eval")
RUNTIME = ROOT / "infra" / "kubernetes" / "base" / "training-runtime.yaml"
PRIORITIES = ROOT / "infra" / "kubernetes" / "base" / "priorities.yaml"
SHORT = ("model.attention_output_dropout=0", "phases.pretrain.tokens=12k", "training.checkpoint_tokens=12k")
PROFILE = """
threads: {small: 1, data: 1, train: 1, eval: 1}
processes: {train: PROCESSES}
kubernetes:
  namespace: NAMESPACE
  service_account: mmbert-component
  training: TRAINING
  pending_minutes: 10
  classes:
    train: {nodes: NODES, scratch: 4, shared_memory: 1, grace_seconds: 20}
    small: {scratch: 4, shared_memory: 1}
    data: {scratch: 4, shared_memory: 1, grace_seconds: 5, node_selector: {}}
    eval: {scratch: 4, shared_memory: 1}
"""


@dataclass(frozen=True)
class Place:
    """A cluster, a store that its pods and this machine reach, and what reaches both."""

    folder: Path
    root: str
    environment: dict[str, str]
    source: str
    """The recipe's override that names the text, in the store."""
    stand_in: Cluster | None

    def profile(self, training: str = "job", nodes: int = 1, processes: int = 1) -> str:
        path = self.folder / f"{training}-{nodes}-{processes}.yaml"
        namespace = os.environ.get("MMBERT_TEST_NAMESPACE", "mmbert")
        text = PROFILE.replace("TRAINING", training).replace("NODES", str(nodes)).replace("NAMESPACE", namespace)
        path.write_text(text.replace("PROCESSES", str(processes)), "utf-8")
        return str(path)


def stand_in_images(images: Images) -> dict[str, str]:
    """The images that are here, by digest."""
    found = {}
    for target in TARGETS:
        line = ["podman", "image", "inspect", "--format", "{{.Digest}}", images.name(target)]
        shown = subprocess.run(line, capture_output=True, text=True, check=True)
        name = images.name(target).rpartition(":")[0]
        prefix = "" if "/" in name else "localhost/"
        found[f"MMBERT_IMAGE_{target.upper()}"] = f"{prefix}{name}@{shown.stdout.strip()}"
    return found


def stand_in(s3: S3) -> Cluster:
    from tests.kubernetes.cluster.nodes.podman import Podman

    cluster = Cluster(nodes=2, player=Podman())
    secret = {name: s3.environment[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    settings = {name: s3.environment[name] for name in ("AWS_ENDPOINT_URL", "S3_ENDPOINT_URL", "AWS_REGION")}
    cluster.add(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "mmbert-secrets", "namespace": "mmbert"},
            "data": {name: base64.b64encode(value.encode()).decode() for name, value in secret.items()},
        },
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "mmbert-settings", "namespace": "mmbert"},
            "data": settings,
        },
        *yaml.safe_load_all(RUNTIME.read_text("utf-8")),
        *yaml.safe_load_all(PRIORITIES.read_text("utf-8")),
    )
    return cluster


@pytest.fixture(scope="module")
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, images: Images) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("kubernetes")
    with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        cluster = None
        if KUBECONFIG:
            root = f"{os.environ['MMBERT_TEST_ROOT'].rstrip('/')}/{uuid.uuid4().hex[:8]}"
            passed = {k: v for k, v in os.environ.items() if k.startswith(("AWS_", "S3_", "MMBERT_IMAGE_"))}
            variables = {**passed, "KUBECONFIG": KUBECONFIG}
        else:
            s3: S3 = request.getfixturevalue("s3_server")
            cluster = stack.enter_context(stand_in(s3))
            root = s3.make_bucket("pods")
            variables = {**s3.environment, **stand_in_images(images), "KUBECONFIG": str(cluster.kubeconfig)}
        for name, value in {**variables, "MMBERT_CACHE": str(folder / "cache")}.items():
            patch.setenv(name, value)
        storage.s3_client.cache_clear()
        own_text(folder)
        for path in (folder / "text").rglob("*.txt"):
            storage.upload(f"{root}/text/{path.relative_to(folder / 'text')}", path)
        source = f"sources={{own: {{kind: files, path: '{root}/text', held_out_share: 0.1}}}}"
        yield Place(folder, root, environment(folder, **variables), source, cluster)


@pytest.fixture
def launched(place: Place, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a component by a launcher, with a profile; its artifact."""

    def run(launcher: str, component: str, root: str, profile: str = "", **arguments: Any) -> artifacts.Artifact:
        monkeypatch.setenv("MMBERT_LAUNCHER", launcher)
        monkeypatch.setenv("MMBERT_PROFILE", profile or place.profile())
        monkeypatch.setenv("MMBERT_COMMAND", str(ROOT / ".venv" / "bin" / "mmbert"))
        step = steps.run_step(component, arguments, root=f"{place.root}/{root}", task=component, workflow_run="test")
        return artifacts.open_artifact(step.uri)

    return run


@pytest.fixture(scope="module")
def prepared(place: Place) -> dict[str, Any]:
    """The arguments of the first phase's training, made by the process launcher."""
    made: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMBERT_LAUNCHER", "process")
        patch.setenv("MMBERT_PROFILE", "laptop")
        patch.setenv("MMBERT_COMMAND", str(ROOT / ".venv" / "bin" / "mmbert"))

        def run(component: str, **arguments: Any) -> str:
            root = f"{place.root}/process"
            return steps.run_step(component, arguments, root=root, task=component, workflow_run="test").uri

        overrides = [*OVERRIDES, place.source, *SHORT]
        made["recipe"] = run("recipe", preset="tiny", overrides=overrides)
        documents = run("curate", recipe=made["recipe"], group="0")
        made["documents"] = [documents]
        made["tokenizer"] = run("tokenizer", recipe=made["recipe"], documents=[documents])
        shards = run("tokenize", recipe=made["recipe"], documents=documents, tokenizer=made["tokenizer"])
        made["shards"] = [shards]
        made["mixture"] = run("mixture", recipe=made["recipe"], shards=[shards], phase="pretrain")
    return made


def test_a_pod_curates_as_a_process_does(place: Place, prepared: dict[str, Any], launched: Any) -> None:
    beside = artifacts.open_artifact(prepared["documents"][0])
    made = launched("kubernetes", "curate", "pod", recipe=prepared["recipe"], group="0")
    assert made.digest == beside.digest
    image = made.manifest.producer["image"]
    assert image == os.environ["MMBERT_IMAGE_DATA"]
    assert "@sha256:" in image


@pytest.mark.parametrize("training", ["job", "trainer"])
def test_two_nodes_train_as_one_with_as_many_processes(
    place: Place, prepared: dict[str, Any], launched: Any, training: str
) -> None:
    work = {**prepared, "phase": "pretrain"}
    alone = launched("process", "train", "one-node", place.profile(processes=2), **work)
    made = launched("kubernetes", "train", training, place.profile(training, nodes=2), **work)
    assert made.digest == alone.digest
    weights = [{f.path: f.sha256 for f in one.manifest.files}["weights.safetensors"] for one in (made, alone)]
    assert weights[0] == weights[1]


def test_no_node_is_told(place: Place, prepared: dict[str, Any], launched: Any) -> None:
    profile = Path(place.profile())
    own = profile.with_name("nowhere.yaml")
    text = profile.read_text("utf-8").replace("pending_minutes: 10", "pending_minutes: 0.1")
    own.write_text(text.replace("node_selector: {}", "node_selector: {mmbert.dev/pool: nowhere}"), "utf-8")
    with pytest.raises(InfrastructureError, match=r"waits for a node: .* \(for 6 s, kubernetes.pending_minutes\)"):
        launched("kubernetes", "curate", "nowhere", str(own), recipe=prepared["recipe"], group="0")


def run_workflow(place: Place, launcher: str) -> Ran:
    root = f"{place.root}/{launcher}-workflow"
    command = [str(ROOT / ".venv" / "bin" / "mmbert"), "workflow", "pretrain", "--root", root, "--run-name", launcher]
    command += [f"--set={override}" for override in (*SMALL, place.source)]
    variables = {**place.environment, "MMBERT_LAUNCHER": launcher, "MMBERT_PROFILE": place.profile()}
    ended = subprocess.run(command, env=variables, cwd=place.folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    lines = re.findall(rf"^(made |found) +(\S+) .*({re.escape(root)}/\S+)$", ended.stdout, re.MULTILINE)
    made = {(task, uri.removeprefix(root)): artifacts.open_artifact(uri) for _, task, uri in lines}
    return Ran(ended.stdout, made, {task for word, task, _ in lines if word == "found"})


def test_the_whole_workflow_in_pods_makes_the_same_to_the_byte(place: Place) -> None:
    in_pods, beside = run_workflow(place, "kubernetes"), run_workflow(place, "process")
    compared = {key for key in in_pods.made if key[1].split("/")[1] not in OF_A_REGISTRY}
    assert len(compared) >= 17
    for key in compared:
        assert beside.made[key].digest == in_pods.made[key].digest, key
    for (task, _), artifact in in_pods.made.items():
        target = get_component(artifact.manifest.producer["component"]).image
        assert artifact.manifest.producer["image"] == place.environment[f"MMBERT_IMAGE_{target.upper()}"], task
