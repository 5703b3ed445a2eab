"""Resource profiles of one's own: what is wrong in one is said, with its key."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from components import processes, profiles
from components.contract import get_component
from mmbert import ranks
from mmbert.errors import UserError

THREADS = "threads: {small: 1, data: 1, train: 1, eval: 1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it needs 'threads'"),
        ("threads: [1", "it is no YAML"),
        (f"{THREADS}, train: two}}", "threads.train is 'two'; it must be a number from 1 on"),
        (f"{THREADS}}}\nmemory: {{train: much}}", "memory.train is 'much'; it must be a number of GiB above 0"),
        (f"{THREADS}}}\nprocesses: {{train: 0}}", "processes.train is 0; it must be a number from 1 on, or gpus"),
    ],
)
def test_a_wrong_profile_names_its_key(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, "utf-8")
    monkeypatch.setenv("MMBERT_PROFILE", str(path))
    with pytest.raises(UserError, match=message):
        profiles.processes(get_component("train"), {})


ON_A_CLUSTER = f"{THREADS}}}\nkubernetes: {{namespace: mmbert, service_account: a"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{THREADS}}}\nkubernets: {{}}", "kubernets: there is no such section; it has threads, processes"),
        (f"{THREADS}}}\nmemory: {{dta: 1}}", "memory.dta: there is no such resource class; there are small, data"),
        (f"{THREADS}}}\nprocesses: {{train.first: 2}}", "processes.train.first: there is no such resource class"),
        (f"{THREADS}}}\nkubernetes: []", r"kubernetes is \[\]; it must be a mapping"),
        (f"{THREADS}}}\nkubernetes: {{namespace: n}}", "kubernetes.service_account is missing; name the pods' service"),
        (f"{ON_A_CLUSTER}, queue: q}}", "kubernetes.queue: there is no such key; it has namespace, service_account"),
        (f"{ON_A_CLUSTER}, namespace: My_Space}}", "kubernetes.namespace is 'My_Space'; it must be a name of small"),
        (f"{ON_A_CLUSTER}, training: operator}}", "kubernetes.training is 'operator'; it must be trainer"),
        (f"{ON_A_CLUSTER}, pending_minutes: 0}}", "kubernetes.pending_minutes is 0; it must be a number of minutes"),
        (f"{ON_A_CLUSTER}, queue_minutes: 0}}", "kubernetes.queue_minutes is 0; it must be a number of minutes"),
        (f"{ON_A_CLUSTER}, classes: {{gpu: {{}}}}}}", "kubernetes.classes.gpu: there is no such class; it is one of"),
        (f"{ON_A_CLUSTER}, classes: {{train.last: {{}}}}}}", "kubernetes.classes.train.last: there is no such class"),
        *(
            (f"{ON_A_CLUSTER}, classes: {{train: {{{given}}}}}}}", f"kubernetes.classes.train.{message}")
            for given, message in (
                ("node: 2", "node: there is no such key; it has nodes, gpus"),
                ("nodes: 0", "nodes is 0; it must be a number from 1 on"),
                ("gpus: yes", "gpus is True; it must be a number from 0 on"),
                ("node_selector: {gpu: true}", "node_selector is .*; it must be node labels with their values"),
                ("tolerations: [{effect: Never}]", "tolerations is .*; it must be a list of Kubernetes' tolerations"),
                ("topology: {near: zone}", "topology is .*; it must be `required` or `preferred` with a node label"),
                ("resources: {efa: 32}", "resources is .*; it must be amounts by a resource's full name"),
                ("scratch: much", "scratch is 'much'; it must be a number of GiB above 0"),
                ("ray: {}", "ray.workers is missing; give the number of Ray's workers"),
                ("ray: {workers: 0}", "ray.workers is 0; it must be a number from 1 on"),
            )
        ),
    ],
)
def test_a_wrong_section_for_clusters_names_its_key(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"{text}}}" if text.count("{") > text.count("}") else text, "utf-8")
    monkeypatch.setenv("MMBERT_PROFILE", str(path))
    with pytest.raises(UserError, match=f"MMBERT_PROFILE={path}: {message}"):
        profiles.cluster()


def test_a_phase_says_what_differs_from_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMBERT_PROFILE", "prod")
    train = get_component("train")
    pretrain, decay = (profiles.share(train, {"phase": phase}) for phase in ("pretrain", "decay"))
    assert (pretrain.nodes, decay.nodes) == (4, 1)
    assert (pretrain.gpus, pretrain.queue) == (decay.gpus, decay.queue) == (8, "mmbert-h100")
    assert (profiles.nodes(train, {}), profiles.nodes(get_component("convert"), {})) == (4, 1)
    assert profiles.ray_workers(get_component("curate"), {}) == 16
    assert profiles.ray_workers(get_component("tokenize"), {}) == 0


@pytest.mark.parametrize("name", ["laptop", "gpu", "dev", "prod"])
def test_a_profile_can_be_given_itself(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    train = get_component("train")
    monkeypatch.setenv("MMBERT_PROFILE", name)
    before = (profiles.threads(train, {}), profiles.memory(train, {}), profiles.share(train, {}))
    monkeypatch.setenv("MMBERT_PROFILE", profiles.as_text())
    assert (profiles.threads(train, {}), profiles.memory(train, {}), profiles.share(train, {})) == before
    monkeypatch.setenv("MMBERT_PROFILE", '{"threads": {"small": 0}}')
    with pytest.raises(UserError, match=r"MMBERT_PROFILE=\{...\}: threads.small is 0"):
        profiles.threads(train, {})


def test_a_profile_without_clusters_names_those_that_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMBERT_PROFILE", "gpu")
    with pytest.raises(UserError, match="MMBERT_PROFILE=gpu: it has no section 'kubernetes'; give dev, prod, or"):
        profiles.cluster()
    monkeypatch.setenv("MMBERT_PROFILE", "production")
    with pytest.raises(UserError, match="no such resource profile; give laptop, gpu, dev, prod, or a file"):
        profiles.cluster()


def test_torchruns_variables_count_where_ours_are_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubeflow Trainer sets them."""
    for name in ("WORLD_SIZE", "NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "MMBERT_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    train = get_component("train")
    monkeypatch.setenv("PET_NNODES", "3")
    with pytest.raises(UserError, match="NNODES is 3, and NODE_RANK is not set"):
        processes.wanted(train, {})
    for name, value in (("NODE_RANK", "2"), ("MASTER_ADDR", "train-node-0-0.train"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(f"PET_{name}", value)
    assert processes.wanted(train, {}) == processes.Group(1, 3, 2)
    monkeypatch.setenv("NODE_RANK", "1")
    assert processes.wanted(train, {}) == processes.Group(1, 3, 1)
    monkeypatch.setenv("PET_NNODES", "1:4")
    with pytest.raises(UserError, match="PET_NNODES=1:4: it must be a whole number"):
        processes.wanted(train, {})


def test_a_number_of_nodes_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("NNODES", "two")
    with pytest.raises(UserError, match="NNODES=two: it must be a whole number"):
        processes.wanted(get_component("train"), {})


def test_what_a_profile_says_of_processes_can_be_passed_on_without_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    train = get_component("train")
    monkeypatch.setenv("MMBERT_PROFILE", "gpu")
    assert profiles.wanted_processes(train, {}) == "gpus"
    monkeypatch.delenv("MMBERT_PROFILE")
    monkeypatch.setenv("MMBERT_PROCESSES", "3")
    assert processes.wanted(train, {}) == processes.Group(3, 1, 0)


def test_processes_end_before_the_pod_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that hears no SIGTERM, in a collective, is killed by its starter, which then says that it was stopped."""
    monkeypatch.delenv(ranks.GRACE, raising=False)
    assert ranks.ending_seconds() == 540
    monkeypatch.setenv(ranks.GRACE, "0.5")
    assert ranks.ending_seconds() < ranks.ending_seconds(processes._ENDING_SHARE) < 0.5
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); signal.pause()"
    member = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE, start_new_session=True)
    assert member.stdout is not None
    member.stdout.readline()
    with pytest.raises(KeyboardInterrupt), processes._ended_with_us([member]):
        raise KeyboardInterrupt
    assert member.returncode == -signal.SIGKILL
    member.stdout.close()
