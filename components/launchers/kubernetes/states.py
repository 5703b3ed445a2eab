"""What a cluster's objects say, as sentences for people. Nothing here talks to a cluster.

Sources: Kubernetes' pages "Jobs" (terminal conditions), "Pod Lifecycle" (phases, container states), "Disruptions" (pod
disruption conditions) and "Images" (ImagePullBackOff); Kubeflow Trainer's trainjob_types.go (conditions); KubeRay's
rayjob_types.go (jobDeploymentStatus); Kueue, "Troubleshooting Jobs" (conditions of a Workload).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.launchers.kubernetes.manifests import CONTAINER, INDEX_LABEL, PART_LABEL, SUBMITTER
from components.launchers.output import ERROR
from components.profiles.cluster import QUEUE_LABEL
from mmbert.errors import InfrastructureError, MmbertError, UserError
from mmbert.ranks import STOPPED

Object = Mapping[str, Any]

TELL_AGAIN_SECONDS = 300.0
IMAGE_SECONDS = 300.0
"""How long an image may fail to be pulled, or a secret's key be missing: registries are away at times, and secrets
come after the work that names them; a wrong name stays wrong."""
_PULLING = ("ErrImagePull", "ImagePullBackOff")
_WRONG = ("InvalidImageName", "ErrImageNeverPull")
_UNCONFIGURED = "CreateContainerConfigError"
_NOT_RUN = ("StartError", "ContainerStatusUnknown", "Unknown")
"""Reasons of the kubelet's and containerd's for the end of a container that says nothing of its program."""
_START_ERROR_CODE = 128
_NO_SIGNAL = 193
"""From here on exit codes are no signal's (128 and 1 to 64); containerd gives 255 where it does not know."""
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
    reason: str
    """The kubelet's word for it."""
    message: str
    """The last line that it wrote."""

    @property
    def out_of_memory(self) -> bool:
        return self.reason == _OUT_OF_MEMORY

    @property
    def not_run(self) -> bool:
        """Whether its node could not start it, or lost sight of it: the code is not its program's."""
        return self.reason in _NOT_RUN or self.code == _START_ERROR_CODE or self.code >= _NO_SIGNAL


def decisive(pods: Iterable[Object]) -> Exit | None:
    """Of the pods that failed by themselves the one that says why: others ended because it did."""
    failed = [found for pod in pods if disruption(pod) is None and (found := exit_of(pod)) and found.code != 0]
    return min(failed, key=lambda one: (_weight(one), one.index), default=None)


def _weight(found: Exit) -> int:
    order = [2, 1]
    if found.not_run:
        return 3
    if found.code in order:
        return order.index(found.code)
    if found.out_of_memory:
        return 2
    return {3: 4, STOPPED: 6}.get(found.code, 3 if found.code == 137 else 5)


def exit_of(pod: Object) -> Exit | None:
    """None while its container has not ended. Others that were put beside it say nothing of the work."""
    ended = (_status_of_ours(pod).get("state") or {}).get("terminated")
    if ended is None:
        return None
    lines = [line.strip() for line in str(ended.get("message", "")).splitlines() if line.strip()]
    last = lines[-1].removeprefix(ERROR) if lines else ""
    return Exit(name_of(pod), index_of(pod), int(ended["exitCode"]), str(ended.get("reason", "")), last)


def container_of(pod: Object) -> str:
    """The name of the container that does the work."""
    part = (pod["metadata"].get("labels") or {}).get(PART_LABEL)
    return CONTAINER if part is None else f"ray-{part}"


def _status_of_ours(pod: Object) -> Object:
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    return next((status for status in statuses if status["name"] == container_of(pod)), {})


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
    return bool({"running", "terminated"} & (_status_of_ours(pod).get("state") or {}).keys())


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
    advice: str = ""
    """What to do where it has IMAGE_SECONDS and no more."""
    at_once: bool = False
    """True where waiting does not help."""
    in_queue: bool = False
    """True where quota of a queue has to come free."""
    grace_seconds: float | None = None
    """Of a pod that is ending."""


def waits(thing: Object, pods: Sequence[Object], workloads: Sequence[Object], events: Sequence[Object]) -> Waits | None:
    """What an object that has not ended waits for; None where all of its pods run."""
    if (thing.get("spec") or {}).get("suspend"):
        return _waits_for_quota(thing, workloads)
    living = [pod for pod in pods if not is_over(pod)]
    if not living:
        return _waits_for_pods(events)
    found = [one for pod in living if (one := _pod_waits(pod))]
    return min(found, key=lambda one: (not one.at_once, not one.advice), default=None)


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
                return Waits(f"waits for quota in queue {queue}: {condition['message']}", in_queue=True)
    return Waits(f"waits for quota in queue {queue}: {said}", in_queue=True)


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
    if is_leaving(pod):
        grace = float(pod["metadata"].get("deletionGracePeriodSeconds") or 0)
        what = f"pod {name} is still ending on {_node(pod)}; where that node is lost, delete it from the cluster"
        return Waits(what, grace_seconds=grace)
    scheduled = _condition(status, "PodScheduled")
    if scheduled is not None and scheduled["status"] == "False":
        return Waits(f"waits for a node: {scheduled.get('message') or scheduled.get('reason')}")
    for container in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]:
        if (waiting := (container.get("state") or {}).get("waiting")) is not None:
            return _container_waits(pod, str(container.get("image", "")), waiting)
    if status.get("phase", "Pending") == "Pending":
        return Waits(f"pod {name} waits for {'its node ' + _node(pod) if _has_node(pod) else 'the scheduler'}")
    return None


def _container_waits(pod: Object, image: str, waiting: Object) -> Waits:
    reason, message, name = str(waiting.get("reason", "")), str(waiting.get("message", "")), name_of(pod)
    if reason in _PULLING:
        what = f"image {image} cannot be pulled ({reason}): {message}"
        return Waits(what, advice="check its name, and the registry")
    if reason == _UNCONFIGURED:
        what = f"pod {name} cannot be started ({reason}): {message}"
        return Waits(what, UserError, advice="create what it names in the namespace")
    if reason in _WRONG:
        return Waits(f"image {image} cannot be started ({reason}): {message}", UserError, at_once=True)
    return Waits(f"pod {name} starts on {_node(pod)} ({reason}{': ' if message else ''}{message})")


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

    def __init__(self, pending_seconds: float, queue_seconds: float | None = None) -> None:
        self._pending, self._queue = pending_seconds, queue_seconds
        self._wait: Waits | None = None
        self._since = 0.0
        self._short_since: float | None = None
        self._told = ""
        self._told_at = 0.0

    def hear(self, wait: Waits | None, now: float) -> str | None:
        """What to tell of it now, if anything. Raises the wait's error where it is over."""
        before, self._wait = self._wait, wait
        if wait is None:
            self._short_since = None
            self._told = ""
            return None
        # A place in a queue, and the end of a pod, have their own time: the rest begins after them.
        if before is None or _clock(before) != _clock(wait):
            self._since = now
        if not wait.advice:
            self._short_since = None
        elif self._short_since is None:
            self._short_since = now
        if wait.at_once:
            raise wait.error(wait.what)
        if self._short_since is not None and now - self._short_since >= IMAGE_SECONDS:
            raise wait.error(f"{wait.what} (for {_minutes(IMAGE_SECONDS)}); {wait.advice}")
        longest, key = self._longest(wait)
        if now - self._since >= longest:
            raise InfrastructureError(f"{wait.what} (for {_minutes(longest)}, {key})")
        if wait.what == self._told and now - self._told_at < TELL_AGAIN_SECONDS:
            return None
        self._told, self._told_at = wait.what, now
        return wait.what

    def left(self, now: float) -> float:
        """Seconds until there is something to tell or to end, as far as is known now."""
        if self._wait is None:
            return TELL_AGAIN_SECONDS
        short = IMAGE_SECONDS - (now - self._short_since) if self._short_since is not None else IMAGE_SECONDS
        longest, _ = self._longest(self._wait)
        return max(0.0, min(longest - (now - self._since), short, TELL_AGAIN_SECONDS - (now - self._told_at)))

    def _longest(self, wait: Waits) -> tuple[float, str]:
        """How long it may last, and the profile's key that says so."""
        if wait.in_queue:
            return math.inf if self._queue is None else self._queue, "kubernetes.queue_minutes"
        if wait.grace_seconds is not None:
            return self._pending + wait.grace_seconds, "kubernetes.pending_minutes and its grace"
        return self._pending, "kubernetes.pending_minutes"


def _clock(wait: Waits) -> tuple[bool, bool]:
    return wait.in_queue, wait.grace_seconds is not None


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:g} minutes" if seconds >= 60 else f"{seconds:g} s"


def _condition(status: Object, kind: str) -> Object | None:
    return next((one for one in status.get("conditions") or () if one["type"] == kind), None)
