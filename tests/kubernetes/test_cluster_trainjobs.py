"""The stand-in's Kubeflow Trainer and JobSets."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest

from tests.kubernetes.clients import IMAGE, POLICY, clients, conditions, container, ended, refusal, running
from tests.kubernetes.cluster import FOREVER, NAME, Cluster, Run, Scripted
from tests.kubernetes.cluster.nodes import Ended, Play

RUNTIME: dict[str, Any] = {
    "apiVersion": "trainer.kubeflow.org/v1alpha1",
    "kind": "ClusterTrainingRuntime",
    "metadata": {"name": "mmbert-torch"},
    "spec": {
        "mlPolicy": {"numNodes": 1, "torch": {}},
        "template": {
            "spec": {
                "failurePolicy": {
                    "maxRestarts": 1,
                    "rules": [
                        {
                            "name": "for_good",
                            "action": "FailJobSet",
                            "onJobFailureReasons": ["PodFailurePolicy"],
                        }
                    ],
                },
                "replicatedJobs": [
                    {
                        "name": "node",
                        "template": {
                            "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
                            "spec": {
                                "backoffLimit": 0,
                                "podFailurePolicy": POLICY,
                                "template": {
                                    "spec": {
                                        "restartPolicy": "Never",
                                        "containers": [container(name="node", image="none")],
                                        "volumes": [{"name": "work", "emptyDir": {}}],
                                    }
                                },
                            },
                        },
                    }
                ],
            }
        },
    },
}


def train_job(name: str = "work", nodes: int = 2, **spec: Any) -> dict[str, Any]:
    trainer = {"image": IMAGE, "command": ["mmbert"], "args": ["run", "train"], "numNodes": nodes}
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": name},
        "spec": {"runtimeRef": {"name": "mmbert-torch"}, "trainer": trainer, **spec},
    }


class Recording:
    """A scripted player that keeps what it was given to play."""

    def __init__(self, code: int = 0) -> None:
        self.scripted = Scripted(lambda pod: Run(code=code))
        self.played: list[Play] = []

    def play(self, play: Play) -> Ended:
        self.played.append(play)
        return self.scripted.play(play)

    def close(self) -> None:
        pass


def test_each_nodes_pod_has_torchruns_variables_and_a_name() -> None:
    player = Recording()
    with Cluster(player=player) as cluster:
        cluster.add(RUNTIME)
        clients(cluster).create_train_job(train_job())
        done = ended(cluster, kind="TrainJob")
        assert conditions(done) == {"Complete": "AllJobsCompleted"}
        assert {pod["spec"]["hostname"] for pod in cluster.pods()} == {"work-node-0-0", "work-node-0-1"}
        assert {pod["spec"]["subdomain"] for pod in cluster.pods()} == {"work"}
        (spec,) = (job["spec"] for job in cluster.objects("Job"))
        assert spec["template"]["spec"]["containers"][0]["args"] == ["run", "train"]
    found = sorted(({**play.environment} for play in player.played), key=lambda found: found["PET_NODE_RANK"])
    common = {
        "PET_NNODES": "2",
        "PET_NPROC_PER_NODE": "auto",
        "PET_MASTER_ADDR": "work-node-0-0.work",
        "PET_MASTER_PORT": "29500",
    }
    wanted = [{"PET_NODE_RANK": str(n), "JOB_COMPLETION_INDEX": str(n), **common} for n in range(2)]
    assert found == wanted
    assert {"work-node-0-0.work", "work-node-0-1.work"} <= set(player.played[0].hosts)


def test_patches_are_merged_into_the_runtime() -> None:
    mount = {"name": "shared-memory", "mountPath": "/dev/shm"}  # noqa: S108
    pod_spec = {
        "nodeSelector": {"kubernetes.io/hostname": "node-1"},
        "volumes": [{"name": "shared-memory", "emptyDir": {"medium": "Memory"}}],
        "containers": [{"name": "node", "volumeMounts": [mount]}],
    }
    replicated = {"name": "node", "template": {"spec": {"template": {"spec": pod_spec}}}}
    patch = {"manager": "mmbert.dev/launcher"}
    patch |= {"trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [replicated]}}}}  # type: ignore[dict-item]
    with Cluster() as cluster:
        cluster.add(RUNTIME)
        clients(cluster).create_train_job(train_job(runtimePatches=[patch]))
        ended(cluster, kind="TrainJob")
        spec = cluster.pods()[0]["spec"]
        assert spec["nodeName"] == "node-1"
        assert [volume["name"] for volume in spec["volumes"]] == ["work", "shared-memory"]
        assert spec["containers"][0]["volumeMounts"] == [mount]
        assert spec["containers"][0]["image"] == IMAGE


def test_a_failure_for_good_fails_the_train_job() -> None:
    with Cluster(player=Scripted(lambda pod: Run(code=2))) as cluster:
        cluster.add(RUNTIME)
        clients(cluster).create_train_job(train_job())
        done = ended(cluster, kind="TrainJob")
        assert conditions(done) == {"Failed": "FailJobSetFailurePolicyAction"}
        assert "failed with exit code 2 matching FailJob rule" in done["status"]["conditions"][-1]["message"]


def test_other_failures_restart_all_jobs_as_often_as_the_runtime_says() -> None:
    codes = itertools.chain([3], itertools.repeat(0))

    def behave(pod: dict[str, Any]) -> Run:
        return Run(code=next(codes)) if pod["spec"]["hostname"].endswith("-0") else Run()

    with Cluster(player=Scripted(behave)) as cluster:
        cluster.add(RUNTIME)
        clients(cluster).create_train_job(train_job())
        assert "Complete" in conditions(ended(cluster, kind="TrainJob"))
        assert cluster.objects("JobSet")[0]["status"]["restarts"] == 1
    with Cluster(player=Scripted(lambda pod: Run(code=3))) as cluster:
        cluster.add(RUNTIME)
        clients(cluster).create_train_job(train_job())
        assert conditions(ended(cluster, kind="TrainJob")) == {"Failed": "ReachedMaxRestarts"}


@pytest.mark.parametrize("what", ["evict", "preempt", "lose_node"])
def test_a_disrupted_nodes_pod_comes_again(what: str) -> None:
    with Cluster(player=Scripted(lambda pod: Run(seconds=FOREVER))) as cluster:
        cluster.add(RUNTIME)
        clients(cluster).create_train_job(train_job())
        first = running(cluster, 2)
        getattr(cluster, what)(first[0])
        gone = first[0]["metadata"]["uid"]
        now = cluster.wait_for(
            lambda: (
                (found := cluster.pods("Running"))
                and len(found) == 2
                and gone not in [pod["metadata"]["uid"] for pod in found]
                and found
            )
        )
        assert {pod["spec"]["hostname"] for pod in now} == {"work-node-0-0", "work-node-0-1"}
        assert conditions(cluster.objects("TrainJob")[0]) == {}


def test_a_deleted_train_job_leaves_nothing() -> None:
    with Cluster(player=Scripted(lambda pod: Run(seconds=FOREVER))) as cluster:
        cluster.add(RUNTIME)
        api = clients(cluster)
        api.create_train_job(train_job())
        running(cluster, 2)
        place = ("trainer.kubeflow.org", "v1alpha1", NAME, "trainjobs", "work")
        api.custom.delete_namespaced_custom_object(*place, propagation_policy="Foreground")
        cluster.wait_for(lambda: not cluster.objects("TrainJob"))
        assert not any(cluster.objects(kind) for kind in ("JobSet", "Job", "Pod", "Service"))


def test_a_train_job_past_its_deadline_is_failed() -> None:
    with Cluster(player=Scripted(lambda pod: Run(seconds=FOREVER))) as cluster:
        cluster.add(RUNTIME)
        clients(cluster).create_train_job(train_job(activeDeadlineSeconds=1))
        assert conditions(ended(cluster, kind="TrainJob")) == {"Failed": "DeadlineExceeded"}
        cluster.wait_for(lambda: not cluster.pods())


def test_a_train_job_without_its_runtime_is_refused() -> None:
    with Cluster() as cluster:
        code, status = refusal(lambda: clients(cluster).create_train_job(train_job()))
        assert code == 403
        assert "must be created before the TrainJob is created" in status["message"]


def test_torchruns_variables_are_the_trainers() -> None:
    with Cluster() as cluster:
        cluster.add(RUNTIME)
        document = train_job()
        document["spec"]["trainer"]["env"] = [{"name": "PET_NNODES", "value": "3"}]
        _, status = refusal(lambda: clients(cluster).create_train_job(document))
        assert "must not have reserved envs" in status["message"]


def test_a_patch_sets_no_variables_of_the_trainer() -> None:
    with Cluster() as cluster:
        cluster.add(RUNTIME)
        pod_spec = {"containers": [{"name": "node", "env": [{"name": "A", "value": "b"}]}]}
        replicated = {"name": "node", "template": {"spec": {"template": {"spec": pod_spec}}}}
        patch = {"manager": "x", "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [replicated]}}}}
        code, status = refusal(lambda: clients(cluster).create_train_job(train_job(runtimePatches=[patch])))
        assert code == 403
        assert "must not have envs for the node container" in status["message"]


def test_a_runtime_with_a_field_that_is_none_is_refused() -> None:
    with Cluster() as cluster:
        document = copy.deepcopy(RUNTIME)
        document["spec"]["mlPolicy"]["torch"] = {"numProcPerNode": "auto"}
        place = ("trainer.kubeflow.org", "v1alpha1", "clustertrainingruntimes")
        create = clients(cluster).custom.create_cluster_custom_object
        code, status = refusal(lambda: create(*place, document))
        assert (code, status["reason"]) == (400, "BadRequest")
        assert 'unknown field "spec.mlPolicy.torch.numProcPerNode"' in status["message"]
