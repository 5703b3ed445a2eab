"""The stand-in's KubeRay."""

from __future__ import annotations

from typing import Any

from tests.kubernetes.clients import IMAGE, clients, container
from tests.kubernetes.cluster import FOREVER, NAME, Cluster, Run, Scripted


def ray_job(**spec: Any) -> dict[str, Any]:
    template = {"spec": {"containers": [container(name="ray")]}}
    submitter = {"spec": {"restartPolicy": "Never", "containers": [container(name="ray-job-submitter")]}}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": "work"},
        "spec": {
            "entrypoint": "mmbert run curate",
            "submitterPodTemplate": submitter,
            "submitterConfig": {"backoffLimit": 0},
            "shutdownAfterJobFinishes": True,
            "rayClusterSpec": {
                "headGroupSpec": {"rayStartParams": {}, "template": template},
                "workerGroupSpecs": [
                    {"groupName": "workers", "replicas": 2, "rayStartParams": {}, "template": template}
                ],
            },
            **spec,
        },
    }


def state(cluster: Cluster) -> dict[str, Any]:
    return dict(cluster.objects("RayJob")[0].get("status", {}))


def over(cluster: Cluster) -> dict[str, Any]:
    cluster.wait_for(lambda: state(cluster).get("jobDeploymentStatus") in ("Complete", "Failed"))
    return state(cluster)


def test_a_ray_job_is_what_its_submitter_makes_of_it() -> None:
    commands = []

    def behave(pod: dict[str, Any]) -> Run:
        commands.append(pod["spec"]["containers"][0]["command"])
        return Run(["curated"])

    with Cluster(player=Scripted(behave)) as cluster:
        clients(cluster).create_ray_job(ray_job())
        done = over(cluster)
        assert (done["jobStatus"], done["jobDeploymentStatus"]) == ("SUCCEEDED", "Complete")
        (command,) = commands
        assert command[:3] == ["ray", "job", "submit"]
        assert command[-3:] == ["mmbert", "run", "curate"]
        cluster.wait_for(lambda: not cluster.objects("RayCluster"))
        (job,) = cluster.objects("Job")
        assert job["metadata"]["name"] == "work"


def test_a_submitter_that_fails_fails_the_ray_job() -> None:
    with Cluster(player=Scripted(lambda pod: Run(code=2))) as cluster:
        clients(cluster).create_ray_job(ray_job())
        done = over(cluster)
        assert (done["jobStatus"], done["jobDeploymentStatus"], done["reason"]) == ("FAILED", "Failed", "AppFailed")


def test_a_ray_job_is_tried_again_with_a_new_cluster() -> None:
    codes = iter([3, 0])
    with Cluster(player=Scripted(lambda pod: Run(code=next(codes)))) as cluster:
        clients(cluster).create_ray_job(ray_job(backoffLimit=1))
        first = cluster.wait_for(lambda: state(cluster).get("rayClusterName"))
        done = over(cluster)
        assert (done["jobStatus"], done["failed"]) == ("SUCCEEDED", 1)
        assert done["rayClusterName"] != first


def test_a_ray_clusters_pods_run_until_it_is_deleted() -> None:
    with Cluster(player=Scripted(lambda pod: Run(seconds=FOREVER))) as cluster:
        api = clients(cluster)
        api.create_ray_job(ray_job())
        cluster.wait_for(lambda: len(cluster.pods("Running")) == 4)
        kinds = [pod["metadata"]["labels"].get("ray.io/node-type", "submitter") for pod in cluster.pods()]
        assert sorted(kinds) == ["head", "submitter", "worker", "worker"]
        assert state(cluster)["jobStatus"] == "RUNNING"
        api.custom.delete_namespaced_custom_object("ray.io", "v1", NAME, "rayjobs", "work")
        cluster.wait_for(lambda: not cluster.pods())
        assert not any(cluster.objects(kind) for kind in ("RayJob", "RayCluster", "Job"))


def test_a_ray_job_past_its_deadline_is_failed() -> None:
    with Cluster(player=Scripted(lambda pod: Run(seconds=FOREVER))) as cluster:
        clients(cluster).create_ray_job(ray_job(activeDeadlineSeconds=1))
        assert over(cluster)["reason"] == "DeadlineExceeded"
        cluster.wait_for(lambda: not cluster.pods())


def test_a_suspended_ray_job_has_no_pods() -> None:
    with Cluster() as cluster:
        clients(cluster).create_ray_job(ray_job(suspend=True))
        cluster.wait_for(lambda: state(cluster).get("jobDeploymentStatus") == "Suspended")
        assert cluster.pods() == []


def test_without_a_submitters_template_the_heads_image_submits() -> None:
    with Cluster() as cluster:
        document = ray_job()
        del document["spec"]["submitterPodTemplate"]
        clients(cluster).create_ray_job(document)
        (job,) = cluster.wait_for(lambda: cluster.objects("Job"))
        assert job["spec"]["template"]["spec"]["containers"][0]["image"] == IMAGE
