"""What is created for each component and profile: strict against Kubernetes' schemas, restricted, without secrets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from components import code, environment, profiles
from components.contract import component_names, get_component
from components.launchers.kubernetes import api
from components.launchers.kubernetes.manifests import JOB, OUR_RUNTIME, RAY_JOB, TRAIN_JOB, Manifests, manifests
from components.planning import Plan
from mmbert.errors import UserError
from tests.fixtures_stack import ROOT
from tests.kubernetes import works
from tests.kubernetes.cluster import pod_security, resources, validation

INFRA = ROOT / "infra" / "kubernetes"
PHASES = [{"phase": phase} for phase in ("pretrain", "extend", "decay")]
CALLS = [(name, more) for name in component_names() for more in (PHASES if name == "train" else [{}])]
SECRET = "canary-93a1f0c2d7"


@pytest.fixture(autouse=True)
def own_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in environment.SECRETS:
        monkeypatch.setenv(name, SECRET)
    return works.use_profile(monkeypatch, tmp_path)


def made_of(plan: Plan) -> Manifests:
    return manifests(plan, works.words(plan), works.PLACE)


def pod_specs(made: Manifests) -> list[dict[str, Any]]:
    spec = made.item["spec"]
    if made.kind is JOB:
        return [spec["template"]["spec"]]
    if made.kind is RAY_JOB:
        groups = [spec["rayClusterSpec"]["headGroupSpec"], *spec["rayClusterSpec"]["workerGroupSpecs"]]
        return [group["template"]["spec"] for group in groups] + [spec["submitterPodTemplate"]["spec"]]
    return []


def pod_labels(made: Manifests) -> list[dict[str, str]]:
    spec = made.item["spec"]
    if made.kind is TRAIN_JOB:
        patched = spec["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]
        return [patched["template"]["spec"]["template"]["metadata"]["labels"]]
    if made.kind is RAY_JOB:
        cluster = spec["rayClusterSpec"]
        templates = [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
        return [one["metadata"]["labels"] for one in (*templates, spec["submitterPodTemplate"])]
    return [spec["template"]["metadata"]["labels"]]


def validate(document: dict[str, Any]) -> None:
    """As the stand-in takes it: Kubernetes' schemas, strict, our field lists of custom resources, and rules of both."""
    validation.checked(resources.of(document), document)


def as_pod(spec: dict[str, Any]) -> dict[str, Any]:
    containers = [{"command": ["ray"], **one} for one in spec["containers"]]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {**spec, "containers": containers}}


@pytest.mark.parametrize("profile", ["dev", "prod", ""])
@pytest.mark.parametrize(("name", "more"), CALLS)
def test_each_component_is_valid_restricted_and_holds_no_secret(
    name: str, more: dict[str, str], profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if profile:
        monkeypatch.setenv("MMBERT_PROFILE", profile)
    made = made_of(works.plan_of(name, **more))
    validate(made.item)
    if made.service is not None:
        validate(made.service)
    for spec in pod_specs(made):
        if made.kind is RAY_JOB:
            validate(as_pod(spec))
        assert pod_security.violations(spec) == []
        assert spec["automountServiceAccountToken"] is spec["enableServiceLinks"] is False
        (container,) = spec["containers"]
        assert container["image"].endswith(f"@{works.DIGEST}")
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert {mount["mountPath"] for mount in container["volumeMounts"]} >= {"/work", "/dev/shm"}  # noqa: S108
    for labels in (made.labels, *pod_labels(made)):
        assert (labels["app.kubernetes.io/name"], labels["app.kubernetes.io/managed-by"]) == ("mmbert", "mmbert")
        assert labels["app.kubernetes.io/component"] == name
    assert SECRET not in json.dumps([made.item, made.service])
    assert len(made.name) <= 47  # KubeRay's limit; others take 63


def test_which_object_holds_which_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMBERT_PROFILE", "prod")
    assert made_of(works.plan_of("train", phase="pretrain")).kind is TRAIN_JOB
    assert made_of(works.plan_of("train", phase="decay")).kind is JOB
    assert made_of(works.plan_of("curate")).kind is RAY_JOB
    assert made_of(works.plan_of("tokenize")).kind is JOB


def variables(container: dict[str, Any]) -> dict[str, Any]:
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container["env"]}


def test_what_a_pod_gets() -> None:
    made = made_of(works.plan_of("select"))
    (spec,) = pod_specs(made)
    (container,) = spec["containers"]
    assert container["command"][-1:] + container["args"][:4] == ["mmbert", "run", "select", "--root", works.PLACE]
    given = variables(container)
    assert (given["OMP_NUM_THREADS"], given["MMBERT_PROCESSES"]) == ("1", "1")
    assert given["MMBERT_CODE"] == code.identity()
    assert given["MMBERT_IMAGE"] == container["image"]
    assert "MMBERT_PROFILE" not in given
    assert given["AWS_SECRET_ACCESS_KEY"]["secretKeyRef"] == {
        "name": "mmbert-secrets", "key": "AWS_SECRET_ACCESS_KEY", "optional": True,
    }  # fmt: skip
    assert given["MLFLOW_TRACKING_URI"]["configMapKeyRef"]["name"] == "mmbert-settings"
    assert container["resources"] == {
        "requests": {"cpu": "1", "memory": "2560Mi", "ephemeral-storage": "1Gi"}, "limits": {"memory": "2560Mi"},
    }  # fmt: skip
    metadata = made.item["metadata"]
    assert metadata["labels"]["app.kubernetes.io/component"] == "select"
    assert metadata["annotations"]["mmbert.dev/uri"] == works.plan_of("select").uri


def test_the_failure_policy_tells_what_is_tried_again() -> None:
    spec = made_of(works.plan_of("train", phase="decay")).item["spec"]
    rules = spec["podFailurePolicy"]["rules"]
    assert [rule["action"] for rule in rules] == ["Ignore", "Ignore", "FailJob"]
    assert rules[0]["onPodConditions"][0]["type"] == "DisruptionTarget"
    assert [rule["onExitCodes"]["values"] for rule in rules[1:]] == [[130], [1, 2, 137]]
    assert spec["backoffLimit"] == 1
    assert spec["template"]["spec"]["restartPolicy"] == "Never"


def test_the_nodes_of_an_indexed_job_find_each_other() -> None:
    made = made_of(works.plan_of("train", phase="pretrain"))
    spec, service = made.item["spec"], made.service
    assert (spec["completionMode"], spec["completions"], spec["parallelism"], spec["backoffLimit"]) == (
        "Indexed",
        2,
        2,
        2,
    )
    assert service is not None
    assert service["metadata"]["name"] == spec["template"]["spec"]["subdomain"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"].items() <= spec["template"]["metadata"]["labels"].items()
    given = variables(spec["template"]["spec"]["containers"][0])
    assert (given["NNODES"], given["MASTER_ADDR"]) == ("2", f"{made.name}-0.{made.name}")
    assert given["NODE_RANK"]["fieldRef"]["fieldPath"].endswith("['batch.kubernetes.io/job-completion-index']")


def test_a_train_job_says_what_its_runtime_leaves_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMBERT_PROFILE", "prod")
    many = [f"{works.PLACE}/shards/{n:032x}" for n in range(200)]
    made = made_of(works.plan_of("train", phase="pretrain", shards=many))
    spec = made.item["spec"]
    trainer = spec["trainer"]
    assert (trainer["numNodes"], spec["runtimeRef"]["name"]) == (4, "mmbert-torch")
    assert trainer["resourcesPerNode"]["limits"] == {
        "nvidia.com/gpu": "8", "vpc.amazonaws.com/efa": "32", "hugepages-2Mi": "5120Mi", "memory": "1600Gi",
    }  # fmt: skip
    # Trainer takes 128 arguments and variables at most.
    assert len(trainer["command"]) < 10
    assert len(trainer["env"]) <= 128
    assert trainer["command"][-1].startswith("exec mmbert run train --root ")
    assert many[-1] in trainer["command"][-1]
    (patch,) = spec["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    template = node["template"]["spec"]["template"]
    assert (
        template["metadata"]["annotations"]["kueue.x-k8s.io/podset-required-topology"] == "topology.kubernetes.io/zone"
    )
    assert template["spec"]["nodeSelector"]
    assert template["spec"]["serviceAccountName"] == "mmbert-component"
    assert "containers" not in template["spec"]  # Trainer takes variables of `node` in `trainer` only
    assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "64Gi"}} in template["spec"]["volumes"]
    assert made.item["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "mmbert-h100"


def own(text: str, path: Path) -> None:
    path.write_text(path.read_text("utf-8").replace("{nodes: 2,", f"{{nodes: 2, {text},"), "utf-8")


def test_without_a_queue_the_scheduler_keeps_nodes_together(own_profile: Path) -> None:
    own("topology: {required: topology.kubernetes.io/zone}", own_profile)
    made = made_of(works.plan_of("train", phase="pretrain"))
    affinity = made.item["spec"]["template"]["spec"]["affinity"]["podAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == "topology.kubernetes.io/zone"
    assert term["labelSelector"]["matchLabels"].items() <= made.labels.items()


def test_scratch_can_be_a_volume_of_a_storage_class(own_profile: Path) -> None:
    own("scratch_class: fast, shared_memory: 0.5", own_profile)
    made = made_of(works.plan_of("train", phase="decay"))
    validate(made.item)
    work, memory = made.item["spec"]["template"]["spec"]["volumes"]
    claim = work["ephemeral"]["volumeClaimTemplate"]["spec"]
    assert (claim["storageClassName"], claim["resources"]["requests"]["storage"]) == ("fast", "1Gi")
    assert memory["emptyDir"]["sizeLimit"] == "512Mi"
    requests = made.item["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]
    assert "ephemeral-storage" not in requests


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda patch, path: patch.setenv("MMBERT_PROFILE", "laptop"),
            "it has no section 'kubernetes'; give dev, prod",
        ),
        (
            lambda patch, path: patch.setenv("MMBERT_IMAGE_EVAL", "mmbert-eval:v1"),
            "image mmbert-eval:v1 has no digest, and pods run by digest only; set MMBERT_IMAGE_EVAL",
        ),
        (lambda patch, path: patch.delenv("MMBERT_IMAGE_EVAL"), "image mmbert-eval:latest has no digest"),
        *(
            (lambda patch, path, bad=bad: patch.setenv("MMBERT_IMAGE_EVAL", f"r/e@sha256:{bad}"), "has no digest.* 64")
            for bad in ("0" * 64, "abc", works.DIGEST[7:] + "0", works.DIGEST[7:].upper())
        ),
    ],
)
def test_what_is_missing_is_named(
    change: Any, message: str, own_profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(monkeypatch, own_profile)
    with pytest.raises(UserError, match=message):
        made_of(works.plan_of("select"))


def test_files_of_this_machine_are_refused(own_profile: Path, tmp_path: Path) -> None:
    plan = works.plan_of("select")
    with pytest.raises(UserError, match=r"--root /srv/artifacts: pods see no folder of this machine"):
        manifests(plan, works.words(plan), "/srv/artifacts")
    text = tmp_path / "text"
    text.mkdir()
    named = f"sources={{own: {{kind: files, path: {text}, held_out_share: 0.1}}}}"
    plan = works.plan_of("recipe", overrides=[named])
    with pytest.raises(UserError, match=rf"{text}: pods see no file of this machine; put it into the object store"):
        made_of(plan)


def test_a_train_job_has_no_volume_of_a_storage_class(own_profile: Path) -> None:
    own("scratch_class: fast", own_profile)
    own_profile.write_text(own_profile.read_text("utf-8").replace("training: job", "training: trainer"), "utf-8")
    with pytest.raises(UserError, match=r"kubernetes.classes.train.scratch_class .* put it into mmbert-torch"):
        made_of(works.plan_of("train", phase="pretrain"))


@pytest.mark.parametrize("profile", ["dev", "prod"])
def test_our_profiles_say_of_training_what_its_runtime_says(profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMBERT_PROFILE", profile)
    made = made_of(works.plan_of("train", phase="pretrain"))
    assert (made.kind, made.note) == (TRAIN_JOB, "")


def test_what_a_train_job_cannot_say_is_told(own_profile: Path) -> None:
    text = own_profile.read_text("utf-8").replace("training: job", "training: trainer")
    own_profile.write_text(text, "utf-8")
    plan = works.plan_of("train", phase="pretrain")
    assert made_of(plan).note.startswith("restarts, grace_seconds of kubernetes.classes.train (profile ")
    assert made_of(plan).note.endswith("a TrainJob's are those of its ClusterTrainingRuntime mmbert-torch")
    assert made_of(works.plan_of("train", phase="decay")).note == ""
    other = text.replace("restarts: 1", "restarts: 20").replace(
        "pending_minutes", "training_runtime: mine\n  pending_minutes"
    )
    profiles._profile.cache_clear()
    own_profile.write_text(other, "utf-8")
    assert made_of(plan).note.endswith("a TrainJob's are those of its ClusterTrainingRuntime mine")


@pytest.mark.parametrize("profile", ["prod", ""])
def test_processes_know_the_grace_of_their_pod(profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is killed after it looks like one that ran out of memory, and would end training for good."""
    if profile:
        monkeypatch.setenv("MMBERT_PROFILE", profile)
    runtime = yaml.safe_load(works.RUNTIME.read_text("utf-8"))["spec"]["template"]["spec"]["replicatedJobs"][0]
    for phase in ("pretrain", "decay"):
        made = made_of(works.plan_of("train", phase=phase))
        if made.kind is TRAIN_JOB:
            pod, given = runtime["template"]["spec"]["template"]["spec"], made.item["spec"]["trainer"]
        else:
            (pod,) = pod_specs(made)
            (given,) = pod["containers"]
        assert variables(given)["MMBERT_GRACE_SECONDS"] == str(pod["terminationGracePeriodSeconds"])


def test_memory_that_is_all_shared_memory_is_refused(own_profile: Path) -> None:
    own("shared_memory: 100", own_profile)
    message = r"classes.train.shared_memory is 100 GiB, and memory.train of the profile .* is 4; what lies in /dev/shm"
    with pytest.raises(UserError, match=message):
        made_of(works.plan_of("train", phase="decay"))


def test_more_processes_than_gpus_are_refused(own_profile: Path) -> None:
    own("gpus: 1", own_profile)
    with pytest.raises(
        UserError, match=r"processes.train of the profile .* is 2, and kubernetes.classes.train.gpus 1;"
    ):
        made_of(works.plan_of("train", phase="decay"))


def test_a_class_with_a_process_a_gpu_says_how_many_gpus(own_profile: Path) -> None:
    text = own_profile.read_text("utf-8").replace("processes: {train: 2}", "processes: {train: gpus}")
    own_profile.write_text(text, "utf-8")
    with pytest.raises(UserError, match=r"kubernetes.classes.train has no gpus"):
        made_of(works.plan_of("train", phase="decay"))


@pytest.mark.parametrize("profile", ["dev", "prod"])
def test_the_profiles_name_what_the_infrastructure_has(profile: str) -> None:
    files = [*(INFRA / "base").glob("*.yaml"), *(INFRA / "overlays" / profile).glob("*.yaml")]
    documents = [one for path in files for one in yaml.safe_load_all(path.read_text("utf-8")) if one]
    there = {(one.get("kind"), (one.get("metadata") or {}).get("name")) for one in documents}
    section = yaml.safe_load((ROOT / "components" / "profiles" / f"{profile}.yaml").read_text("utf-8"))["kubernetes"]
    wanted = {
        ("Namespace", section["namespace"]),
        ("ServiceAccount", section["service_account"]),
        ("ClusterTrainingRuntime", section["training_runtime"]),
    }
    for one in section["classes"].values():
        wanted |= {("LocalQueue", one["queue"])} if "queue" in one else set()
        wanted |= {("PriorityClass", one["priority"])} if "priority" in one else set()
    assert wanted <= there


def test_the_training_runtime_says_what_a_train_job_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = yaml.safe_load(works.RUNTIME.read_text("utf-8"))
    (node,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    job = node["template"]["spec"]
    spec = job["template"]["spec"]
    monkeypatch.setenv("MMBERT_PROFILE", "prod")
    ours = made_of(works.plan_of("train", phase="decay")).item["spec"]
    assert job["podFailurePolicy"] == ours["podFailurePolicy"]
    for key in (
        "restartPolicy", "serviceAccountName", "automountServiceAccountToken", "enableServiceLinks", "securityContext",
        "terminationGracePeriodSeconds", "priorityClassName",
    ):  # fmt: skip
        assert spec[key] == ours["template"]["spec"][key], key
    (container,), (wanted,) = spec["containers"], ours["template"]["spec"]["containers"]
    for key in ("name", "ports", "securityContext", "terminationMessagePolicy"):
        assert container[key] == wanted[key], key
    assert {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]} == {
        mount["mountPath"]: mount["name"] for mount in wanted["volumeMounts"]
    }
    assert {
        "restarts": runtime["spec"]["template"]["spec"]["failurePolicy"]["maxRestarts"],
        "priority": spec["priorityClassName"],
        "grace_seconds": spec["terminationGracePeriodSeconds"],
    } == OUR_RUNTIME


def test_prometheus_finds_the_page_of_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = yaml.safe_load((INFRA / "base" / "alerts" / "pod-monitor.yaml").read_text("utf-8"))["spec"]
    (endpoint,) = monitor["podMetricsEndpoints"]
    settings = (INFRA / "overlays" / "prod" / "settings.env").read_text("utf-8").split()
    monkeypatch.setenv("MMBERT_PROFILE", "prod")
    for name in ("tokenize", "curate"):
        made = made_of(works.plan_of(name))
        assert monitor["selector"]["matchLabels"].items() <= pod_labels(made)[0].items()
        container = pod_specs(made)[0]["containers"][0]
        (port,) = container["ports"]
        assert port["name"] == endpoint["port"]
        assert f"MMBERT_METRICS_PORT={port['containerPort']}" in settings
        assert "MMBERT_METRICS_PORT" in variables(container)
    # KubeRay gives the other pods a port of that name where Ray's own metrics are.
    assert not any("ports" in spec["containers"][0] for spec in pod_specs(made)[1:])


def test_the_launchers_role_has_the_rights_that_it_needs() -> None:
    documents = yaml.safe_load_all((INFRA / "base" / "roles.yaml").read_text("utf-8"))
    role = next(one for one in documents if one["metadata"]["name"] == "mmbert-launcher" and one["kind"] == "Role")
    given = {
        (group, resource): set(rule["verbs"])
        for rule in role["rules"] for group in rule["apiGroups"] for resource in rule["resources"]
    }  # fmt: skip
    for where, verbs in api.RIGHTS.items():
        assert set(verbs) <= given.get(where, set()), where


def test_every_component_takes_part() -> None:
    assert {name for name, _ in CALLS} == set(component_names())
    assert get_component("train").distributed
