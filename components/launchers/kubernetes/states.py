"""What a cluster's objects say, as sentences for people. Nothing here talks to a cluster.

Sources: Kubernetes' pages "Jobs" (terminal conditions), "Pod Lifecycle" (phases, container states), "Disruptions" (pod
disruption conditions) and "Images" (ImagePullBackOff); Kubeflow Trainer's trainjob_types.go (conditions); KubeRay's
rayjob_types.go (jobDeploymentStatus); Kueue, "Troubleshooting Jobs" (conditions of a Workload).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.launchers.kubernetes.manifests import INDEX_LABEL, PART_LABEL, SUBMITTER
from components.launchers.output import ERROR
from components.profiles.cluster import QUEUE_LABEL
from mmbert.errors import InfrastructureError, MmbertError, UserError
from mmbert.ranks import STOPPED

Object = Mapping[str, Any]

TELL_AGAIN_SECONDS = 300.0
IMAGE_SECONDS = 300.0
"""How long an image may fail to be pulled: registries are away at times, and a wrong name stays wrong."""
_PULLING = ("ErrImagePull", "ImagePullBackOff")
_WRONG = ("InvalidImageName", "CreateContainerConfigError", "ErrImageNeverPull")
_OUT_OF_MEMORY = "OOMKilled"
_RAY_CODE = re.compile(r"exit code (\d+)")
_DISRUPTIONS = {
    "PreemptionByScheduler": "was preempted by work of a higher priority",
    "EvictionByEvictionAPI": "was evicted",
    "TerminationByKubelet": "was evicted by its node",
    "DeletionByTaintManager": "lost its node",
    "DeletionByPodGC": "lost its node",
}


@dataclass(frozen=True)
class End:
    """How an object ended: `complete`, or why not."""

    complete: bool
    reason: str = ""
    message: str = ""
    code: int | None = None
    """Where the object itself knows its program's exit code."""


def end(thing: Object) -> End | None:
    """How a Job, TrainJob or RayJob ended; None while it has not."""
    status = thing.get("status") or {}
    if thing.get("kind") == "RayJob":
        return _ray_end(status)
    for kind in ("Complete", "Failed"):
        found = _condition(status, kind)
        if found is not None and found["status"] == "True":
            return End(kind == "Complete", str(found.get("reason", "")), str(found.get("message", "")))
    return None


def _ray_end(status: Object) -> End | None:
    deployment, message = status.get("jobDeploymentStatus"), str(status.get("message", ""))
    if deployment not in ("Complete", "Failed"):
        return None
    # A Ray job that failed can leave its deployment Complete.
    complete = deployment == "Complete" and status.get("jobStatus") == "SUCCEEDED"
    code = _RAY_CODE.search(message)
    reason = str(status.get("reason") or status.get("jobStatus") or "")
    return End(complete, reason, message, int(code[1]) if code and not complete else None)


@dataclass(frozen=True)
class Exit:
    """How a pod's container ended."""

    pod: str
    index: int
    code: int
    out_of_memory: bool
    message: str
    """The last line that it wrote."""


def decisive(pods: Iterable[Object]) -> Exit | None:
    """Of the pods that failed by themselves the one that says why: others ended because it did."""
    failed = [found for pod in pods if disruption(pod) is None and (found := exit_of(pod)) and found.code != 0]
    return min(failed, key=lambda one: (_weight(one), one.index), default=None)


def _weight(found: Exit) -> int:
    order = [2, 1]
    if found.code in order:
        return order.index(found.code)
    if found.out_of_memory:
        return 2
    return {3: 4, STOPPED: 6}.get(found.code, 3 if found.code == 137 else 5)


def exit_of(pod: Object) -> Exit | None:
    """None while its container has not ended."""
    for container in (pod.get("status") or {}).get("containerStatuses") or ():
        ended = (container.get("state") or {}).get("terminated")
        if ended is not None:
            lines = [line.strip() for line in str(ended.get("message", "")).splitlines() if line.strip()]
            last = lines[-1].removeprefix(ERROR) if lines else ""
            memory = ended.get("reason") == _OUT_OF_MEMORY
            return Exit(name_of(pod), index_of(pod), int(ended["exitCode"]), memory, last)
    return None


def name_of(thing: Object) -> str:
    return str(thing["metadata"]["name"])


def uid_of(thing: Object) -> str:
    return str(thing["metadata"]["uid"])


def index_of(pod: Object) -> int:
    """Which node of several it is; 0 for the only one."""
    labels = pod["metadata"].get("labels") or {}
    return int(labels.get(INDEX_LABEL, "0"))


def is_over(pod: Object) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def is_leaving(thing: Object) -> bool:
    """Whether somebody deleted it; it stays until all that belongs to it has ended."""
    return "deletionTimestamp" in thing["metadata"]


def has_started(pod: Object) -> bool:
    """Whether its container runs or ran: it has a log."""
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    return any({"running", "terminated"} & (status.get("state") or {}).keys() for status in statuses)


def leader(pods: Sequence[Object]) -> Object | None:
    """The pod that speaks for all: node 0's newest, of a RayJob the one that submits it."""
    parts = [pod for pod in pods if PART_LABEL in (pod["metadata"].get("labels") or {})]
    if parts:
        speak = [pod for pod in parts if pod["metadata"]["labels"][PART_LABEL] == SUBMITTER]
    else:
        speak = [pod for pod in pods if index_of(pod) == 0]
    return max(speak, key=lambda pod: (str(pod["metadata"]["creationTimestamp"]), not is_over(pod)), default=None)


def disruption(pod: Object) -> str | None:
    """What happened to a pod that was no fault of its program's: told, and the cluster starts it again."""
    found = _condition(pod.get("status") or {}, "DisruptionTarget")
    if found is None or found["status"] != "True":
        return None
    what = _DISRUPTIONS.get(str(found.get("reason")), f"was disrupted ({found.get('reason')})")
    node = (pod.get("spec") or {}).get("nodeName")
    where = f" {node}" if node and what.endswith("node") else ""
    return f"pod {name_of(pod)} {what}{where}: {found.get('message', '')}".rstrip(": ")


@dataclass(frozen=True)
class Waits:
    """Why work does not run yet."""

    what: str
    error: type[MmbertError] = InfrastructureError
    for_image: bool = False
    at_once: bool = False
    """True where waiting does not help."""


def waits(thing: Object, pods: Sequence[Object], workloads: Sequence[Object], events: Sequence[Object]) -> Waits | None:
    """What an object that has not ended waits for; None where all of its pods run."""
    if (thing.get("spec") or {}).get("suspend"):
        return _waits_for_quota(thing, workloads)
    living = [pod for pod in pods if not is_over(pod)]
    if not living:
        return _waits_for_pods(events)
    found = [one for pod in living if (one := _pod_waits(pod))]
    return min(found, key=lambda one: (not one.at_once, not one.for_image), default=None)


def _waits_for_quota(thing: Object, workloads: Sequence[Object]) -> Waits:
    queue = (thing["metadata"].get("labels") or {}).get(QUEUE_LABEL)
    if queue is None:
        return Waits(f"{name_of(thing)} is suspended, and no queue of ours suspends it; `spec.suspend` has to go")
    said = "Kueue has not answered yet"
    for workload in workloads:
        status = workload.get("status") or {}
        conditions = [_condition(status, kind) for kind in ("QuotaReserved", "Admitted", "Evicted")]
        for condition in conditions:
            wanted = "True" if condition is not None and condition["type"] == "Evicted" else "False"
            if condition is not None and condition["status"] == wanted and condition.get("message"):
                return Waits(f"waits for quota in queue {queue}: {condition['message']}")
    return Waits(f"waits for quota in queue {queue}: {said}")


def _waits_for_pods(events: Sequence[Object]) -> Waits:
    refused = [event for event in events if event.get("type") == "Warning" and event.get("message")]
    newest = max(refused, key=_when, default=None)
    if newest is None:
        return Waits("waits for its pods")
    return Waits(f"waits for its pods, and the cluster says: {newest['message']}")


def _when(event: Object) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or event.get("firstTimestamp") or "")


def _pod_waits(pod: Object) -> Waits | None:
    status = pod.get("status") or {}
    name = name_of(pod)
    scheduled = _condition(status, "PodScheduled")
    if scheduled is not None and scheduled["status"] == "False":
        return Waits(f"waits for a node: {scheduled.get('message') or scheduled.get('reason')}")
    containers = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    for container in containers:
        waiting = (container.get("state") or {}).get("waiting")
        if waiting is None:
            continue
        reason, message = str(waiting.get("reason", "")), str(waiting.get("message", ""))
        image = container.get("image", "")
        if reason in _PULLING:
            return Waits(f"image {image} cannot be pulled ({reason}): {message}", UserError, for_image=True)
        if reason in _WRONG:
            what = f"image {image}" if "Image" in reason else f"pod {name}"
            return Waits(f"{what} cannot be started ({reason}): {message}", UserError, at_once=True)
        return Waits(f"pod {name} starts on {_node(pod)} ({reason}{': ' if message else ''}{message})")
    if status.get("phase", "Pending") == "Pending":
        return Waits(f"pod {name} waits for {'its node ' + _node(pod) if _has_node(pod) else 'the scheduler'}")
    return None


def _has_node(pod: Object) -> bool:
    return bool((pod.get("spec") or {}).get("nodeName"))


def _node(pod: Object) -> str:
    return str((pod.get("spec") or {}).get("nodeName") or "a node")


def runs(pods: Sequence[Object]) -> str:
    """Where work runs, once all of its pods do."""
    living = sorted((pod for pod in pods if not is_over(pod)), key=index_of)
    return f"runs: {', '.join(f'pod {name_of(pod)} on {_node(pod)}' for pod in living)}"


class Patience:
    """What was told of a wait, since when it lasts, and when it is too long. `now` is any clock's, in seconds."""

    def __init__(self, pending_seconds: float) -> None:
        self._pending = pending_seconds
        self._since: float | None = None
        self._image_since: float | None = None
        self._told = ""
        self._told_at = 0.0

    def hear(self, wait: Waits | None, now: float) -> str | None:
        """What to tell of it now, if anything. Raises the wait's error where it is over."""
        if wait is None:
            self._since = self._image_since = None
            self._told = ""
            return None
        self._since = now if self._since is None else self._since
        if not wait.for_image:
            self._image_since = None
        elif self._image_since is None:
            self._image_since = now
        if wait.at_once:
            raise wait.error(wait.what)
        if self._image_since is not None and now - self._image_since >= IMAGE_SECONDS:
            raise InfrastructureError(f"{wait.what} (for {_minutes(IMAGE_SECONDS)}); check its name, and the registry")
        if now - self._since >= self._pending:
            raise InfrastructureError(f"{wait.what} (for {_minutes(self._pending)}, kubernetes.pending_minutes)")
        if wait.what == self._told and now - self._told_at < TELL_AGAIN_SECONDS:
            return None
        self._told, self._told_at = wait.what, now
        return wait.what

    def left(self, now: float) -> float:
        """Seconds until there is something to tell or to end, as far as is known now."""
        if self._since is None:
            return TELL_AGAIN_SECONDS
        image = IMAGE_SECONDS - (now - self._image_since) if self._image_since is not None else IMAGE_SECONDS
        return max(0.0, min(self._pending - (now - self._since), image, TELL_AGAIN_SECONDS - (now - self._told_at)))


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:g} minutes" if seconds >= 60 else f"{seconds:g} s"


def _condition(status: Object, kind: str) -> Object | None:
    return next((one for one in status.get("conditions") or () if one["type"] == kind), None)
