"""The stand-in's pods: scheduling, starting, ending, logs."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from kubernetes import watch
from urllib3.exceptions import HTTPError

from tests.kubernetes.clients import clients, conditions, container, pod, refusal, running
from tests.kubernetes.cluster import FOREVER, NAME, Cluster, Node, Run, Scripted


def waiting(cluster: Cluster) -> dict[str, Any]:
    """Why the only pod's container waits, when it is told."""

    def found() -> dict[str, Any] | None:
        statuses = cluster.pods()[0]["status"].get("containerStatuses") or [{"state": {}}]
        state = statuses[0]["state"].get("waiting", {})
        return state if state.get("message") else None

    return dict(cluster.wait_for(found))


def test_a_pod_runs_and_tells_how_it_ended() -> None:
    with Cluster(player=Scripted(lambda pod: Run(["all is well", "error: it is not"], code=2))) as cluster:
        api = clients(cluster)
        api.core.create_namespaced_pod(NAME, pod())
        cluster.wait_for(lambda: cluster.pods("Failed"))
        status = api.core.read_namespaced_pod("one", NAME).status
        ended = status.container_statuses[0].state.terminated
        assert (ended.exit_code, ended.reason) == (2, "Error")
        assert ended.message == "all is well\nerror: it is not"
        assert api.core.read_namespaced_pod_log("one", NAME) == "all is well\nerror: it is not\n"


TAINT = {"key": "gpu", "value": "yes", "effect": "NoSchedule"}


def asking(**limits: str) -> dict[str, Any]:
    return {"containers": [container(resources={"limits": limits})]}


@pytest.mark.parametrize(
    ("node", "spec", "reason"),
    [
        (Node(), {"nodeSelector": {"pool": "h100"}}, "node(s) didn't match Pod's node affinity/selector"),
        (Node(resources={"cpu": "4", "pods": "9"}), asking(cpu="8"), "Insufficient cpu"),
        (Node(), asking(**{"nvidia.com/gpu": "9"}), "Insufficient nvidia.com/gpu"),
        (Node(taints=(TAINT,)), {}, "node(s) had untolerated taint {gpu: yes}"),
    ],
)
def test_a_pod_that_fits_no_node_tells_the_schedulers_reason(node: Node, spec: Any, reason: str) -> None:
    with Cluster(nodes=[node, replace(node, name="b")]) as cluster:
        clients(cluster).core.create_namespaced_pod(NAME, pod(**spec))
        found = cluster.wait_for(lambda: cluster.pods()[0]["status"].get("conditions"))
        assert (found[0]["type"], found[0]["reason"]) == ("PodScheduled", "Unschedulable")
        assert found[0]["message"] == f"0/2 nodes are available: 2 {reason}."
        assert any(event["reason"] == "FailedScheduling" for event in cluster.events)


def test_a_pod_waits_until_there_are_nodes() -> None:
    with Cluster() as cluster:
        cluster.no_nodes("0/4 nodes are available: 4 node(s) were unschedulable.")
        clients(cluster).core.create_namespaced_pod(NAME, pod())
        cluster.wait_for(lambda: cluster.pods()[0]["status"].get("conditions"))
        assert cluster.pods("Pending")
        cluster.no_nodes("")
        cluster.wait_for(lambda: cluster.pods("Succeeded"))


def test_a_toleration_and_a_selector_lead_to_the_node() -> None:
    taint = {"key": "nvidia.com/gpu", "effect": "NoSchedule"}
    nodes = [Node(), Node("gpus", labels={"pool": "h100"}, taints=(taint,))]
    with Cluster(nodes=nodes) as cluster:
        spec = {"tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}], "nodeSelector": {"pool": "h100"}}
        clients(cluster).core.create_namespaced_pod(NAME, pod(**spec))
        assert cluster.wait_for(lambda: cluster.pods("Succeeded"))[0]["spec"]["nodeName"] == "gpus"


@pytest.mark.parametrize("reason", ["ErrImagePull", "ImagePullBackOff", "CreateContainerConfigError"])
def test_a_container_that_cannot_start_waits_with_its_reason(reason: str) -> None:
    with Cluster(player=Scripted(lambda pod: Run(reason=reason, message="not to be had"))) as cluster:
        api = clients(cluster)
        api.core.create_namespaced_pod(NAME, pod())
        assert waiting(cluster) == {"reason": reason, "message": "not to be had"}
        code, status = refusal(lambda: api.core.read_namespaced_pod_log("one", NAME))
        assert (code, status["message"]) == (400, f'container "main" in pod "one" is waiting to start: {reason}')
        api.core.delete_namespaced_pod("one", NAME)
        cluster.wait_for(lambda: not cluster.pods())


def test_an_image_name_that_is_none_is_told() -> None:
    with Cluster() as cluster:
        clients(cluster).core.create_namespaced_pod(NAME, pod(containers=[container(image="Not/An:Image:Name")]))
        assert waiting(cluster)["reason"] == "InvalidImageName"


def test_a_secret_that_is_not_there_keeps_the_container_waiting() -> None:
    with Cluster() as cluster:
        asked = container(envFrom=[{"secretRef": {"name": "mmbert-secrets"}}])
        clients(cluster).core.create_namespaced_pod(NAME, pod(containers=[asked]))
        assert waiting(cluster) == {
            "reason": "CreateContainerConfigError",
            "message": 'secret "mmbert-secrets" not found',
        }


def test_variables_come_with_their_values() -> None:
    class Keeping:
        def play(self, play: Any) -> Any:
            seen.update(play.environment)
            play.started()
            return Scripted().play(play)

        def close(self) -> None:
            pass

    seen: dict[str, str] = {}
    with Cluster(player=Keeping()) as cluster:
        data = {"TOKEN": base64.b64encode(b"hidden").decode()}
        cluster.add({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "mmbert-secrets"}, "data": data})
        meta = {"name": "mmbert-settings"}
        cluster.add({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"PLACE": "here"}})
        variables = [
            {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "mmbert-settings", "key": "PLACE"}}},
            {"name": "B", "value": "$(A) and there"},
            {"name": "C", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "D", "valueFrom": {"secretKeyRef": {"name": "none", "key": "x", "optional": True}}},
        ]
        sources = [{"secretRef": {"name": "mmbert-secrets"}}]
        clients(cluster).core.create_namespaced_pod(NAME, pod(containers=[container(env=variables, envFrom=sources)]))
        cluster.wait_for(lambda: cluster.pods("Succeeded"))
    assert seen == {"TOKEN": "hidden", "A": "here", "B": "here and there", "C": "one"}


def test_a_deleted_pod_ends_and_goes() -> None:
    with Cluster(player=Scripted(lambda pod: Run(seconds=FOREVER, stopped=130))) as cluster:
        api = clients(cluster)
        api.core.create_namespaced_pod(NAME, pod())
        running(cluster)
        events = watch.Watch().stream(api.core.list_namespaced_pod, NAME, timeout_seconds=5)
        assert api.core.delete_namespaced_pod("one", NAME).metadata.deletion_timestamp
        for event in events:
            if event["type"] == "DELETED":
                assert event["object"].status.container_statuses[0].state.terminated.exit_code == 130
                break
        assert cluster.pods() == []


def test_a_pod_that_does_not_listen_is_killed() -> None:
    with Cluster(player=Scripted(lambda pod: Run(seconds=FOREVER, stopped=None))) as cluster:
        cluster.add(pod())
        running(cluster)
        clients(cluster).core.delete_namespaced_pod("one", NAME, grace_period_seconds=1)
        cluster.wait_for(lambda: not cluster.pods())


def test_an_evicted_pod_stays_and_says_why() -> None:
    with Cluster(player=Scripted(lambda pod: Run(seconds=FOREVER))) as cluster:
        cluster.add(pod())
        cluster.evict(running(cluster)[0])
        (found,) = cluster.wait_for(lambda: cluster.pods("Failed"))
        assert found["status"]["reason"] == "Evicted"
        assert conditions(found)["DisruptionTarget"] == "TerminationByKubelet"


def test_a_pod_out_of_memory_says_so() -> None:
    with Cluster(player=Scripted(lambda pod: Run(seconds=FOREVER))) as cluster:
        cluster.add(pod())
        cluster.oom(running(cluster)[0])
        (found,) = cluster.wait_for(lambda: cluster.pods("Failed"))
        ended = found["status"]["containerStatuses"][0]["state"]["terminated"]
        assert (ended["reason"], ended["exitCode"]) == ("OOMKilled", 137)
        assert "DisruptionTarget" not in conditions(found)


def test_the_log_of_a_lost_node_is_out_of_reach() -> None:
    with Cluster(player=Scripted(lambda pod: Run(["here"], seconds=FOREVER))) as cluster:
        meta = {"name": "one", "finalizers": ["example.com/kept"]}
        cluster.add({**pod(), "metadata": meta})
        cluster.lose_node(running(cluster)[0])
        code, status = refusal(lambda: clients(cluster).core.read_namespaced_pod_log("one", NAME))
        assert code == 500
        assert "i/o timeout" in status["message"]


def lines(go: threading.Event) -> Iterator[str]:
    yield "one"
    yield "two"
    go.wait(5)
    yield "three"


def test_a_followed_log_ends_with_the_container() -> None:
    go = threading.Event()
    with Cluster(player=Scripted(lambda pod: Run(lines(go)))) as cluster:
        api = clients(cluster)
        cluster.add(pod())
        running(cluster)
        followed = watch.Watch().stream(api.core.read_namespaced_pod_log, "one", NAME, timestamps=True)
        first = next(followed)
        assert first.endswith(" one")
        go.set()
        assert [line.split(" ", 1)[1] for line in followed] == ["two", "three"]
        since = api.core.read_namespaced_pod_log("one", NAME, since_seconds=100, tail_lines=1)
        assert since == "three\n"


@pytest.mark.parametrize("is_quiet", [True, False])
def test_a_followed_log_can_end_too_early(is_quiet: bool) -> None:
    go = threading.Event()
    with Cluster(player=Scripted(lambda pod: Run(lines(go)))) as cluster:
        api = clients(cluster)
        cluster.add(pod())
        running(cluster)
        cluster.faults.drop_logs(quietly=is_quiet)
        response = api.core.read_namespaced_pod_log("one", NAME, follow=True, _preload_content=False)
        if is_quiet:
            assert b"three" not in b"".join(response.stream())
        else:
            with pytest.raises(HTTPError):
                list(response.stream())
        go.set()
        cluster.wait_for(lambda: cluster.pods("Succeeded"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"securityContext": {}}, "allowPrivilegeEscalation != false"),
        ({"securityContext": {}}, "unrestricted capabilities"),
        ({"securityContext": {}}, "runAsNonRoot != true"),
        ({"securityContext": {}}, "seccompProfile"),
        ({"securityContext": {**container()["securityContext"], "runAsUser": 0}}, "runAsUser=0"),
        ({"securityContext": {**container()["securityContext"], "privileged": True}}, "privileged"),
        ({"ports": [{"containerPort": 1, "hostPort": 1}]}, "hostPort"),
    ],
)
def test_a_pod_that_is_not_restricted_is_refused(change: dict[str, Any], told: str) -> None:
    with Cluster() as cluster:
        document = pod(containers=[container(**change)])
        code, status = refusal(lambda: clients(cluster).core.create_namespaced_pod(NAME, document))
        assert code == 403
        assert 'pods "one" is forbidden: violates PodSecurity "restricted:latest": ' in status["message"]
        assert told in status["message"]


def test_a_pod_with_a_folder_of_the_node_is_refused() -> None:
    with Cluster() as cluster:
        document = pod(volumes=[{"name": "x", "hostPath": {"path": "/"}}], hostNetwork=True)
        _, status = refusal(lambda: clients(cluster).core.create_namespaced_pod(NAME, document))
        assert 'uses restricted volume type "hostPath"' in status["message"]
        assert "host namespaces (hostNetwork=true)" in status["message"]


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"serviceAccountName": "nobody"}, 'serviceaccount "nobody" not found'),
        ({"priorityClassName": "urgent"}, "no PriorityClass with name urgent was found"),
    ],
)
def test_a_pod_of_what_is_not_there_is_refused(spec: dict[str, Any], told: str) -> None:
    with Cluster() as cluster:
        code, status = refusal(lambda: clients(cluster).core.create_namespaced_pod(NAME, pod(**spec)))
        assert code == 403
        assert told in status["message"]


def test_a_pods_priority_is_that_of_its_class() -> None:
    with Cluster() as cluster:
        meta = {"name": "mmbert-training"}
        cluster.add({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": meta, "value": 1000})
        made = clients(cluster).core.create_namespaced_pod(NAME, pod(priorityClassName="mmbert-training"))
        assert made.spec.priority == 1000
