"""JobSets, as Kubeflow Trainer makes them: Jobs with a headless Service, and what becomes of them (JobSet, "Concepts",
"Failure Policy")."""

from __future__ import annotations

import copy
import re

from tests.kubernetes.cluster import admission, deletion, errors, events, jobs, validation
from tests.kubernetes.cluster.resources import JOB, JOB_SET, SERVICE
from tests.kubernetes.cluster.store import Object, Store, condition, owner_reference, set_condition

_NAME = "jobset.sigs.k8s.io/jobset-name"
_REPLICATED = "jobset.sigs.k8s.io/replicatedjob-name"
_INDEX = "jobset.sigs.k8s.io/job-index"
_ATTEMPT = "jobset.sigs.k8s.io/restart-attempt"


def is_over(job_set: Object) -> bool:
    return bool(condition(job_set, "Completed") or condition(job_set, "Failed"))


def reconcile(store: Store, job_set: Object) -> None:
    """Bring a JobSet one step further."""
    if is_over(job_set) or "deletionTimestamp" in job_set["metadata"]:
        return
    status = job_set.setdefault("status", {})
    restarts = status.setdefault("restarts", 0)
    present = store.owned(JOB, job_set)
    former = [job for job in present if job["metadata"]["labels"][_ATTEMPT] != str(restarts)]
    for job in former:
        if "deletionTimestamp" not in job["metadata"]:
            _delete(store, job)
    current = [job for job in present if job not in former]
    failed = [job for job in current if condition(job, "Failed")]
    if failed:
        _fail_or_restart(store, job_set, failed[0], current)
    elif current and all(condition(job, "Complete") for job in current):
        set_condition(job_set, "Completed", "True", "AllJobsCompleted", "jobset completed successfully")
    elif not former:
        _make(store, job_set, {job["metadata"]["name"]: job for job in current})
    _suspension(job_set)
    counted = store.owned(JOB, job_set)
    status |= {
        "active": sum(job.get("status", {}).get("active", 0) for job in counted),
        "terminating": sum(job.get("status", {}).get("terminating", 0) for job in counted),
    }
    store.change(JOB_SET, job_set, lambda item: item.update(status=status))


def _delete(store: Store, job: Object) -> None:
    meta = job["metadata"]
    deletion.delete(store, JOB, meta["namespace"], meta["name"], {"propagationPolicy": "Foreground"})


def _fail_or_restart(store: Store, job_set: Object, failed: Object, current: list[Object]) -> None:
    """The first rule that the Job's failure meets says the action; without one it is RestartJobSet, which `maxRestarts`
    limits, and without a policy the JobSet fails (JobSet, "Failure Policy")."""
    policy = job_set["spec"].get("failurePolicy")
    ended = condition(failed, "Failed") or {}
    name = failed["metadata"]["name"]
    action = "FailJobSet" if policy is None else _action(policy, failed, ended)
    status = job_set["status"]
    counted = status.get("restartsCountTowardsMax", 0)
    is_counted = action == "RestartJobSet"
    if action == "FailJobSet" or (is_counted and counted >= (policy or {}).get("maxRestarts", 0)):
        reasons = {"FailJobSet": "FailJobSetFailurePolicyAction", "RestartJobSet": "ReachedMaxRestarts"}
        reason = "FailedJobs" if policy is None else reasons[action]
        why = {
            "FailedJobs": "jobset failed due to one or more job failures",
            "FailJobSetFailurePolicyAction": "jobset failed due to FailJobSet failure policy action",
            "ReachedMaxRestarts": "jobset failed due to reaching max number of restarts",
        }[reason]
        message = f"{why} (first failed job: {name}): {ended.get('message', '')}"
        set_condition(job_set, "Failed", "True", reason, message)
        for job in current:
            if not jobs.is_over(job):
                _delete(store, job)
        return
    status["restarts"] += 1
    status["restartsCountTowardsMax"] = counted + is_counted
    message = f"restarting jobset, attempt {status['restarts']} (first failed job: {name})"
    events.record(store, job_set, "Warning", "Restarting", message, "jobset-controller")
    for job in current:
        _delete(store, job)


def _action(policy: Object, failed: Object, ended: Object) -> str:
    for rule in policy.get("rules", ()):
        targets = rule.get("targetReplicatedJobs") or [failed["metadata"]["labels"][_REPLICATED]]
        reasons = rule.get("onJobFailureReasons") or [ended["reason"]]
        patterns = rule.get("onJobFailureMessagePatterns") or [""]
        if (
            failed["metadata"]["labels"][_REPLICATED] in targets
            and ended["reason"] in reasons
            and any(re.search(pattern, ended["message"]) for pattern in patterns)
        ):
            return str(rule["action"])
    return "RestartJobSet"


def _suspension(job_set: Object) -> None:
    if job_set["spec"].get("suspend"):
        set_condition(job_set, "Suspended", "True", "SuspendedJobs", "jobset is suspended")
    elif condition(job_set, "Suspended"):
        set_condition(job_set, "Suspended", "False", "ResumeJobs", "jobset is resumed")


def _make(store: Store, job_set: Object, present: dict[str, Object]) -> None:
    """The Jobs that are missing, `<jobset>-<replicated job>-<index>`, and suspended as the JobSet is. Pods are found as
    `<job>-<pod index>.<subdomain>` (JobSet, "Network")."""
    meta, spec = job_set["metadata"], job_set["spec"]
    subdomain = spec.get("network", {}).get("subdomain") or meta["name"]
    _serve(store, job_set, subdomain)
    for replicated in spec["replicatedJobs"]:
        for index in range(replicated.get("replicas", 1)):
            name = f"{meta['name']}-{replicated['name']}-{index}"
            if (job := present.get(name)) is not None:
                store.change(JOB, job, lambda item: item["spec"].update(suspend=bool(spec.get("suspend"))))
                continue
            try:
                _create(store, job_set, replicated, index, subdomain)
            except errors.ApiError as error:
                events.record(store, job_set, "Warning", "JobCreationFailed", error.message, "jobset-controller")


def _create(store: Store, job_set: Object, replicated: Object, index: int, subdomain: str) -> None:
    meta = job_set["metadata"]
    labels = {
        _NAME: meta["name"],
        "jobset.sigs.k8s.io/jobset-uid": meta["uid"],
        _REPLICATED: replicated["name"],
        _INDEX: str(index),
        _ATTEMPT: str(job_set["status"]["restarts"]),
    }
    template = copy.deepcopy(replicated["template"])
    own = template.get("metadata") or {}
    pod = template["spec"]["template"]
    pod["metadata"] = {
        "labels": {**(pod.get("metadata", {}).get("labels") or {}), **labels},
        "annotations": {**(pod.get("metadata", {}).get("annotations") or {}), **labels},
    }
    pod["spec"].setdefault("subdomain", subdomain)
    document = {
        "metadata": {
            "name": f"{meta['name']}-{replicated['name']}-{index}",
            "labels": {**(own.get("labels") or {}), **labels},
            "annotations": {**(own.get("annotations") or {}), **labels},
        },
        "spec": {**template["spec"], "suspend": bool(job_set["spec"].get("suspend"))},
    }
    document["spec"].setdefault("completionMode", "Indexed")
    document["spec"].setdefault("completions", template["spec"].get("parallelism", 1))
    document = validation.checked(JOB, document)
    document["metadata"] |= {"namespace": meta["namespace"], "ownerReferences": [owner_reference(job_set)]}
    store.create(JOB, admission.admit(store, JOB, document))


def _serve(store: Store, job_set: Object, subdomain: str) -> None:
    namespace = job_set["metadata"]["namespace"]
    if store.find(SERVICE, namespace, subdomain) is None:
        labels = {_NAME: job_set["metadata"]["name"]}
        meta = {"name": subdomain, "namespace": namespace, "ownerReferences": [owner_reference(job_set)]}
        spec = {"clusterIP": "None", "selector": labels, "publishNotReadyAddresses": True}
        store.create(SERVICE, {"metadata": meta, "spec": spec})
