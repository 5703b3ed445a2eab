"""The stand-in as a client sees it, and objects for its tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from tests.kubernetes.cluster import NAME, Cluster

IMAGE = "registry.example/mmbert-data@sha256:" + "0" * 64


@dataclass(frozen=True)
class Clients:
    """The typed APIs of the package kubernetes."""

    core: client.CoreV1Api
    batch: client.BatchV1Api
    custom: client.CustomObjectsApi

    def create_job(self, document: dict[str, Any]) -> client.V1Job:
        return self.batch.create_namespaced_job(NAME, document)

    def create_train_job(self, document: dict[str, Any]) -> dict[str, Any]:
        made = self.custom.create_namespaced_custom_object(
            "trainer.kubeflow.org", "v1alpha1", NAME, "trainjobs", document
        )
        return dict(made)

    def create_ray_job(self, document: dict[str, Any]) -> dict[str, Any]:
        return dict(self.custom.create_namespaced_custom_object("ray.io", "v1", NAME, "rayjobs", document))


def clients(cluster: Cluster) -> Clients:
    configuration = client.Configuration()
    config.load_kube_config(str(cluster.kubeconfig), client_configuration=configuration)
    configuration.retries = False
    api = client.ApiClient(configuration)
    return Clients(client.CoreV1Api(api), client.BatchV1Api(api), client.CustomObjectsApi(api))


def refusal(call: Callable[[], object]) -> tuple[int, dict[str, Any]]:
    """The code and the Status of the answer that refuses this."""
    try:
        call()
    except ApiException as error:
        return error.status, json.loads(error.body)
    raise AssertionError("it was not refused")


def container(**own: Any) -> dict[str, Any]:
    """One that the restricted profile takes."""
    return {
        "name": "main",
        "image": IMAGE,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **own,
    }


def pod(name: str = "one", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"restartPolicy": "Never", "containers": [container()], **spec},
    }


POLICY = {
    "rules": [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]},
        {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [130]}},
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [1, 2, 137]}},
    ]
}


def job(name: str = "work", pod_spec: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    """A Job of one pod, with this pod's spec and spec besides."""
    template = {"restartPolicy": "Never", "containers": [container()], **(pod_spec or {})}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"backoffLimit": 0, "template": {"spec": template}, **spec},
    }


def conditions(item: dict[str, Any]) -> dict[str, str]:
    """The reasons of the conditions that are true, by type."""
    found = item.get("status", {}).get("conditions", ())
    return {each["type"]: each["reason"] for each in found if each["status"] == "True"}


def ended(cluster: Cluster, name: str = "work", kind: str = "Job") -> dict[str, Any]:
    """A Job or TrainJob when it is over."""

    def found() -> dict[str, Any] | None:
        for item in cluster.objects(kind):
            if item["metadata"]["name"] == name and conditions(item).keys() & {"Complete", "Failed"}:
                return item
        return None

    return dict(cluster.wait_for(found))


def running(cluster: Cluster, count: int = 1) -> list[dict[str, Any]]:
    """The pods, when so many run."""
    return list(cluster.wait_for(lambda: (found := cluster.pods("Running")) and len(found) == count and found))
