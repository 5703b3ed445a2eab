"""What the API server and webhooks do to an object before it is stored, and what they refuse."""

from __future__ import annotations

import uuid
from typing import Any

from tests.kubernetes.cluster import errors, pod_security
from tests.kubernetes.cluster.resources import (
    JOB,
    NAMESPACE,
    POD,
    PRIORITY_CLASS,
    RAY_JOB,
    RUNTIME,
    SERVICE_ACCOUNT,
    TRAIN_JOB,
    Kind,
)  # fmt: skip
from tests.kubernetes.cluster.store import Object, Store

QUEUE = "kueue.x-k8s.io/queue-name"
_PRIORITIES = {"system-cluster-critical": 2000000000, "system-node-critical": 2000001000}
_RESERVED = {"PET_NNODES", "PET_NPROC_PER_NODE", "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT"}


def admit(store: Store, kind: Kind, document: Object) -> Object:
    """Defaults set and rules kept, for an object that is to be created. Raises ApiError (403, 404)."""
    meta = document["metadata"]
    if kind.is_namespaced:
        namespace = store.find(NAMESPACE, "", meta["namespace"])
        if namespace is None:
            raise errors.not_found(NAMESPACE, meta["namespace"])
        if "deletionTimestamp" in namespace["metadata"]:
            raise errors.forbidden(kind, meta["name"], f"unable to create new content in namespace {meta['namespace']}")
    document.pop("status", None)
    for key in ("uid", "resourceVersion", "creationTimestamp", "deletionTimestamp", "generation"):
        meta.pop(key, None)
    if kind is POD:
        _pod(store, document)
    is_owned = any(owner.get("controller") for owner in meta.get("ownerReferences") or ())
    if kind in (JOB, TRAIN_JOB, RAY_JOB) and (meta.get("labels") or {}).get(QUEUE) and not is_owned:
        # Kueue, Run Jobs: its webhook suspends what has a queue until the queue admits it.
        document["spec"]["suspend"] = True
    if kind is JOB:
        _job(document)
    if kind is TRAIN_JOB:
        _train_job(store, document)
    return document


def defaulted_pod_spec(spec: Object) -> Object:
    """API reference, PodSpec and Container: the defaults that others read."""
    for key, value in (("restartPolicy", "Always"), ("serviceAccountName", "default"), ("dnsPolicy", "ClusterFirst")):
        spec.setdefault(key, value)
    spec.setdefault("terminationGracePeriodSeconds", 30)
    for container in spec["containers"]:
        container.setdefault("terminationMessagePolicy", "File")
        tag = container["image"].rpartition("/")[2].partition(":")[2]
        container.setdefault("imagePullPolicy", "Always" if tag in ("", "latest") else "IfNotPresent")
        resources = container.get("resources") or {}
        if "limits" in resources:
            # Resource Management: a limit alone is a request, too.
            container["resources"] = {**resources, "requests": {**resources["limits"], **resources.get("requests", {})}}
    return spec


def _pod(store: Store, pod: Object) -> None:
    namespace, name = pod["metadata"]["namespace"], pod["metadata"].get("name") or pod["metadata"]["generateName"]
    spec = defaulted_pod_spec(pod["spec"])
    account = spec["serviceAccountName"]
    if store.find(SERVICE_ACCOUNT, namespace, account) is None:
        # Managing Service Accounts, "ServiceAccount admission controller".
        why = f'error looking up service account {namespace}/{account}: serviceaccount "{account}" not found'
        raise errors.forbidden(POD, name, why)
    if (priority := spec.get("priorityClassName")) and priority not in _PRIORITIES:
        # Pod Priority and Preemption, "PriorityClass": a class that is not there refuses the pod.
        found = store.find(PRIORITY_CLASS, "", priority)
        if found is None:
            raise errors.forbidden(POD, name, f"no PriorityClass with name {priority} was found")
        spec["priority"] = found["value"]
    labels = store.get(NAMESPACE, "", namespace)["metadata"].get("labels") or {}
    level = labels.get("pod-security.kubernetes.io/enforce", "privileged")
    if level == "restricted" and (found := pod_security.violations(pod["spec"])):
        # Pod Security Admission.
        raise errors.forbidden(POD, name, f'violates PodSecurity "restricted:latest": {", ".join(found)}')
    pod["status"] = {"phase": "Pending", "qosClass": "Burstable"}


def _job(job: Object) -> None:
    """API reference, JobSpec: defaults, and the controller's uid, by which its pods are told from others' (Jobs,
    "Specifying your own Pod selector")."""
    spec, meta = job["spec"], job["metadata"]
    meta["uid"] = str(uuid.uuid4())
    spec["selector"] = {"matchLabels": {"batch.kubernetes.io/controller-uid": meta["uid"]}}
    template = spec["template"].setdefault("metadata", {})
    template["labels"] = {
        **(template.get("labels") or {}),
        "batch.kubernetes.io/controller-uid": meta["uid"],
        "batch.kubernetes.io/job-name": meta["name"],
        "controller-uid": meta["uid"],
        "job-name": meta["name"],
    }
    if "completions" not in spec and "parallelism" not in spec:
        spec |= {"completions": 1, "parallelism": 1}
    spec.setdefault("parallelism", 1)
    spec.setdefault("backoffLimit", 6)
    spec.setdefault("completionMode", "NonIndexed")
    spec.setdefault("suspend", False)
    spec.setdefault("podReplacementPolicy", "Failed" if "podFailurePolicy" in spec else "TerminatingOrFailed")
    for rule in spec.get("podFailurePolicy", {}).get("rules", ()):
        for pattern in rule.get("onPodConditions") or ():
            pattern.setdefault("status", "True")


def _train_job(store: Store, job: Object) -> None:
    """Trainer's validating webhook: the runtime must be there; torchrun's variables are Trainer's to set."""
    webhook = "validator.trainjob.trainer.kubeflow.org"
    spec: dict[str, Any] = job["spec"]
    spec["runtimeRef"] = {"apiGroup": "trainer.kubeflow.org", "kind": "ClusterTrainingRuntime", **spec["runtimeRef"]}
    name = spec["runtimeRef"]["name"]
    if store.find(RUNTIME, "", name) is None:
        why = f'ClusterTrainingRuntime.trainer.kubeflow.org "{name}" not found'
        raise errors.denied(
            webhook,
            f"spec.RuntimeRef: Invalid value: {why}: specified clusterTrainingRuntime must be created before the "
            "TrainJob is created",
        )
    reserved = sorted({item["name"] for item in (spec.get("trainer") or {}).get("env") or ()} & _RESERVED)
    if reserved:
        raise errors.denied(webhook, f"spec.trainer.env: Invalid value: must not have reserved envs: {reserved}")
    for patch in spec.get("runtimePatches") or ():
        _patch(webhook, patch)
    spec.setdefault("suspend", False)
    spec.setdefault("managedBy", "trainer.kubeflow.org/trainjob-controller")


def _patch(webhook: str, patch: Object) -> None:
    """Kubeflow Trainer, Runtime Patches, "Restrictions": the trainer's variables are set through `spec.trainer`."""
    template = ((patch.get("trainingRuntimeSpec") or {}).get("template") or {}).get("spec") or {}
    for replicated in template.get("replicatedJobs") or ():
        pod = (((replicated.get("template") or {}).get("spec") or {}).get("template") or {}).get("spec") or {}
        for container in pod.get("containers") or ():
            if container["name"] in ("node", "dataset-initializer", "model-initializer") and container.get("env"):
                why = f"must not have envs for the {container['name']} container"
                raise errors.denied(webhook, f"spec.runtimePatches: Invalid value: {why}")
