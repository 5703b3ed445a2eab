"""The stand-in's Jobs."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import pytest

from tests.kubernetes.clients import POLICY, clients, conditions, container, ended, job, running
from tests.kubernetes.cluster import FOREVER, NAME, Cluster, Run, Scripted


def codes(*each: int) -> Scripted:
    """Pods that end with these codes one after the other, the last one with all that follow."""
    rest = itertools.chain(each, itertools.repeat(each[-1]))
    return Scripted(lambda pod: Run(["a line", "the last line"], code=next(rest)))


def test_a_job_is_complete_when_its_pod_has_succeeded() -> None:
    with Cluster(player=codes(0)) as cluster:
        made = clients(cluster).create_job(job())
        assert made.metadata.resource_version
        assert made.spec.selector.match_labels == {"batch.kubernetes.io/controller-uid": made.metadata.uid}
        done = ended(cluster)
        assert conditions(done) == {"SuccessCriteriaMet": "CompletionsReached", "Complete": "CompletionsReached"}
        assert done["status"]["succeeded"] == 1
        (pod,) = cluster.pods()
        assert pod["metadata"]["labels"]["batch.kubernetes.io/job-name"] == "work"
        assert pod["metadata"].get("finalizers") == []
        assert pod["metadata"]["name"].startswith("work-")


def test_a_failed_pod_is_tried_again_up_to_the_backoff_limit() -> None:
    with Cluster(player=codes(3)) as cluster:
        clients(cluster).create_job(job(backoffLimit=2))
        done = ended(cluster)
        assert conditions(done) == {"FailureTarget": "BackoffLimitExceeded", "Failed": "BackoffLimitExceeded"}
        assert done["status"]["failed"] == len(cluster.pods()) == 3


def test_a_job_whose_third_pod_succeeds_is_complete() -> None:
    with Cluster(player=codes(3, 3, 0)) as cluster:
        clients(cluster).create_job(job(backoffLimit=2))
        assert "Complete" in conditions(ended(cluster))


@pytest.mark.parametrize("code", [1, 2, 137])
def test_an_exit_code_of_the_failure_policy_fails_the_job_at_once(code: int) -> None:
    with Cluster(player=codes(code)) as cluster:
        clients(cluster).create_job(job(backoffLimit=20, podFailurePolicy=POLICY))
        done = ended(cluster)
        assert conditions(done)["Failed"] == "PodFailurePolicy"
        (failed,) = (item for item in done["status"]["conditions"] if item["type"] == "Failed")
        name = cluster.pods()[0]["metadata"]["name"]
        wanted = f"Container main for pod {NAME}/{name} failed with exit code {code} matching FailJob rule at index 2"
        assert failed["message"] == wanted
        assert len(cluster.pods()) == 1


def test_an_ignored_exit_code_does_not_count() -> None:
    with Cluster(player=codes(130, 130, 0)) as cluster:
        clients(cluster).create_job(job(podFailurePolicy=POLICY))
        done = ended(cluster)
        assert "Complete" in conditions(done)
        assert "failed" not in done["status"]


@pytest.mark.parametrize("what", ["evict", "preempt", "drain", "lose_node"])
def test_a_disrupted_pod_is_replaced_without_counting(what: str) -> None:
    go = threading.Event()

    def behave(pod: dict[str, Any]) -> Run:
        return Run(code=0) if go.is_set() else Run(["at work"], seconds=FOREVER)

    with Cluster(player=Scripted(behave)) as cluster:
        clients(cluster).create_job(job(podFailurePolicy=POLICY))
        (first,) = running(cluster)
        go.set()
        getattr(cluster, what)(first)
        done = ended(cluster)
        assert "Complete" in conditions(done)
        assert "failed" not in done["status"]
        last = cluster.pods("Succeeded")[0]
        assert last["metadata"]["name"] != first["metadata"]["name"]
        if what == "lose_node":
            assert last["spec"]["nodeName"] != first["spec"]["nodeName"]


def test_without_a_policy_a_disruption_counts() -> None:
    with Cluster(player=Scripted(lambda pod: Run(seconds=FOREVER))) as cluster:
        clients(cluster).create_job(job())
        cluster.evict(running(cluster)[0])
        assert conditions(ended(cluster))["Failed"] == "BackoffLimitExceeded"


def test_a_pod_that_vanished_is_replaced() -> None:
    with Cluster(player=Scripted(lambda pod: Run(seconds=FOREVER))) as cluster:
        clients(cluster).create_job(job())
        (first,) = running(cluster)
        cluster.vanish(first)
        cluster.wait_for(lambda: [pod for pod in cluster.pods("Running") if pod["metadata"] != first["metadata"]])
        assert first["metadata"]["name"] not in {pod["metadata"]["name"] for pod in cluster.pods()}


def test_an_indexed_jobs_pods_know_their_index() -> None:
    seen = []

    def behave(pod: dict[str, Any]) -> Run:
        seen.append(pod)
        return Run()

    with Cluster(player=Scripted(behave)) as cluster:
        clients(cluster).create_job(job(completionMode="Indexed", completions=3, parallelism=3))
        done = ended(cluster)
        assert done["status"]["completedIndexes"] == "0-2"
        assert {pod["spec"]["hostname"] for pod in seen} == {"work-0", "work-1", "work-2"}
        for pod in seen:
            (variable,) = pod["spec"]["containers"][0]["env"]
            index = pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"]
            assert variable["name"] == "JOB_COMPLETION_INDEX"
            assert pod["metadata"]["name"].startswith(f"work-{index}-")


def test_the_replacement_of_an_indexed_pod_has_its_index() -> None:
    with Cluster(player=Scripted(lambda pod: Run(seconds=FOREVER))) as cluster:
        spec = {"completionMode": "Indexed", "completions": 2, "parallelism": 2, "podFailurePolicy": POLICY}
        clients(cluster).create_job(job(**spec))
        first = next(pod for pod in running(cluster, 2) if pod["spec"]["hostname"] == "work-1")
        cluster.preempt(first)
        cluster.wait_for(lambda: first["metadata"]["uid"] not in {pod["metadata"]["uid"] for pod in cluster.pods()})
        assert {pod["spec"]["hostname"] for pod in running(cluster, 2)} == {"work-0", "work-1"}


def test_a_job_that_fails_ends_its_other_pods_before_it_is_failed() -> None:
    def behave(pod: dict[str, Any]) -> Run:
        return Run(code=2) if pod["spec"]["hostname"] == "work-0" else Run(seconds=FOREVER, stopped=130)

    with Cluster(player=Scripted(behave)) as cluster:
        spec = {"completionMode": "Indexed", "completions": 2, "parallelism": 2, "podFailurePolicy": POLICY}
        clients(cluster).create_job(job(**spec))
        assert conditions(ended(cluster))["Failed"] == "PodFailurePolicy"
        assert cluster.pods("Running") == []


def test_a_job_past_its_deadline_is_failed() -> None:
    with Cluster(player=Scripted(lambda pod: Run(seconds=FOREVER))) as cluster:
        clients(cluster).create_job(job(activeDeadlineSeconds=1))
        assert conditions(ended(cluster))["Failed"] == "DeadlineExceeded"


def test_a_suspended_job_has_no_pods_until_it_is_resumed() -> None:
    with Cluster() as cluster:
        api = clients(cluster)
        api.create_job(job(suspend=True))
        cluster.wait_for(lambda: "Suspended" in conditions(cluster.objects("Job")[0]))
        assert cluster.pods() == []
        document = cluster.objects("Job")[0]
        document["spec"]["suspend"] = False
        api.batch.replace_namespaced_job("work", NAME, document)
        assert "Complete" in conditions(ended(cluster))


def test_a_finished_job_is_deleted_after_its_time_to_live() -> None:
    with Cluster() as cluster:
        clients(cluster).create_job(job(ttlSecondsAfterFinished=0))
        cluster.wait_for(lambda: not cluster.objects("Job") and not cluster.pods())


def test_pods_that_are_refused_are_an_event_of_the_job() -> None:
    with Cluster() as cluster:
        clients(cluster).create_job(job(pod_spec={"containers": [container(securityContext={})]}))
        (event,) = cluster.wait_for(lambda: [e for e in cluster.events if e["reason"] == "FailedCreate"])
        assert 'violates PodSecurity "restricted:latest"' in event["message"]
        assert event["involvedObject"]["name"] == "work"
        assert cluster.pods() == []
