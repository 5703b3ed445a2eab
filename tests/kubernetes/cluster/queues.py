"""Kueue: what has a queue waits, suspended, until the queue admits it; a Workload tells (Kueue, "Workload").

Queues have no quota here: a test says which admit.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from tests.kubernetes.cluster import events, jobs
from tests.kubernetes.cluster.admission import QUEUE
from tests.kubernetes.cluster.resources import JOB, RAY_JOB, TRAIN_JOB, WORKLOAD, Kind
from tests.kubernetes.cluster.store import Object, Store, condition, owner_reference, set_condition

_MANAGED = (JOB, TRAIN_JOB, RAY_JOB)


@dataclass
class Queues:
    """The queues that do not admit, each with what Kueue says of it."""

    closed: dict[str, str] = field(default_factory=dict)

    def reconcile(self, store: Store, kind: Kind, owner: Object) -> None:
        queue = (owner["metadata"].get("labels") or {}).get(QUEUE)
        if not queue or "deletionTimestamp" in owner["metadata"]:
            return
        if any(ref.get("controller") for ref in owner["metadata"].get("ownerReferences", ())):
            return
        found = store.owned(WORKLOAD, owner)
        workload = found[0] if found else _workload(store, kind, owner, queue)
        if condition(workload, "Finished"):
            return
        if is_over(kind, owner):
            self._finish(store, workload, is_good=succeeded(kind, owner))
        elif condition(workload, "Admitted"):
            _suspend(store, kind, owner, False)
        elif condition(workload, "Evicted"):
            _suspend(store, kind, owner, True)
            if _is_suspended(kind, owner):
                _tell(store, workload, "Evicted", "False", "Requeued", "The workload waits again")
        elif message := self.closed.get(queue):
            _tell(store, workload, "QuotaReserved", "False", "Pending", message)
            _suspend(store, kind, owner, True)
        else:
            _tell(store, workload, "QuotaReserved", "True", "QuotaReserved", f"Quota reserved in ClusterQueue {queue}")
            _tell(store, workload, "Admitted", "True", "Admitted", "The workload is admitted")
            events.record(store, owner, "Normal", "Started", f"Admitted by clusterQueue {queue}", "kueue")
            _suspend(store, kind, owner, False)

    @staticmethod
    def _finish(store: Store, workload: Object, is_good: bool) -> None:
        why = "Job finished successfully" if is_good else "Job failed"
        _tell(store, workload, "Finished", "True", "Succeeded" if is_good else "Failed", why)


def evict(store: Store, queue: str) -> None:
    """Kueue, "Preemption": admitted workloads of a queue lose their quota; their owners are suspended, pods ended."""
    with store.changed:
        for workload in store.list(WORKLOAD):
            if workload["spec"]["queueName"] == queue and condition(workload, "Admitted"):
                message = "Preempted to accommodate a workload due to prioritization in the ClusterQueue"
                _tell(store, workload, "Evicted", "True", "Preempted", message)
                _tell(store, workload, "QuotaReserved", "False", "Pending", message)
                _tell(store, workload, "Admitted", "False", "NoReservation", "The workload has no reservation")


def is_over(kind: Kind, owner: Object) -> bool:
    if kind is RAY_JOB:
        return owner.get("status", {}).get("jobDeploymentStatus") in ("Complete", "Failed")
    return jobs.is_over(owner)


def _is_suspended(kind: Kind, owner: Object) -> bool:
    """All its pods have ended."""
    status = owner.get("status", {})
    if kind is RAY_JOB:
        return status.get("jobDeploymentStatus") == "Suspended"
    return condition(owner, "Suspended") is not None and not status.get("active") and not status.get("terminating")


def succeeded(kind: Kind, owner: Object) -> bool:
    if kind is RAY_JOB:
        return owner["status"].get("jobStatus") == "SUCCEEDED"
    return condition(owner, "Complete") is not None


def _workload(store: Store, kind: Kind, owner: Object, queue: str) -> Object:
    """Named after its owner with a hash, found by the label `kueue.x-k8s.io/job-uid` (Kueue, Troubleshooting Jobs,
    "Identifying the Workload for your Job")."""
    meta = owner["metadata"]
    end = hashlib.sha1(f"{kind.kind}/{meta['name']}/{meta['uid']}".encode(), usedforsecurity=False).hexdigest()[:5]
    spec = {"queueName": queue, "podSets": [{"name": "main", "count": 1}], "active": True}
    if priority := (meta.get("labels") or {}).get("kueue.x-k8s.io/priority-class"):
        spec["priorityClassRef"] = {"group": "kueue.x-k8s.io", "kind": "WorkloadPriorityClass", "name": priority}
    made = store.create(
        WORKLOAD,
        {
            "metadata": {
                "name": f"{kind.kind.lower()}-{meta['name']}-{end}",
                "namespace": meta["namespace"],
                "labels": {"kueue.x-k8s.io/job-uid": meta["uid"]},
                "ownerReferences": [owner_reference(owner)],
            },
            "spec": spec,
        },
    )
    message = f"Created Workload: {meta['namespace']}/{made['metadata']['name']}"
    events.record(store, owner, "Normal", "CreatedWorkload", message, f"{kind.kind.lower()}-kueue-controller")
    return made


def _tell(store: Store, workload: Object, name: str, status: str, reason: str, message: str) -> None:
    store.change(WORKLOAD, workload, lambda item: set_condition(item, name, status, reason, message))


def _suspend(store: Store, kind: Kind, owner: Object, is_suspended: bool) -> None:
    store.change(kind, owner, lambda item: item["spec"].update(suspend=is_suspended))
