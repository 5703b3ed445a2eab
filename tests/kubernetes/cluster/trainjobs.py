"""Kubeflow Trainer: a TrainJob and its runtime become a JobSet; its end is the TrainJob's (Trainer, Runtime Guide,
ML Policy, "Torch"; Runtime Patches)."""

from __future__ import annotations

import copy
import time
from typing import Any

from tests.kubernetes.cluster import deletion, jobsets
from tests.kubernetes.cluster.resources import JOB_SET, RUNTIME, TRAIN_JOB
from tests.kubernetes.cluster.store import (
    Object,
    Store,
    condition,
    owner_reference,
    seconds_of,
    set_condition,
)  # fmt: skip

_ANCESTOR = "trainer.kubeflow.org/trainjob-ancestor-step"
_PORT = "29500"
_MERGED = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
}
"""Lists that are merged by a key; others are replaced (API reference, `patchMergeKey`)."""


def reconcile(store: Store, job: Object) -> None:
    """Bring a TrainJob one step further."""
    if condition(job, "Complete") or condition(job, "Failed") or "deletionTimestamp" in job["metadata"]:
        return
    found = store.owned(JOB_SET, job)
    if not found:
        found = [store.create(JOB_SET, _job_set(store, job))]
    job_set, is_suspended = found[0], bool(job["spec"]["suspend"])
    store.change(JOB_SET, job_set, lambda item: item["spec"].update(suspend=is_suspended))
    status = job.setdefault("status", {})
    if is_suspended:
        set_condition(job, "Suspended", "True", "Suspended", "TrainJob is suspended")
    elif condition(job, "Suspended"):
        set_condition(job, "Suspended", "False", "Resumed", "TrainJob is resumed")
    for name, own in (("Completed", "Complete"), ("Failed", "Failed")):
        if ended := condition(job_set, name):
            set_condition(job, own, "True", ended["reason"], ended["message"])
    _deadline(store, job, job_set)
    counts = job_set.get("status", {})
    status["jobsStatus"] = [
        {
            "name": replicated["name"],
            "ready": 0,
            "succeeded": int(bool(condition(job_set, "Completed"))),
            "failed": int(bool(condition(job_set, "Failed"))),
            "active": int(bool(counts.get("active"))),
            "suspended": int(is_suspended),
        }
        for replicated in job_set["spec"]["replicatedJobs"]
    ]
    status |= {"active": counts.get("active", 0), "terminating": counts.get("terminating", 0)}
    store.change(TRAIN_JOB, job, lambda item: item.update(status=status))


def _deadline(store: Store, job: Object, job_set: Object) -> None:
    """API reference, TrainJobSpec, `activeDeadlineSeconds`: counted from the start or the last resume."""
    seconds = job["spec"].get("activeDeadlineSeconds")
    if not seconds or job["spec"]["suspend"] or jobsets.is_over(job_set):
        return
    resumed = [item for item in job["status"].get("conditions", ()) if item["type"] == "Suspended"]
    start = resumed[0]["lastTransitionTime"] if resumed else job["metadata"]["creationTimestamp"]
    end = seconds_of(start) + seconds
    if time.time() < end:
        store.wake_at(end)
        return
    set_condition(job, "Failed", "True", "DeadlineExceeded", "TrainJob exceeded its deadline")
    meta = job_set["metadata"]
    deletion.delete(store, JOB_SET, meta["namespace"], meta["name"], {"propagationPolicy": "Foreground"})


def _job_set(store: Store, job: Object) -> Object:
    """The runtime's template with the patches, and the trainer's settings in the container `node` of the Jobs that are
    labelled as the trainer's."""
    meta, spec = job["metadata"], job["spec"]
    runtime = store.get(RUNTIME, "", spec["runtimeRef"]["name"])
    template = copy.deepcopy(runtime["spec"]["template"])
    for patch in spec.get("runtimePatches") or ():
        template = _merge(template, (patch.get("trainingRuntimeSpec") or {}).get("template") or {}, "")
    nodes = (spec.get("trainer") or {}).get("numNodes") or runtime["spec"].get("mlPolicy", {}).get("numNodes") or 1
    for replicated in template["spec"]["replicatedJobs"]:
        labels = (replicated["template"].get("metadata") or {}).get("labels") or {}
        if labels.get(_ANCESTOR) == "trainer":
            inner = replicated["template"]["spec"]
            inner |= {"parallelism": nodes, "completions": nodes, "completionMode": "Indexed"}
            for container in inner["template"]["spec"]["containers"]:
                if container["name"] == "node":
                    _train(container, job, nodes)
    own = template.get("metadata") or {}
    return {
        "metadata": {
            "name": meta["name"],
            "namespace": meta["namespace"],
            "labels": own.get("labels") or {},
            "annotations": own.get("annotations") or {},
            "ownerReferences": [owner_reference(job)],
        },
        "spec": {**template["spec"], "suspend": bool(spec["suspend"])},
    }


def _train(container: Object, job: Object, nodes: int) -> None:
    """Trainer's torch plugin: torchrun's variables. The node's rank is its index; the first node's name is
    `<trainjob>-node-0-0.<trainjob>`."""
    trainer, name = job["spec"].get("trainer") or {}, job["metadata"]["name"]
    for key in ("image", "command", "args"):
        if key in trainer:
            container[key] = trainer[key]
    if "resourcesPerNode" in trainer:
        container["resources"] = trainer["resourcesPerNode"]
    rank = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
    variables: list[dict[str, Any]] = [
        *(trainer.get("env") or ()),
        {"name": "PET_NNODES", "value": str(nodes)},
        {"name": "PET_NPROC_PER_NODE", "value": str(trainer.get("numProcPerNode", "auto"))},
        {"name": "PET_NODE_RANK", "valueFrom": rank},
        {"name": "PET_MASTER_ADDR", "value": f"{name}-node-0-0.{name}"},
        {"name": "PET_MASTER_PORT", "value": _PORT},
    ]
    container["env"] = _merge(container.get("env") or [], variables, "env")
    container["ports"] = [*(container.get("ports") or ()), {"containerPort": int(_PORT)}]


def _merge(base: Any, patch: Any, key: str) -> Any:
    """A strategic merge (Update API Objects in Place Using kubectl patch): lists by their key, others replaced."""
    if isinstance(base, dict) and isinstance(patch, dict):
        names = [*base, *(name for name in patch if name not in base)]
        return {
            name: _merge(base[name], patch[name], name) if name in base and name in patch else {**patch, **base}[name]
            for name in names
        }
    by = "name" if key == "replicatedJobs" else _MERGED.get(key)
    if isinstance(base, list) and isinstance(patch, list) and by:
        patches = {item[by]: item for item in patch}
        kept = [_merge(item, patches.pop(item[by]), "") if item[by] in patches else item for item in base]
        return [*kept, *patches.values()]
    return patch
