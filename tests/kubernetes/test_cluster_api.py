"""The stand-in's API server: names, versions, selectors, watches, deletion, access, faults."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from kubernetes import client, config, watch
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from tests.kubernetes.clients import clients, job, pod, refusal, running
from tests.kubernetes.cluster import FOREVER, NAME, Cluster, Run, Scripted


def waiting() -> Scripted:
    return Scripted(lambda pod: Run(["at work"], seconds=FOREVER))


def lingering(go: threading.Event) -> Iterator[str]:
    """Of a pod that does not end, though asked to, before this is set."""
    yield "at work"
    go.wait(5)


def service(name: str, **meta: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, **meta}, "spec": {"clusterIP": "None"}}


def test_a_cluster_is_there_at_once() -> None:
    with Cluster() as cluster:
        assert client.VersionApi(clients(cluster).core.api_client).get_code().git_version.startswith("v1.")


def test_who_has_no_token_is_refused() -> None:
    with Cluster() as cluster:
        api = clients(cluster)
        api.core.api_client.configuration.api_key.clear()
        code, status = refusal(lambda: api.core.list_namespaced_pod(NAME))
        assert (code, status["reason"]) == (401, "Unauthorized")


def test_what_is_not_there_is_not_found() -> None:
    with Cluster() as cluster:
        api = clients(cluster)
        code, status = refusal(lambda: api.batch.read_namespaced_job("none", NAME))
        assert (code, status["reason"]) == (404, "NotFound")
        assert status["message"] == 'jobs.batch "none" not found'
        assert status["details"] == {"name": "none", "group": "batch", "kind": "jobs"}
        code, status = refusal(lambda: api.batch.create_namespaced_job("elsewhere", job()))
        assert (code, status["message"]) == (404, 'namespaces "elsewhere" not found')
        code, status = refusal(lambda: client.AppsV1Api(api.core.api_client).list_namespaced_deployment(NAME))
        assert (code, status["message"]) == (404, "the server could not find the requested resource")


def test_a_name_is_taken_once() -> None:
    with Cluster() as cluster:
        api = clients(cluster)
        api.create_job(job())
        code, status = refusal(lambda: api.create_job(job()))
        assert (code, status["reason"]) == (409, "AlreadyExists")
        assert status["message"] == 'jobs.batch "work" already exists'


def test_a_name_is_taken_until_its_object_is_gone() -> None:
    go = threading.Event()
    with Cluster(player=Scripted(lambda pod: Run(lingering(go)))) as cluster:
        api = clients(cluster)
        api.create_job(job())
        running(cluster)
        api.batch.delete_namespaced_job("work", NAME, propagation_policy="Foreground")
        code, status = refusal(lambda: api.create_job(job()))
        assert (code, status["reason"]) == (409, "AlreadyExists")
        assert status["message"].startswith("object is being deleted: ")
        go.set()
        cluster.wait_for(lambda: not cluster.objects("Job"))
        api.create_job(job())


def test_of_two_who_write_one_is_refused() -> None:
    with Cluster() as cluster:
        api = clients(cluster)
        made = api.core.create_namespaced_service(NAME, service("one"))
        made.metadata.labels = {"who": "first"}
        newer = api.core.replace_namespaced_service("one", NAME, made)
        assert int(newer.metadata.resource_version) > int(made.metadata.resource_version)
        code, status = refusal(lambda: api.core.replace_namespaced_service("one", NAME, made))
        assert (code, status["reason"]) == (409, "Conflict")
        assert "the object has been modified" in status["message"]


def test_a_generated_name_has_a_suffix() -> None:
    with Cluster() as cluster:
        document = {**pod(), "metadata": {"generateName": "some-"}}
        made = clients(cluster).core.create_namespaced_pod(NAME, document)
        assert made.metadata.name.startswith("some-")
        assert len(made.metadata.name) == len("some-") + 5


def test_a_dry_run_stores_nothing() -> None:
    with Cluster() as cluster:
        clients(cluster).core.create_namespaced_service(NAME, service("one"), dry_run="All")
        assert cluster.objects("Service") == []


@pytest.mark.parametrize(
    ("selector", "found"),
    [
        ("app=a", ["1", "2"]),
        ("app==a,tier!=x", ["2"]),
        ("app in (a, b)", ["1", "2", "3"]),
        ("app notin (a)", ["3", "4"]),
        ("tier", ["1"]),
        ("!app", ["4"]),
    ],
)
def test_labels_select(selector: str, found: list[str]) -> None:
    with Cluster() as cluster:
        labels: list[dict[str, str]] = [{"app": "a", "tier": "x"}, {"app": "a"}, {"app": "b"}, {}]
        for number, each in enumerate(labels, 1):
            cluster.add(service(f"s{number}", labels=each))
        listed = clients(cluster).core.list_namespaced_service(NAME, label_selector=selector)
        assert [item.metadata.name for item in listed.items] == [f"s{number}" for number in found]


def test_fields_select_where_they_are_supported() -> None:
    with Cluster() as cluster:
        api = clients(cluster)
        for name in ("one", "two"):
            api.core.create_namespaced_pod(NAME, pod(name))
        cluster.wait_for(lambda: len(cluster.pods("Succeeded")) == 2)
        listed = api.core.list_namespaced_pod(NAME, field_selector="metadata.name=two,status.phase!=Pending")
        assert [item.metadata.name for item in listed.items] == ["two"]
        told = api.core.list_namespaced_event(NAME, field_selector="involvedObject.name=one,reason=Scheduled")
        assert len(told.items) == 1
        code, status = refusal(lambda: api.core.list_namespaced_pod(NAME, field_selector="spec.hostname=x"))
        assert (code, status["message"]) == (400, "field label not supported: spec.hostname")


def test_a_watch_goes_on_from_a_list() -> None:
    with Cluster() as cluster:
        api = clients(cluster)
        cluster.add(service("one"))
        listed = api.core.list_namespaced_service(NAME)
        made = api.core.create_namespaced_service(NAME, service("two"))
        made.metadata.labels = {"a": "b"}
        api.core.replace_namespaced_service("two", NAME, made)
        api.core.delete_namespaced_service("one", NAME)
        events = watch.Watch().stream(
            api.core.list_namespaced_service,
            NAME,
            resource_version=listed.metadata.resource_version,
            timeout_seconds=5,
        )
        seen = [(event["type"], event["object"].metadata.name) for _, event in zip(range(3), events, strict=False)]
        assert seen == [("ADDED", "two"), ("MODIFIED", "two"), ("DELETED", "one")]


def test_a_watch_without_a_version_begins_with_what_is_there() -> None:
    with Cluster() as cluster:
        cluster.add(service("one"))
        events = watch.Watch().stream(clients(cluster).core.list_namespaced_service, NAME, timeout_seconds=5)
        first = next(events)
        assert (first["type"], first["object"].metadata.name) == ("ADDED", "one")


def test_what_is_no_longer_selected_is_deleted_for_a_watch() -> None:
    with Cluster() as cluster:
        api = clients(cluster)
        made = api.core.create_namespaced_service(NAME, service("one", labels={"app": "a"}))
        made.metadata.labels = {"app": "b"}
        api.core.replace_namespaced_service("one", NAME, made)
        version = made.metadata.resource_version
        events = watch.Watch().stream(
            api.core.list_namespaced_service, NAME, label_selector="app=a", resource_version=version, timeout_seconds=5
        )
        assert next(events)["type"] == "DELETED"


def test_a_watch_ends_after_its_time_with_a_bookmark() -> None:
    with Cluster() as cluster:
        response = clients(cluster).core.list_namespaced_service(
            NAME, watch=True, timeout_seconds=1, allow_watch_bookmarks=True, _preload_content=False
        )
        (event,) = map(json.loads, b"".join(response.stream()).splitlines())
        assert event["type"] == "BOOKMARK"
        assert event["object"]["metadata"] == {"resourceVersion": str(cluster.store.version)}


def test_a_version_that_was_forgotten_is_gone() -> None:
    with Cluster() as cluster:
        api = clients(cluster)
        version = api.core.list_namespaced_service(NAME).metadata.resource_version
        cluster.add(service("one"))
        cluster.store.compact()
        events = watch.Watch().stream(
            api.core.list_namespaced_service, NAME, resource_version=version, timeout_seconds=5
        )
        with pytest.raises(ApiException) as error:
            next(events)
        assert error.value.status == 410


def test_a_fault_says_gone_to_an_open_watch() -> None:
    with Cluster() as cluster:
        response = clients(cluster).core.list_namespaced_service(NAME, watch=True, _preload_content=False)
        cluster.faults.gone()
        (event,) = map(json.loads, b"".join(response.stream()).splitlines())
        assert (event["type"], event["object"]["code"], event["object"]["reason"]) == ("ERROR", 410, "Expired")


def test_a_fault_cuts_an_open_watch() -> None:
    with Cluster() as cluster:
        api = clients(cluster)
        response = api.core.list_namespaced_service(NAME, watch=True, _preload_content=False)
        cluster.faults.cut_watches()
        with pytest.raises(HTTPError):
            list(response.stream())
        assert api.core.list_namespaced_service(NAME).items == []


@pytest.mark.parametrize(
    ("status", "reason"), [(429, "TooManyRequests"), (503, "ServiceUnavailable"), (500, "InternalError")]
)
def test_a_request_fails_as_often_as_told(status: int, reason: str) -> None:
    with Cluster() as cluster:
        api = clients(cluster)
        cluster.faults.fail("GET", "/services", status=status, times=2)
        for _ in range(2):
            code, told = refusal(lambda: api.core.list_namespaced_service(NAME))
            assert (code, told["reason"]) == (status, reason)
        assert api.core.list_namespaced_service(NAME).items == []


def test_too_many_requests_says_when_to_come_again() -> None:
    with Cluster() as cluster:
        cluster.faults.fail("*", "/services", status=429)
        with pytest.raises(ApiException) as error:
            clients(cluster).core.list_namespaced_service(NAME)
        assert error.value.headers["Retry-After"] == "1"


def test_an_answer_can_be_lost_though_all_was_done() -> None:
    with Cluster() as cluster:
        api = clients(cluster)
        cluster.faults.lose_answers("POST", "/jobs")
        with pytest.raises(HTTPError):
            api.create_job(job())
        assert refusal(lambda: api.create_job(job()))[0] == 409


def test_a_server_that_is_gone_answers_nobody() -> None:
    with Cluster() as cluster:
        api = clients(cluster)
        api.core.list_namespaced_service(NAME)
        cluster.stop_server()
        with pytest.raises(HTTPError):
            api.core.list_namespaced_service(NAME)


def test_what_is_forbidden_names_verb_resource_group_and_namespace() -> None:
    with Cluster() as cluster:
        api = clients(cluster)
        cluster.forbid("create", "jobs")
        code, status = refusal(lambda: api.create_job(job()))
        assert (code, status["reason"]) == (403, "Forbidden")
        assert status["message"] == (
            'jobs.batch is forbidden: User "system:serviceaccount:mmbert:mmbert-launcher" cannot create resource '
            '"jobs" in API group "batch" in the namespace "mmbert"'
        )
        assert status["details"] == {"kind": "jobs", "group": "batch"}
        cluster.forbid("get", "pods/log")
        _, status = refusal(lambda: api.core.read_namespaced_pod_log("one", NAME))
        assert 'cannot get resource "pods/log" in API group ""' in status["message"]


def test_a_review_says_what_one_may() -> None:
    with Cluster() as cluster:
        cluster.forbid("create", "jobs")
        api = client.AuthorizationV1Api(clients(cluster).core.api_client)

        def may(verb: str) -> bool:
            asked = {"spec": {"resourceAttributes": {"verb": verb, "resource": "jobs", "namespace": NAME}}}
            return bool(api.create_self_subject_access_review(asked).status.allowed)

        assert (may("create"), may("delete")) == (False, True)


def test_a_job_is_deleted_with_its_pods_in_the_background() -> None:
    with Cluster(player=waiting()) as cluster:
        api = clients(cluster)
        api.create_job(job())
        running(cluster)
        api.batch.delete_namespaced_job("work", NAME, propagation_policy="Background")
        assert cluster.objects("Job") == []
        cluster.wait_for(lambda: not cluster.pods())


def test_a_job_deleted_in_the_foreground_stays_until_its_pods_are_gone() -> None:
    go = threading.Event()
    with Cluster(player=Scripted(lambda pod: Run(lingering(go)))) as cluster:
        api = clients(cluster)
        api.create_job(job())
        running(cluster)
        api.batch.delete_namespaced_job("work", NAME, propagation_policy="Foreground")
        cluster.wait_for(lambda: "deletionTimestamp" in cluster.pods()[0]["metadata"])
        assert cluster.objects("Job")[0]["metadata"]["finalizers"] == ["foregroundDeletion"]
        go.set()
        cluster.wait_for(lambda: not cluster.objects("Job"))
        assert cluster.pods() == []


def test_a_job_deleted_without_a_policy_leaves_its_pods() -> None:
    with Cluster(player=waiting()) as cluster:
        api = clients(cluster)
        api.create_job(job())
        running(cluster)
        api.batch.delete_namespaced_job("work", NAME)
        cluster.wait_for(lambda: not cluster.objects("Job"))
        (left,) = cluster.pods("Running")
        assert left["metadata"]["ownerReferences"] == []
        assert left["metadata"]["finalizers"] == []


def test_a_deletion_is_of_the_object_that_was_meant() -> None:
    with Cluster(player=waiting()) as cluster:
        api = clients(cluster)
        made = api.create_job(job())
        options = {"preconditions": {"uid": "of-another"}, "propagationPolicy": "Background"}
        code, status = refusal(lambda: api.batch.delete_namespaced_job("work", NAME, body=options))
        assert (code, status["reason"]) == (409, "Conflict")
        assert "Precondition failed: UID in precondition: of-another" in status["message"]
        options["preconditions"] = {"uid": made.metadata.uid}
        assert api.batch.delete_namespaced_job("work", NAME, body=options).status == "Success"


def test_what_belongs_to_an_object_goes_with_it() -> None:
    with Cluster(player=waiting()) as cluster:
        api = clients(cluster)
        made = api.create_job(job())
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": "work", "uid": made.metadata.uid}
        api.core.create_namespaced_service(NAME, service("owned", ownerReferences=[owner]))
        api.core.create_namespaced_service(NAME, service("free"))
        api.batch.delete_namespaced_job("work", NAME, propagation_policy="Background")
        cluster.wait_for(lambda: [item["metadata"]["name"] for item in cluster.objects("Service")] == ["free"])


def test_a_finalizer_holds_an_object() -> None:
    with Cluster() as cluster:
        api = clients(cluster)
        api.core.create_namespaced_service(NAME, service("one", finalizers=["example.com/kept"]))
        api.core.delete_namespaced_service("one", NAME)
        held = api.core.read_namespaced_service("one", NAME)
        assert held.metadata.deletion_timestamp
        held.metadata.finalizers = []
        api.core.replace_namespaced_service("one", NAME, held)
        assert cluster.objects("Service") == []


def test_the_kubeconfig_names_the_namespace() -> None:
    with Cluster() as cluster:
        _, active = config.list_kube_config_contexts(str(cluster.kubeconfig))
        assert active["context"]["namespace"] == NAME
