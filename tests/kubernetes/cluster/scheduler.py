"""The scheduler: a pod gets the first node that its selector, tolerations and requests fit."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from tests.kubernetes.cluster import events
from tests.kubernetes.cluster.resources import NODE, POD
from tests.kubernetes.cluster.store import Object, Store, condition, set_condition

_UNITS = {
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
    "Pi": 2**50,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
}


@dataclass(frozen=True)
class Node:
    """A node of the cluster, large where nothing else is said. Taints are objects of the API: key, value, effect."""

    name: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    taints: tuple[dict[str, str], ...] = ()
    resources: dict[str, str] = field(
        default_factory=lambda: {
            "cpu": "192",
            "memory": "2048Gi",
            "ephemeral-storage": "8192Gi",
            "nvidia.com/gpu": "8",
            "vpc.amazonaws.com/efa": "32",
            "pods": "110",
        }
    )

    def document(self, name: str) -> Object:
        name = self.name or name
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **self.labels}},
            "spec": {"taints": [dict(taint) for taint in self.taints]},
            "status": {
                "allocatable": self.resources,
                "capacity": self.resources,
                "conditions": [
                    {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "kubelet is ready"}
                ],
            },
        }


def quantity(text: Any) -> Fraction:
    """The number that a quantity stands for (API reference, Quantity)."""
    text = str(text)
    if text.endswith("m"):
        return Fraction(text[:-1]) / 1000
    for unit, factor in _UNITS.items():
        if text.endswith(unit):
            return Fraction(text[: -len(unit)]) * factor
    return Fraction(text)


def requests(spec: Object) -> dict[str, Fraction]:
    """What a pod asks for: the sum of its containers' requests (Resource Management for Pods and Containers)."""
    total: dict[str, Fraction] = {"pods": Fraction(1)}
    for container in spec["containers"]:
        for name, amount in ((container.get("resources") or {}).get("requests") or {}).items():
            total[name] = total.get(name, Fraction(0)) + quantity(amount)
    return total


def schedule(store: Store, pod: Object, refusal: str = "") -> None:
    """Bind a pod to a node; where none fits, or `refusal` says so, tell why, as the condition PodScheduled and an event
    do (Debug Pods, "My pod stays pending")."""
    if pod["spec"].get("nodeName") or "deletionTimestamp" in pod["metadata"] or pod["spec"].get("schedulingGates"):
        return
    reasons: dict[str, int] = {}
    nodes = store.list(NODE)
    used = _used(store)
    for node in nodes:
        reason = _unfit(node, pod, used.get(node["metadata"]["name"], {}))
        if not reason and not refusal:
            _bind(store, pod, node["metadata"]["name"])
            return
        reasons[reason] = reasons.get(reason, 0) + 1
    told = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    message = refusal or f"0/{len(nodes)} nodes are available: {told or 'no nodes available to schedule pods'}."
    events.record(store, pod, "Warning", "FailedScheduling", message, "default-scheduler")
    store.change(POD, pod, lambda item: set_condition(item, "PodScheduled", "False", "Unschedulable", message))


def _bind(store: Store, pod: Object, name: str) -> None:
    def bind(item: Object) -> None:
        item["spec"]["nodeName"] = name
        set_condition(item, "PodScheduled", "True", "", "")

    store.change(POD, pod, bind)
    meta = pod["metadata"]
    message = f"Successfully assigned {meta['namespace']}/{meta['name']} to {name}"
    events.record(store, pod, "Normal", "Scheduled", message, "default-scheduler")


def _used(store: Store) -> dict[str, dict[str, Fraction]]:
    used: dict[str, dict[str, Fraction]] = {}
    for pod in store.list(POD):
        name = pod["spec"].get("nodeName")
        if name and pod["status"].get("phase") not in ("Succeeded", "Failed"):
            for resource, amount in requests(pod["spec"]).items():
                of_node = used.setdefault(name, {})
                of_node[resource] = of_node.get(resource, Fraction(0)) + amount
    return used


def _unfit(node: Object, pod: Object, used: dict[str, Fraction]) -> str:
    """Why a pod cannot go there (Assigning Pods to Nodes, "nodeSelector"; Taints and Tolerations); "" where it can."""
    spec, labels = pod["spec"], node["metadata"]["labels"]
    if any(labels.get(key) != value for key, value in (spec.get("nodeSelector") or {}).items()):
        return "node(s) didn't match Pod's node affinity/selector"
    if not condition(node, "Ready"):
        return "node(s) had untolerated taint {node.kubernetes.io/unreachable: }"
    for taint in node["spec"].get("taints") or ():
        if taint["effect"] != "PreferNoSchedule" and not _tolerates(spec.get("tolerations") or (), taint):
            return f"node(s) had untolerated taint {{{taint['key']}: {taint.get('value', '')}}}"
    has = node["status"]["allocatable"]
    for resource, amount in requests(spec).items():
        if used.get(resource, Fraction(0)) + amount > quantity(has.get(resource, 0)):
            return f"Insufficient {resource}"
    return ""


def _tolerates(tolerations: Any, taint: dict[str, str]) -> bool:
    """Taints and Tolerations, "Concepts": an empty key with Exists tolerates all, an empty effect every effect."""
    for item in tolerations:
        is_exists = item.get("operator", "Equal") == "Exists"
        if item.get("key", taint["key"] if is_exists else None) != taint["key"]:
            continue
        if item.get("effect", taint["effect"]) != taint["effect"]:
            continue
        if is_exists or item.get("value", "") == taint.get("value", ""):
            return True
    return False
