"""The Job controller: pods until enough have succeeded, or the Job has failed (Jobs; API reference, Job).

A pod that failed is replaced at once; the real controller waits 10, 20, 40 ... seconds (Jobs, "Pod backoff failure
policy").
"""

from __future__ import annotations

import time
from typing import Any

from tests.kubernetes.cluster import admission, deletion, errors, events
from tests.kubernetes.cluster.resources import JOB, POD
from tests.kubernetes.cluster.store import (
    Object,
    Store,
    condition,
    now,
    owner_reference,
    seconds_of,
    set_condition,
    suffix,
)  # fmt: skip

TRACKED = "batch.kubernetes.io/job-tracking"
INDEX = "batch.kubernetes.io/job-completion-index"


def is_over(job: Object) -> bool:
    """Jobs, "Terminal Job conditions": Complete or Failed, set when all its pods have ended."""
    return bool(condition(job, "Complete") or condition(job, "Failed"))


def reconcile(store: Store, job: Object) -> None:
    """Bring a Job one step further."""
    pods = store.owned(POD, job)
    if is_over(job) or "deletionTimestamp" in job["metadata"]:
        for pod in pods:
            _release(store, pod)
        _clean_up(store, job)
        return
    status, spec = job.setdefault("status", {}), job["spec"]
    _count(store, job, pods)
    pods = store.owned(POD, job)
    active = [pod for pod in pods if not _has_ended(pod) and "deletionTimestamp" not in pod["metadata"]]
    ending = [pod for pod in pods if not _has_ended(pod) and "deletionTimestamp" in pod["metadata"]]
    _judge(store, job)
    target = condition(job, "FailureTarget") or condition(job, "SuccessCriteriaMet")
    if target or spec["suspend"]:
        for pod in active:
            if not target:
                # What a suspension ends has not failed.
                _release(store, pod)
            deletion.delete(store, POD, pod["metadata"]["namespace"], pod["metadata"]["name"])
        ending, active = [*active, *ending], []
    if target and not ending:
        _finish(job, target)
    elif not target:
        _suspend_or_resume(store, job)
        if not spec["suspend"]:
            active += _fill(store, job, active, ending)
    status |= {
        "active": len(active),
        "terminating": len(ending),
        "ready": sum(condition(pod, "Ready") is not None for pod in active),
    }
    store.change(JOB, job, lambda present: present.update(status=status))


def release_orphans(store: Store) -> None:
    """Jobs, "Job termination and cleanup": pods whose Job is gone are not held by its finalizer."""
    uids = {job["metadata"]["uid"] for job in store.list(JOB)}
    for pod in store.list(POD):
        owners = {ref["uid"] for ref in pod["metadata"].get("ownerReferences", ()) if ref["kind"] == "Job"}
        if not owners & uids:
            _release(store, pod)


def _has_ended(pod: Object) -> bool:
    return pod["status"].get("phase") in ("Succeeded", "Failed")


def _release(store: Store, pod: Object) -> None:
    def drop(item: Object) -> None:
        item["metadata"]["finalizers"].remove(TRACKED)

    if TRACKED in pod["metadata"].get("finalizers", ()):
        store.change(POD, pod, drop)


def _count(store: Store, job: Object, pods: list[Object]) -> None:
    """Count the pods that have ended, each once: the finalizer says which were not (Jobs, "Job tracking with
    finalizers"). By podReplacementPolicy a pod that is being deleted has failed already, or not before it ended (Jobs,
    "Delayed creation of replacement pods")."""
    status, spec = job["status"], job["spec"]
    done = _indexes(status.get("completedIndexes", ""))
    for pod in pods:
        if TRACKED not in pod["metadata"].get("finalizers", ()):
            continue
        is_leaving = "deletionTimestamp" in pod["metadata"] and spec["podReplacementPolicy"] != "Failed"
        if pod["status"].get("phase") == "Succeeded":
            if spec["completionMode"] == "Indexed":
                done.add(int(pod["metadata"]["labels"][INDEX]))
            else:
                status["succeeded"] = status.get("succeeded", 0) + 1
        elif _has_ended(pod) or is_leaving:
            action, why = matched(spec.get("podFailurePolicy"), pod)
            if action == "FailJob" and not condition(job, "FailureTarget"):
                set_condition(job, "FailureTarget", "True", "PodFailurePolicy", why)
            if action != "Ignore":
                status["failed"] = status.get("failed", 0) + 1
        else:
            continue
        _release(store, pod)
    if spec["completionMode"] == "Indexed":
        status |= {"succeeded": len(done), "completedIndexes": _ranges(done)}


def matched(policy: Object | None, pod: Object) -> tuple[str, str]:
    """The action of the first rule that a failed pod meets, `Count` where none, and why (Jobs, "Pod failure policy").

    Exit codes are those of containers that ended with another than 0.
    """
    meta = pod["metadata"]
    named = f"{meta['namespace']}/{meta['name']}"
    ended = {
        item["name"]: item["state"]["terminated"]["exitCode"]
        for item in pod["status"].get("containerStatuses", ())
        if "terminated" in item.get("state", {})
    }
    for number, rule in enumerate((policy or {}).get("rules", ())):
        if wanted := rule.get("onExitCodes"):
            for name, code in ended.items():
                is_named = wanted.get("containerName", name) == name
                if is_named and code and (code in wanted["values"]) == (wanted["operator"] == "In"):
                    why = (
                        f"Container {name} for pod {named} failed with exit code {code} matching {rule['action']} rule"
                    )
                    return rule["action"], f"{why} at index {number}"
        for pattern in rule.get("onPodConditions") or ():
            for found in pod["status"].get("conditions", ()):
                if (found["type"], found["status"]) == (pattern["type"], pattern["status"]):
                    why = f"Pod {named} has condition {found['type']} matching {rule['action']} rule at index {number}"
                    return rule["action"], why
    return "Count", ""


def _judge(store: Store, job: Object) -> None:
    """Whether it is decided (Jobs, "Termination of Job pods"): the condition comes first, the pods are ended then."""
    status, spec = job["status"], job["spec"]
    if condition(job, "FailureTarget") or condition(job, "SuccessCriteriaMet"):
        return
    if status.get("succeeded", 0) >= spec.get("completions", 1):
        why = "Reached expected number of succeeded pods"
        set_condition(job, "SuccessCriteriaMet", "True", "CompletionsReached", why)
    elif status.get("failed", 0) > spec["backoffLimit"]:
        why = "Job has reached the specified backoff limit"
        set_condition(job, "FailureTarget", "True", "BackoffLimitExceeded", why)
    elif (seconds := spec.get("activeDeadlineSeconds")) and "startTime" in status:
        # The start as written is cut to whole seconds.
        end = seconds_of(status["startTime"]) + seconds
        if time.time() >= end:
            why = "Job was active longer than specified deadline"
            set_condition(job, "FailureTarget", "True", "DeadlineExceeded", why)
        else:
            store.wake_at(end)


def _finish(job: Object, target: Object) -> None:
    is_good = target["type"] == "SuccessCriteriaMet"
    set_condition(job, "Complete" if is_good else "Failed", "True", target["reason"], target["message"])
    if is_good:
        job["status"]["completionTime"] = now()


def _suspend_or_resume(store: Store, job: Object) -> None:
    """Jobs, "Suspending a Job": the start time is that of the last resume."""
    status = job["status"]
    if job["spec"]["suspend"]:
        if not condition(job, "Suspended"):
            set_condition(job, "Suspended", "True", "JobSuspended", "Job suspended")
            events.record(store, job, "Normal", "Suspended", "Job suspended", "job-controller")
        status.pop("startTime", None)
        return
    if condition(job, "Suspended"):
        set_condition(job, "Suspended", "False", "JobResumed", "Job resumed")
        events.record(store, job, "Normal", "Resumed", "Job resumed", "job-controller")
    if "startTime" not in status:
        status["startTime"] = now()
        if seconds := job["spec"].get("activeDeadlineSeconds"):
            store.wake_at(seconds_of(status["startTime"]) + seconds)


def _fill(store: Store, job: Object, active: list[Object], ending: list[Object]) -> list[Object]:
    """The pods that are missing."""
    spec, status = job["spec"], job["status"]
    held = [*active, *(ending if spec["podReplacementPolicy"] == "Failed" else ())]
    left = spec.get("completions", spec["parallelism"]) - status.get("succeeded", 0)
    missing = min(spec["parallelism"], left) - len(held)
    if missing <= 0:
        return []
    if spec["completionMode"] != "Indexed":
        indexes: list[int | None] = [None] * missing
    else:
        taken = {int(pod["metadata"]["labels"][INDEX]) for pod in [*active, *ending]}
        free = set(range(spec["completions"])) - taken - _indexes(status.get("completedIndexes", ""))
        indexes = [*sorted(free)[:missing]]
    made = []
    for index in indexes:
        try:
            made.append(_create_pod(store, job, index))
        except errors.ApiError as error:
            events.record(store, job, "Warning", "FailedCreate", f"Error creating: {error.message}", "job-controller")
    return made


def _create_pod(store: Store, job: Object, index: int | None) -> Object:
    """A pod of the template. Of an Indexed Job's pods name, host name, label, annotation and a variable tell the index
    (Jobs, "Completion mode")."""
    template: dict[str, Any] = job["spec"]["template"]
    name, meta = job["metadata"]["name"], template.get("metadata") or {}
    pod: Object = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": f"{name}-" if index is None else f"{name}-{index}-",
            "namespace": job["metadata"]["namespace"],
            "labels": dict(meta.get("labels") or {}),
            "annotations": dict(meta.get("annotations") or {}),
            "ownerReferences": [owner_reference(job)],
            "finalizers": [TRACKED],
        },
        "spec": {**template["spec"], "containers": [dict(item) for item in template["spec"]["containers"]]},
    }
    if index is not None:
        pod["metadata"]["labels"][INDEX] = pod["metadata"]["annotations"][INDEX] = str(index)
        pod["spec"].setdefault("hostname", f"{name}-{index}")
        variable = {
            "name": "JOB_COMPLETION_INDEX",
            "valueFrom": {"fieldRef": {"fieldPath": f"metadata.labels['{INDEX}']"}},
        }
        for container in pod["spec"]["containers"]:
            if all(item["name"] != variable["name"] for item in container.get("env") or ()):
                container["env"] = [*(container.get("env") or ()), variable]
    pod = admission.admit(store, POD, pod)
    # Names of 63 letters at most: the base is cut where it is longer.
    pod["metadata"]["name"] = pod["metadata"]["generateName"][:58] + suffix()
    made = store.create(POD, pod)
    events.record(
        store, job, "Normal", "SuccessfulCreate", f"Created pod: {made['metadata']['name']}", "job-controller"
    )
    return made


def _clean_up(store: Store, job: Object) -> None:
    """Automatic Cleanup for Finished Jobs."""
    seconds = job["spec"].get("ttlSecondsAfterFinished")
    ended = condition(job, "Complete") or condition(job, "Failed")
    if seconds is None or ended is None or "deletionTimestamp" in job["metadata"]:
        return
    end = seconds_of(ended["lastTransitionTime"]) + seconds
    if time.time() < end:
        store.wake_at(end)
        return
    meta = job["metadata"]
    deletion.delete(store, JOB, meta["namespace"], meta["name"], {"propagationPolicy": "Foreground"})


def _indexes(text: str) -> set[int]:
    """Of `1,3-5,7` (API reference, JobStatus, `completedIndexes`)."""
    found: set[int] = set()
    for part in text.split(",") if text else ():
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def _ranges(indexes: set[int]) -> str:
    parts: list[list[int]] = []
    for index in sorted(indexes):
        if parts and index == parts[-1][-1] + 1:
            parts[-1].append(index)
        else:
            parts.append([index])
    return ",".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
