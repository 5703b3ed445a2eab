"""KubeRay: a RayJob becomes a RayCluster and a submitter Job, whose end is the RayJob's (Ray, "RayJob Quickstart").

The cluster's pods run until they are deleted; they are told from others by the label ray.io/node-type.
"""

from __future__ import annotations

import copy
import time

from tests.kubernetes.cluster import admission, deletion, errors, events, validation
from tests.kubernetes.cluster.kubelet import RAY_TYPE
from tests.kubernetes.cluster.resources import JOB, POD, RAY_CLUSTER, RAY_JOB, SERVICE, Kind
from tests.kubernetes.cluster.store import (
    Object,
    Store,
    condition,
    now,
    owner_reference,
    seconds_of,
    suffix,
)  # fmt: skip


def reconcile(store: Store, job: Object) -> None:
    """Bring a RayJob one step further."""
    status = job.setdefault("status", {})
    state = status.get("jobDeploymentStatus", "")
    if "deletionTimestamp" in job["metadata"]:
        return
    if state in ("Complete", "Failed"):
        _clean_up(store, job)
        return
    if job["spec"].get("suspend"):
        _suspend(store, job)
    else:
        _run(store, job)
    store.change(RAY_JOB, job, lambda item: item.update(status=status))


def _suspend(store: Store, job: Object) -> None:
    """RayJob Quickstart, `suspend`: cluster and submitter are deleted."""
    children = _children(store, job)
    for kind, item in children:
        _delete(store, kind, item)
    job["status"]["jobDeploymentStatus"] = "Suspending" if children else "Suspended"
    job["status"].pop("startTime", None)


def _run(store: Store, job: Object) -> None:
    status = job["status"]
    if status.get("jobDeploymentStatus") == "Retrying" and _children(store, job):
        return
    status.setdefault("startTime", now())
    status.setdefault("jobId", f"{job['metadata']['name']}-{suffix()}")
    status.setdefault("rayClusterName", f"{job['metadata']['name'][:47]}-{suffix()}")
    status["jobDeploymentStatus"] = "Initializing"
    clusters = store.owned(RAY_CLUSTER, job) or [_create_cluster(store, job)]
    pods = _fill(store, clusters[0])
    if not pods or not all(condition(pod, "Ready") for pod in pods):
        _deadline(store, job)
        return
    submitters = store.owned(JOB, job)
    status |= {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
    if not submitters:
        try:
            _submit(store, job, clusters[0])
        except errors.ApiError as error:
            status["message"] = error.message
        return
    if condition(submitters[0], "Complete"):
        status |= {"jobStatus": "SUCCEEDED", "jobDeploymentStatus": "Complete", "endTime": now(), "succeeded": 1}
    elif ended := condition(submitters[0], "Failed"):
        _fail_or_retry(store, job, ended["message"])
    _deadline(store, job)


def _fail_or_retry(store: Store, job: Object, message: str) -> None:
    """RayJob Quickstart, `backoffLimit`: how often it is tried again, each time with a new cluster."""
    status = job["status"]
    status |= {"jobStatus": "FAILED", "failed": status.get("failed", 0) + 1, "reason": "AppFailed", "message": message}
    if status["failed"] > job["spec"].get("backoffLimit", 0):
        status |= {"jobDeploymentStatus": "Failed", "endTime": now()}
        return
    for kind, item in _children(store, job):
        _delete(store, kind, item)
    for key in ("rayClusterName", "jobId", "startTime", "jobStatus"):
        del status[key]
    status["jobDeploymentStatus"] = "Retrying"


def _deadline(store: Store, job: Object) -> None:
    status = job["status"]
    seconds = job["spec"].get("activeDeadlineSeconds")
    if not seconds or status["jobDeploymentStatus"] in ("Complete", "Failed", "Retrying"):
        return
    end = seconds_of(status["startTime"]) + seconds
    if time.time() < end:
        store.wake_at(end)
        return
    why = f"The RayJob has passed the activeDeadlineSeconds. StartTime: {status['startTime']}"
    status |= {"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded", "message": why, "endTime": now()}
    for kind, item in _children(store, job):
        _delete(store, kind, item)


def _clean_up(store: Store, job: Object) -> None:
    """RayJob Quickstart, `shutdownAfterJobFinishes`, `ttlSecondsAfterFinished`: the cluster goes, the Job stays."""
    if not job["spec"].get("shutdownAfterJobFinishes"):
        return
    end = seconds_of(job["status"]["endTime"]) + job["spec"].get("ttlSecondsAfterFinished", 0)
    if time.time() < end:
        store.wake_at(end)
        return
    for cluster in store.owned(RAY_CLUSTER, job):
        _delete(store, RAY_CLUSTER, cluster)


def _children(store: Store, job: Object) -> list[tuple[Kind, Object]]:
    return [(kind, item) for kind in (RAY_CLUSTER, JOB) for item in store.owned(kind, job)]


def _delete(store: Store, kind: Kind, item: Object) -> None:
    meta = item["metadata"]
    if "deletionTimestamp" in meta:
        return
    deletion.delete(store, kind, meta["namespace"], meta["name"], {"propagationPolicy": "Foreground"})


def _create_cluster(store: Store, job: Object) -> Object:
    meta = {
        "name": job["status"]["rayClusterName"],
        "namespace": job["metadata"]["namespace"],
        "ownerReferences": [owner_reference(job)],
    }
    return store.create(RAY_CLUSTER, {"metadata": meta, "spec": copy.deepcopy(job["spec"]["rayClusterSpec"])})


def _fill(store: Store, cluster: Object) -> list[Object]:
    """A cluster's pods, made where they are missing: one head, and each group's replicas. [] where one is refused."""
    present = {}
    for pod in store.owned(POD, cluster):
        present[pod["metadata"]["name"]] = pod
        if pod["status"]["phase"] in ("Succeeded", "Failed"):
            # What has ended makes room for another.
            deletion.delete(store, POD, pod["metadata"]["namespace"], pod["metadata"]["name"])
    if "deletionTimestamp" in cluster["metadata"]:
        return []
    meta, spec = cluster["metadata"], cluster["spec"]
    wanted = [(f"{meta['name']}-head", "head", "headgroup", spec["headGroupSpec"])]
    for group in spec.get("workerGroupSpecs") or ():
        for number in range(group.get("replicas", 1)):
            name = f"{meta['name']}-{group['groupName']}-worker-{number}"
            wanted.append((name, "worker", group["groupName"], group))
    made = []
    for name, kind, group, part in wanted:
        try:
            made.append(present.get(name) or _create_pod(store, cluster, name, kind, group, part))
        except errors.ApiError as error:
            events.record(store, cluster, "Warning", "FailedToCreatePod", error.message, "raycluster-controller")
            return []
    if store.find(SERVICE, meta["namespace"], f"{meta['name']}-head-svc") is None:
        service = {"name": f"{meta['name']}-head-svc", "namespace": meta["namespace"]}
        service["ownerReferences"] = [owner_reference(cluster)]
        store.create(SERVICE, {"metadata": service, "spec": {"clusterIP": "None"}})
    return made


def _create_pod(store: Store, cluster: Object, name: str, kind: str, group: str, part: Object) -> Object:
    template = copy.deepcopy(part["template"])
    own = template.get("metadata") or {}
    labels = {"ray.io/cluster": cluster["metadata"]["name"], RAY_TYPE: kind, "ray.io/group": group}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": cluster["metadata"]["namespace"],
            "labels": {**(own.get("labels") or {}), **labels},
            "annotations": own.get("annotations") or {},
            "ownerReferences": [owner_reference(cluster)],
        },
        "spec": template["spec"],
    }
    return store.create(POD, admission.admit(store, POD, pod))


def _submit(store: Store, job: Object, cluster: Object) -> None:
    """KubeRay, K8sJobMode: a Job named after the RayJob runs `ray job submit` in the pod of `submitterPodTemplate`, or
    one with the head's image; how often it is tried again is `submitterConfig.backoffLimit`, 2 by default."""
    spec, meta = job["spec"], job["metadata"]
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    fallback = {
        "spec": {"restartPolicy": "Never", "containers": [{"name": "ray-job-submitter", "image": head["image"]}]}
    }
    template = copy.deepcopy(spec.get("submitterPodTemplate") or fallback)
    container = template["spec"]["containers"][0]
    address = f"http://{cluster['metadata']['name']}-head-svc.{meta['namespace']}.svc.cluster.local:8265"
    if not container.get("command"):
        submit = ["ray", "job", "submit", "--address", address, "--submission-id", job["status"]["jobId"], "--"]
        container["command"] = [*submit, *spec.get("entrypoint", "").split()]
    container["env"] = [
        *(container.get("env") or ()),
        {"name": "RAY_DASHBOARD_ADDRESS", "value": address},
        {"name": "RAY_JOB_SUBMISSION_ID", "value": job["status"]["jobId"]},
    ]
    limit = (spec.get("submitterConfig") or {}).get("backoffLimit", 2)
    document = {
        "metadata": {"name": meta["name"], "labels": {"ray.io/originated-from-cr-name": meta["name"]}},
        "spec": {"backoffLimit": limit, "template": template},
    }
    document = validation.checked(JOB, document)
    document["metadata"] |= {"namespace": meta["namespace"], "ownerReferences": [owner_reference(job)]}
    store.create(JOB, admission.admit(store, JOB, document))
