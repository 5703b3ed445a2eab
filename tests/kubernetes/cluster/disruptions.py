"""What happens to pods that their owner did not wish (Disruptions, "Pod disruption conditions")."""

from __future__ import annotations

from tests.kubernetes.cluster import deletion, events
from tests.kubernetes.cluster.kubelet import Kubelet
from tests.kubernetes.cluster.nodes import Ended
from tests.kubernetes.cluster.resources import NODE, POD
from tests.kubernetes.cluster.store import Object, Store, set_condition

_TARGET = "DisruptionTarget"


def evict(store: Store, kubelet: Kubelet, pod: Object) -> None:
    """Node-pressure Eviction: the kubelet ends the pod at once; it stays, with phase Failed and reason Evicted."""
    message = "The node was low on resource: ephemeral-storage. Threshold quantity: 10Gi, available: 1Gi."

    def outcome(item: Object, _: Ended) -> None:
        item["status"] |= {"phase": "Failed", "reason": "Evicted", "message": message}
        set_condition(item, _TARGET, "True", "TerminationByKubelet", message)

    events.record(store, pod, "Warning", "Evicted", message, "kubelet")
    kubelet.end(pod, outcome)


def preempt(store: Store, pod: Object) -> None:
    """Pod Priority and Preemption: the pod is marked, and deleted with its grace period."""
    message = "default-scheduler: preempting to accommodate a higher priority pod"
    store.change(POD, pod, lambda item: set_condition(item, _TARGET, "True", "PreemptionByScheduler", message))
    events.record(store, pod, "Normal", "Preempted", f"Preempted by a pod on node {_node(pod)}", "default-scheduler")
    deletion.delete(store, POD, pod["metadata"]["namespace"], pod["metadata"]["name"])


def drain(store: Store, pod: Object) -> None:
    """API-initiated Eviction, as `kubectl drain` and autoscalers do it."""
    why = "Eviction API: evicting"
    store.change(POD, pod, lambda item: set_condition(item, _TARGET, "True", "EvictionByEvictionAPI", why))
    deletion.delete(store, POD, pod["metadata"]["namespace"], pod["metadata"]["name"])


def oom(kubelet: Kubelet, pod: Object) -> None:
    """Assign Memory Resources, "Exceed a Container's memory limit": SIGKILL, reason OOMKilled, exit code 137."""

    def outcome(item: Object, _: Ended) -> None:
        item["status"]["phase"] = "Failed"
        for container in item["status"]["containerStatuses"]:
            container["state"]["terminated"] |= {"reason": "OOMKilled", "exitCode": 137}

    kubelet.end(pod, outcome)


def lose_node(store: Store, kubelet: Kubelet, pod: Object) -> None:
    """Nodes, "Node controller", and Non-graceful node shutdown: the node's state is unknown, its pods are deleted by
    their taint's end (real clusters wait five minutes), and since no kubelet answers the garbage collector of pods ends
    them. Their containers' last known state stays: no exit code."""
    with store.changed:
        node = store.get(NODE, "", _node(pod))
        unknown = "Kubelet stopped posting node status."
        store.change(NODE, node, lambda item: set_condition(item, "Ready", "Unknown", "NodeStatusUnknown", unknown))
        for item in store.list(POD):
            if item["spec"].get("nodeName") == node["metadata"]["name"] and (
                item["status"].get("phase") not in ("Succeeded", "Failed")
            ):
                _lose(store, kubelet, item)


def _lose(store: Store, kubelet: Kubelet, pod: Object) -> None:
    message = "Taint manager: deleting due to NoExecute taint"

    def change(item: Object) -> None:
        set_condition(item, _TARGET, "True", "DeletionByTaintManager", message)
        set_condition(item, "Ready", "False", "NodeNotReady", "Node is not ready")
        item["status"]["phase"] = "Failed"

    kubelet.lose(pod)
    events.record(store, pod, "Warning", "NodeNotReady", "Node is not ready", "node-controller")
    store.change(POD, pod, change)
    options = {"gracePeriodSeconds": 0}
    deletion.delete(store, POD, pod["metadata"]["namespace"], pod["metadata"]["name"], options)


def vanish(store: Store, pod: Object) -> None:
    """Removed by force and with its finalizers: nothing is left that tells how it ended (Force Delete StatefulSet Pods;
    Finalizers, "Manually removing finalizers")."""
    store.remove(POD, pod)


def _node(pod: Object) -> str:
    return str(pod["spec"]["nodeName"])
