"""What the stand-in does not take."""

from __future__ import annotations

from typing import Any

import pytest

from tests.kubernetes.clients import POLICY, clients, container, job, pod, refusal
from tests.kubernetes.cluster import NAME, Cluster, Scripted

POD = "spec.template.spec"
CONTAINER = f"{POD}.containers[0]"
CODES = "spec.podFailurePolicy.rules[0].onExitCodes.values"


def with_container(**own: Any) -> dict[str, Any]:
    return job(pod_spec={"containers": [container(**own)]})


def with_rule(**rule: Any) -> dict[str, Any]:
    return job(podFailurePolicy={"rules": [rule]})


def ignoring(*codes: int) -> dict[str, Any]:
    return with_rule(action="Ignore", onExitCodes={"operator": "In", "values": list(codes)})


DISRUPTED = [{"type": "DisruptionTarget"}]


@pytest.fixture(scope="module")
def cluster() -> Any:
    with Cluster(player=Scripted()) as cluster:
        yield cluster


@pytest.mark.parametrize(
    ("document", "told"),
    [
        (job(backofLimit=1), 'unknown field "spec.backofLimit"'),
        (with_container(comand=["x"]), 'unknown field "spec.template.spec.containers.0.comand"'),
        (job(backoffLimit="1"), "spec.backoffLimit: '1' is not of type 'integer'"),
        (job(podFailurePolicy={"rules": [{"onExitCodes": {"operator": "In", "values": [1]}}]}), "action"),
        ({**job(), "spec": {"backoffLimit": 0}}, "'template' is a required property"),
        ({**job(), "kind": "Jobs"}, "kind Jobs"),
    ],
)  # fmt: skip
def test_what_is_no_job_is_refused(cluster: Cluster, document: dict[str, Any], told: str) -> None:
    code, status = refusal(lambda: clients(cluster).create_job(document))
    assert (code, status["reason"]) == (400, "BadRequest")
    assert told in status["message"]


GPU = "nvidia.com/gpu"
WRONG = {"key": "a", "operator": "Exists", "value": "b"}
SHARED = {"volumeMounts": [{"name": "work", "mountPath": "/work"}]}


@pytest.mark.parametrize(
    ("document", "field"),
    [
        (job("Work"), "metadata.name"),
        (job("a" * 64), "metadata.name"),
        ({**job(), "metadata": {"name": "x", "labels": {"a": "s3://x"}}}, "metadata.labels"),
        ({**job(), "metadata": {"name": "x", "labels": {"a b": "x"}}}, "metadata.labels"),
        (job(pod_spec={"restartPolicy": "Always"}), "spec.template.spec.restartPolicy"),
        (job(pod_spec={"restartPolicy": "OnFailure"}, podFailurePolicy=POLICY), "spec.podFailurePolicy"),
        (job(completionMode="Indexed"), "spec.completions"),
        (with_container(**SHARED), f"{CONTAINER}.volumeMounts[0].name"),
        (job(pod_spec={"containers": [container(), container()]}), "spec.template.spec.containers"),
        (job(pod_spec={"subdomain": "a.b"}), "spec.template.spec.subdomain"),
        (with_rule(action="Ignore"), "spec.podFailurePolicy.rules[0]"),
        (with_rule(action="Retry", onPodConditions=DISRUPTED), "spec.podFailurePolicy.rules[0].action"),
        (ignoring(0), CODES),
        (ignoring(2, 1), CODES),
        (ignoring(1, 1), CODES),
        (job(podFailurePolicy=POLICY, podReplacementPolicy="TerminatingOrFailed"), "spec.podReplacementPolicy"),
        (with_container(resources={"limits": {GPU: "1500m"}}), f"{CONTAINER}.resources.limits[{GPU}]"),
        (with_container(resources={"requests": {GPU: "1"}}), f"{CONTAINER}.resources.limits"),
        (
            with_container(resources={"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}),
            f"{CONTAINER}.resources.requests",
        ),
        (with_container(resources={"limits": {"memory": "much"}}), f"{CONTAINER}.resources"),
        (with_container(image=""), f"{CONTAINER}.image"),
        (job(pod_spec={"tolerations": [WRONG]}), f"{POD}.tolerations[0].operator"),
        (job(backoffLimit=-1), "spec.backoffLimit"),
    ],
)
def test_a_job_that_breaks_a_rule_is_invalid(cluster: Cluster, document: dict[str, Any], field: str) -> None:
    code, status = refusal(lambda: clients(cluster).create_job(document))
    assert (code, status["reason"]) == (422, "Invalid"), status
    assert field in [cause["field"] for cause in status["details"]["causes"]]
    assert status["message"].startswith("Job.batch ")


def test_a_pod_that_breaks_a_rule_is_invalid(cluster: Cluster) -> None:
    document = pod(hostname="not.a.label")
    code, status = refusal(lambda: clients(cluster).core.create_namespaced_pod(NAME, document))
    assert (code, status["details"]["causes"][0]["field"]) == (422, "spec.hostname")


def test_a_jobs_template_stays(cluster: Cluster) -> None:
    api = clients(cluster)
    api.create_job(job("fixed", suspend=True))
    document = next(item for item in cluster.objects("Job") if item["metadata"]["name"] == "fixed")
    document["spec"]["template"]["spec"]["containers"][0]["image"] = "another"
    code, status = refusal(lambda: api.batch.replace_namespaced_job("fixed", NAME, document))
    assert (code, status["details"]["causes"][0]["field"]) == (422, "spec.template")


TRAIN: dict[str, Any] = {
    "apiVersion": "trainer.kubeflow.org/v1alpha1",
    "kind": "TrainJob",
    "metadata": {"name": "t"},
    "spec": {"runtimeRef": {"name": "mmbert-torch"}},
}
RAY: dict[str, Any] = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "r"}}


def patch(**pod_spec: Any) -> dict[str, Any]:
    """A TrainJob that patches the trainer's pods."""
    replicated = {"name": "node", "template": {"spec": {"template": {"spec": pod_spec}}}}
    template = {"template": {"spec": {"replicatedJobs": [replicated]}}}
    return {
        **TRAIN,
        "spec": {**TRAIN["spec"], "runtimePatches": [{"manager": "mmbert.dev/x", "trainingRuntimeSpec": template}]},
    }


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({**TRAIN, "spec": {}}, "spec.runtimeRef: Required value"),
        ({**TRAIN, "spec": {**TRAIN["spec"], "podTemplateOverrides": []}}, 'unknown field "spec.podTemplateOverrides"'),
        ({**TRAIN, "spec": {**TRAIN["spec"], "trainer": {"numNodes": "2"}}}, "spec.trainer.numNodes: must be of type"),
        ({**TRAIN, "spec": {**TRAIN["spec"], "trainer": {"env": [{"nam": "x"}]}}}, "spec.trainer.env"),
        ({**TRAIN, "metadata": {"name": "t", "label": {}}}, 'unknown field "metadata.label"'),
        (patch(terminationGracePeriodSeconds=5), "spec.template.spec.terminationGracePeriodSeconds"),
        (patch(containers=[{"name": "node", "image": "x"}]), "containers[0].image"),
        (patch(tolerations=[{"keys": "x"}]), "tolerations"),
    ],
)  # fmt: skip
def test_what_is_no_train_job_is_refused(cluster: Cluster, document: dict[str, Any], told: str) -> None:
    code, status = refusal(lambda: clients(cluster).create_train_job(document))
    assert (code, status["reason"]) == (400, "BadRequest")
    assert told in status["message"]


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"entryPoint": "x"}, 'unknown field "spec.entryPoint"'),
        ({"rayClusterSpec": {}}, "spec.rayClusterSpec.headGroupSpec: Required value"),
        ({"rayClusterSpec": {"headGroupSpec": {"template": {"spec": {"container": []}}}}}, "headGroupSpec.template"),
    ],
)
def test_what_is_no_ray_job_is_refused(cluster: Cluster, spec: dict[str, Any], told: str) -> None:
    code, status = refusal(lambda: clients(cluster).create_ray_job({**RAY, "spec": spec}))
    assert (code, status["reason"]) == (400, "BadRequest")
    assert told in status["message"]
