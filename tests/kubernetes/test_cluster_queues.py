"""The stand-in's Kueue."""

from __future__ import annotations

from typing import Any

import pytest

from tests.kubernetes.clients import clients, conditions, ended, job, running
from tests.kubernetes.cluster import FOREVER, NAME, Cluster, Run, Scripted
from tests.kubernetes.test_cluster_rayjobs import ray_job
from tests.kubernetes.test_cluster_trainjobs import RUNTIME, train_job

QUEUE = "mmbert-h100"
OVER = "couldn't assign flavors to pod set main: insufficient unused quota for nvidia.com/gpu"


def queued(document: dict[str, Any]) -> dict[str, Any]:
    return {**document, "metadata": {"name": "work", "labels": {"kueue.x-k8s.io/queue-name": QUEUE}}}


def workload(cluster: Cluster) -> dict[str, Any]:
    return dict(cluster.wait_for(lambda: cluster.objects("Workload"))[0])


def create(cluster: Cluster, kind: str) -> None:
    api = clients(cluster)
    if kind == "TrainJob":
        cluster.add(RUNTIME)
        api.create_train_job(queued(train_job()))
    elif kind == "RayJob":
        api.create_ray_job(queued(ray_job()))
    else:
        api.create_job(queued(job()))


def test_what_has_a_queue_runs_when_it_is_admitted() -> None:
    with Cluster() as cluster:
        created = clients(cluster).create_job(queued(job()))
        assert created.spec.suspend is True
        assert "Complete" in conditions(ended(cluster))
        cluster.wait_for(lambda: "Finished" in conditions(workload(cluster)))
        assert conditions(workload(cluster)) == {
            "QuotaReserved": "QuotaReserved",
            "Admitted": "Admitted",
            "Finished": "Succeeded",
        }


@pytest.mark.parametrize("kind", ["Job", "TrainJob", "RayJob"])
def test_over_quota_it_waits_and_the_workload_says_why(kind: str) -> None:
    with Cluster(player=Scripted(lambda pod: Run(seconds=FOREVER))) as cluster:
        cluster.quota(QUEUE, admits=False, message=OVER)
        create(cluster, kind)
        uid = cluster.objects(kind)[0]["metadata"]["uid"]
        listed = cluster.wait_for(
            lambda: [item for item in cluster.objects("Workload") if item.get("status", {}).get("conditions")]
        )
        (found,) = listed
        assert found["metadata"]["labels"]["kueue.x-k8s.io/job-uid"] == uid
        assert found["spec"]["queueName"] == QUEUE
        (told,) = found["status"]["conditions"]
        assert (told["type"], told["status"], told["reason"], told["message"]) == (
            "QuotaReserved", "False", "Pending", OVER,
        )  # fmt: skip
        assert cluster.pods() == []
        cluster.quota(QUEUE, admits=True)
        cluster.wait_for(lambda: cluster.pods("Running"))


@pytest.mark.parametrize("kind", ["Job", "TrainJob", "RayJob"])
def test_a_workload_that_loses_its_quota_is_suspended_and_comes_again(kind: str) -> None:
    with Cluster(player=Scripted(lambda pod: Run(seconds=FOREVER))) as cluster:
        create(cluster, kind)
        cluster.wait_for(lambda: cluster.pods("Running"))
        cluster.quota(QUEUE, admits=False, message=OVER)
        cluster.evict_queue(QUEUE)
        cluster.wait_for(lambda: not cluster.pods())
        assert cluster.objects(kind)[0]["spec"]["suspend"] is True
        cluster.quota(QUEUE, admits=True)
        cluster.wait_for(lambda: cluster.pods("Running"))


def test_workloads_are_read_and_go_with_their_owner() -> None:
    with Cluster(player=Scripted(lambda pod: Run(seconds=FOREVER))) as cluster:
        api = clients(cluster)
        made = api.create_job(queued(job()))
        running(cluster)
        selector = f"kueue.x-k8s.io/job-uid={made.metadata.uid}"
        place = ("kueue.x-k8s.io", "v1beta2", NAME, "workloads")
        listed = api.custom.list_namespaced_custom_object(*place, label_selector=selector)
        assert len(listed["items"]) == 1
        api.batch.delete_namespaced_job("work", NAME, propagation_policy="Foreground")
        cluster.wait_for(lambda: not cluster.objects("Job") and not cluster.objects("Workload"))
