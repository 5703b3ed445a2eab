"""Pods that are played for real, in the project's own images."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from kubernetes import watch

from tests.kubernetes.clients import clients, conditions, container, ended, job, running
from tests.kubernetes.cluster import NAME, Cluster
from tests.kubernetes.cluster.nodes.podman import Podman

pytestmark = pytest.mark.containers


@pytest.fixture(scope="module")
def image() -> str:
    """The data image by its digest."""
    prefix, tag = os.environ.get("MMBERT_IMAGE_PREFIX", "mmbert-"), os.environ.get("MMBERT_IMAGE_TAG", "latest")
    name = f"localhost/{prefix}data"
    asked = ["podman", "image", "inspect", "--format", "{{.Digest}}", f"{name}:{tag}"]
    return f"{name}@{subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()}"


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(player=Podman()) as cluster:
        yield cluster


def shell(image: str, script: str, **own: Any) -> dict[str, Any]:
    return container(image=image, command=["sh", "-c", script], **own)


def left() -> list[str]:
    """The pods of the stand-in that podman still has."""
    asked = ["podman", "pod", "ls", "--noheading", "--format", "{{.Name}}", "--filter", "name=stand-in-"]
    return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.split()


def test_a_pod_runs_as_the_manifest_says(cluster: Cluster, image: str) -> None:
    script = 'id -u; echo "$PLACE"; touch /work/x && echo written; touch /x 2>/dev/null || echo read-only; exit 2'
    cluster.add({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"PLACE": "here"}})
    context = {**container()["securityContext"], "readOnlyRootFilesystem": True}
    one = shell(
        image,
        script,
        envFrom=[{"configMapRef": {"name": "settings"}}],
        securityContext=context,
        volumeMounts=[{"name": "work", "mountPath": "/work"}],
        resources={"limits": {"cpu": "1", "memory": "1Gi", "nvidia.com/gpu": "1"}},
    )
    api = clients(cluster)
    api.create_job(job(pod_spec={"containers": [one], "volumes": [{"name": "work", "emptyDir": {}}]}))
    ended(cluster, seconds=60)
    (pod,) = cluster.pods("Failed")
    log = api.core.read_namespaced_pod_log(pod["metadata"]["name"], NAME)
    assert log.splitlines() == ["10001", "here", "written", "read-only"]
    assert pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 2
    assert left() == []


def test_nodes_find_each_other_by_name(cluster: Cluster, image: str) -> None:
    cluster.add(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "ranks"},
            "spec": {"clusterIP": "None", "selector": {"job-name": "work"}},
        }
    )
    script = (
        'python3.11 -c "import socket; print(socket.gethostbyname(\'work-0.ranks\'))"; echo "$JOB_COMPLETION_INDEX"'
    )
    spec = {"containers": [shell(image, script)], "subdomain": "ranks"}
    api = clients(cluster)
    api.create_job(job(pod_spec=spec, completionMode="Indexed", completions=2, parallelism=2))
    assert "Complete" in conditions(ended(cluster, seconds=60))
    logs = [api.core.read_namespaced_pod_log(pod["metadata"]["name"], NAME) for pod in cluster.pods()]
    assert sorted(logs) == ["127.0.0.1\n0\n", "127.0.0.1\n1\n"]


def test_a_log_is_followed_and_a_deleted_pod_gets_its_signal(cluster: Cluster, image: str) -> None:
    script = "trap 'echo asked to end; exit 130' TERM; echo at work; while :; do sleep 0.1; done"
    api = clients(cluster)
    api.create_job(job(pod_spec={"containers": [shell(image, script)], "terminationGracePeriodSeconds": 20}))
    name = running(cluster, seconds=60)[0]["metadata"]["name"]
    followed = watch.Watch().stream(api.core.read_namespaced_pod_log, name, NAME)
    assert next(followed) == "at work"
    gone: list[Any] = []
    seen = api.core.list_namespaced_pod(NAME).metadata.resource_version
    api.batch.delete_namespaced_job("work", NAME, propagation_policy="Foreground")
    assert list(followed) == ["asked to end"]
    for event in watch.Watch().stream(api.core.list_namespaced_pod, NAME, resource_version=seen, timeout_seconds=20):
        if event["type"] == "DELETED":
            gone.append(event["object"].status.container_statuses[0].state.terminated.exit_code)
            break
    assert gone == [130]
    cluster.wait_for(lambda: not cluster.objects("Job"), 60)


def test_an_image_that_is_not_there_is_not_pulled(cluster: Cluster) -> None:
    api = clients(cluster)
    api.create_job(job(pod_spec={"containers": [shell("localhost/none@sha256:" + "0" * 64, "true")]}))

    def waiting() -> Any:
        statuses = [pod["status"].get("containerStatuses") for pod in cluster.pods()]
        return statuses and statuses[0] and statuses[0][0]["state"].get("waiting", {}).get("message") and statuses[0]

    assert cluster.wait_for(waiting, 60)[0]["state"]["waiting"]["reason"] == "ErrImagePull"


def test_a_pod_out_of_memory_is_killed(cluster: Cluster, image: str) -> None:
    clients(cluster).create_job(job(pod_spec={"containers": [shell(image, "while :; do sleep 0.1; done")]}))
    cluster.oom(running(cluster, seconds=60)[0])
    ended(cluster, seconds=60)
    (pod,) = cluster.pods("Failed")
    assert pod["status"]["containerStatuses"][0]["state"]["terminated"]["reason"] == "OOMKilled"
    assert left() == []
