"""What a cluster's objects say, in the words that a user reads."""

from __future__ import annotations

from typing import Any

import pytest

from components.launchers.kubernetes import states
from components.launchers.kubernetes.states import Patience, Waits
from mmbert.errors import InfrastructureError, UserError


def thing(kind: str = "Job", spec: Any = None, labels: Any = None, **status: Any) -> dict[str, Any]:
    return {
        "kind": kind,
        "metadata": {"name": "mmbert-train-1", "uid": "1", "labels": labels or {}},
        "spec": spec or {},
        "status": status,
    }


def condition(kind: str, status: str = "True", reason: str = "", message: str = "") -> dict[str, str]:
    return {"type": kind, "status": status, "reason": reason, "message": message}


def pod(
    name: str = "p-0", index: str | None = None, made: int = 0, node: str = "node-7", **status: Any
) -> dict[str, Any]:
    labels = {} if index is None else {"batch.kubernetes.io/job-completion-index": index}
    return {
        "metadata": {
            "name": name, "uid": name, "labels": labels, "creationTimestamp": f"2026-01-01T00:00:{made:02}Z",
        },
        "spec": {"nodeName": node} if node else {},
        "status": {"phase": "Running", **status},
    }  # fmt: skip


def ended(code: int, reason: str = "Error", message: str = "", **more: Any) -> dict[str, Any]:
    state = {"terminated": {"exitCode": code, "reason": reason, "message": message}}
    return pod(phase="Failed", containerStatuses=[{"name": "node", "state": state}], **more)


def leaving(one: dict[str, Any]) -> dict[str, Any]:
    one["metadata"] |= {"deletionTimestamp": "2026-01-01T00:01:00Z", "deletionGracePeriodSeconds": 60}
    return one


def waiting(reason: str, message: str = "", image: str = "r/i@sha256:0") -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": message}}
    return pod(phase="Pending", containerStatuses=[{"name": "node", "image": image, "state": state}])


@pytest.mark.parametrize("kind", ["Job", "TrainJob"])
def test_success_is_what_is_called_complete(kind: str) -> None:
    assert states.end(thing(kind)) is None
    # What comes before it says nothing yet: pods are still ending.
    assert states.end(thing(kind, conditions=[condition("SuccessCriteriaMet"), condition("FailureTarget")])) is None
    assert states.end(thing(kind, conditions=[condition("Complete", "False")])) is None
    good = states.end(thing(kind, conditions=[condition("Complete")]))
    assert good is not None
    assert good.complete
    bad = states.end(thing(kind, conditions=[condition("Failed", reason="BackoffLimitExceeded", message="why")]))
    assert bad == states.End(False, "BackoffLimitExceeded", "why")


def test_a_ray_job_tells_its_programs_exit_code() -> None:
    assert states.end(thing("RayJob", jobDeploymentStatus="Running", jobStatus="RUNNING")) is None
    good = states.end(thing("RayJob", jobDeploymentStatus="Complete", jobStatus="SUCCEEDED"))
    assert good is not None
    assert good.complete
    for deployment in ("Complete", "Failed"):
        message = "Job entrypoint command failed with exit code 2, last available logs (truncated to 20,000 chars):\n"
        bad = states.end(thing("RayJob", jobDeploymentStatus=deployment, jobStatus="FAILED", message=message))
        assert bad is not None
        assert (bad.complete, bad.code) == (False, 2)
    stopped = states.end(thing("RayJob", jobDeploymentStatus="Complete", jobStatus="STOPPED"))
    assert stopped is not None
    assert (stopped.complete, stopped.code) == (False, None)


def test_of_several_pods_the_one_that_says_why_counts() -> None:
    lost, stopped, wrong = (
        ended(3, index="0"),
        ended(130, index="1"),
        ended(2, index="2", message="a\nerror: bad recipe\n"),
    )
    found = states.decisive([lost, stopped, wrong])
    assert found is not None
    assert (found.code, found.message, found.index) == (2, "bad recipe", 2)
    memory = ended(137, "OOMKilled", index="3")
    found = states.decisive([lost, stopped, memory])
    assert found is not None
    assert found.out_of_memory
    found = states.decisive([stopped, lost])
    assert found is not None
    assert found.code == 3
    assert states.decisive([pod(), ended(0)]) is None
    # What the cluster did to a pod is not its program's fault.
    evicted = ended(137)
    evicted["status"]["conditions"] = [condition("DisruptionTarget", reason="TerminationByKubelet")]
    assert states.decisive([evicted]) is None


@pytest.mark.parametrize(
    ("code", "reason", "not_run"),
    [
        (128, "StartError", True), (128, "Error", True), (255, "Unknown", True), (255, "Error", True),
        (193, "Error", True), (137, "ContainerStatusUnknown", True), (1, "Unknown", True),
        (192, "Error", False), (137, "Error", False), (137, "OOMKilled", False), (127, "Error", False),
    ],
)  # fmt: skip
def test_a_container_that_its_node_could_not_run_says_nothing_of_its_program(
    code: int, reason: str, not_run: bool
) -> None:
    found = states.exit_of(ended(code, reason))
    assert found is not None
    assert found.not_run == not_run
    # It is why others ended with 3, and less than what a program said itself.
    failed = states.decisive([ended(3, index="0"), ended(code, reason, index="1"), ended(130, index="2")])
    assert failed is not None
    assert failed.index == (0 if code in {127, 192} else 1)


def test_containers_beside_ours_say_nothing() -> None:
    state = {"terminated": {"exitCode": 0, "reason": "Completed"}}
    for part, name in (("", "node"), ("submitter", "ray-submitter"), ("head", "ray-head")):
        one = pod(containerStatuses=[{"name": "proxy", "state": state}, {"name": name, "state": {"running": {}}}])
        one["metadata"]["labels"] |= {"mmbert.dev/part": part} if part else {}
        assert states.container_of(one) == name
        assert states.exit_of(one) is None
        assert states.has_started(one)
        one["status"]["containerStatuses"][1]["state"] = {"terminated": {"exitCode": 2, "reason": "Error"}}
        found = states.exit_of(one)
        assert found is not None
        assert found.code == 2
        one["status"]["containerStatuses"].pop()
        assert not states.has_started(one)


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("PreemptionByScheduler", "pod p-0 was preempted by work of a higher priority: why"),
        ("EvictionByEvictionAPI", "pod p-0 was evicted: why"),
        ("TerminationByKubelet", "pod p-0 was evicted by its node node-7: why"),
        ("DeletionByTaintManager", "pod p-0 lost its node node-7: why"),
        ("DeletionByPodGC", "pod p-0 lost its node node-7: why"),
        ("SomethingNew", "pod p-0 was disrupted (SomethingNew): why"),
    ],
)
def test_what_happened_to_a_pod(reason: str, told: str) -> None:
    assert states.disruption(pod(conditions=[condition("DisruptionTarget", reason=reason, message="why")])) == told
    assert states.disruption(pod(conditions=[condition("DisruptionTarget", "False", reason)])) is None
    assert states.disruption(pod()) is None


def test_the_leader_is_the_newest_pod_of_the_first_node() -> None:
    first, again, other = pod("a", "0", 1), pod("b", "0", 5), pod("c", "1", 9)
    found = states.leader([first, again, other])
    assert found is not None
    assert found["metadata"]["name"] == "b"
    assert states.leader([other]) is None
    submitter, head = pod("s"), pod("h", made=3)
    for one, part in ((submitter, "submitter"), (head, "head")):
        one["metadata"]["labels"]["mmbert.dev/part"] = part
    found = states.leader([submitter, head])
    assert found is not None
    assert found["metadata"]["name"] == "s"
    assert states.leader([head]) is None


QUEUED = {"kueue.x-k8s.io/queue-name": "mmbert-h100"}
UNSCHEDULED = condition(
    "PodScheduled", "False", "Unschedulable", "0/4 nodes are available: 4 Insufficient nvidia.com/gpu."
)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (
            (thing(spec={"suspend": True}, labels=QUEUED), [], [thing("Workload", conditions=[
                condition("QuotaReserved", "False", "Pending", "insufficient unused quota for nvidia.com/gpu")])], []),
            Waits("waits for quota in queue mmbert-h100: insufficient unused quota for nvidia.com/gpu", in_queue=True),
        ),
        (
            (thing(spec={"suspend": True}, labels=QUEUED), [], [thing("Workload", conditions=[
                condition("QuotaReserved", "True", "", "Quota reserved"), condition("Admitted", "False", "", "check"),
            ])], []),
            Waits("waits for quota in queue mmbert-h100: check", in_queue=True),
        ),
        (
            (thing(spec={"suspend": True}, labels=QUEUED), [], [], []),
            Waits("waits for quota in queue mmbert-h100: Kueue has not answered yet", in_queue=True),
        ),
        (
            (thing(spec={"suspend": True}), [], [], []),
            Waits("mmbert-train-1 is suspended, and no queue of ours suspends it; `spec.suspend` has to go"),
        ),
        (
            (thing(), [pod(node="", phase="Pending", conditions=[UNSCHEDULED])], [], []),
            Waits("waits for a node: 0/4 nodes are available: 4 Insufficient nvidia.com/gpu."),
        ),
        (
            (thing(), [pod(node="", phase="Pending")], [], []),
            Waits("pod p-0 waits for the scheduler"),
        ),
        (
            (thing(), [waiting("ContainerCreating")], [], []),
            Waits("pod p-0 starts on node-7 (ContainerCreating)"),
        ),
        (
            (thing(), [waiting("ImagePullBackOff", "unauthorized")], [], []),
            Waits("image r/i@sha256:0 cannot be pulled (ImagePullBackOff): unauthorized",
                  advice="check its name, and the registry"),
        ),
        (
            (thing(), [waiting("InvalidImageName", "invalid ref")], [], []),
            Waits("image r/i@sha256:0 cannot be started (InvalidImageName): invalid ref", UserError, at_once=True),
        ),
        (
            (thing(), [waiting("CreateContainerConfigError", 'secret "s" not found')], [], []),
            Waits('pod p-0 cannot be started (CreateContainerConfigError): secret "s" not found', UserError,
                  advice="create what it names in the namespace"),
        ),
        (
            (thing(), [leaving(pod())], [], []),
            Waits("pod p-0 is still ending on node-7; where that node is lost, delete it from the cluster",
                  grace_seconds=60),
        ),
        (
            (thing(), [], [], [
                {"type": "Warning", "message": "older", "lastTimestamp": "2026-01-01T00:00:00Z"},
                {"type": "Warning", "message": "exceeded quota", "lastTimestamp": "2026-01-01T00:00:01Z"},
                {"type": "Normal", "message": "newer", "lastTimestamp": "2026-01-01T00:00:02Z"},
            ]),
            Waits("waits for its pods, and the cluster says: exceeded quota"),
        ),
        ((thing(), [ended(3)], [], []), Waits("waits for its pods")),
        ((thing(), [pod("a", "0"), pod("b", "1")], [], []), None),
        (
            (thing(), [pod("a", "0"), pod("b", "1", node="", phase="Pending", conditions=[UNSCHEDULED])], [], []),
            Waits("waits for a node: 0/4 nodes are available: 4 Insufficient nvidia.com/gpu."),
        ),
    ],
)  # fmt: skip
def test_what_it_waits_for(found: Any, expected: Waits | None) -> None:
    assert states.waits(*found) == expected


def test_where_it_runs() -> None:
    pods = [pod("b", "1", node="n2"), pod("a", "0", node="n1"), ended(3, index="0")]
    assert states.runs(pods) == "runs: pod a on n1, pod b on n2"


NODE = Waits("waits for a node: none")
PODS = Waits("waits for its pods")
QUOTA = Waits("waits for quota in queue q: none", in_queue=True)
ENDING = Waits("pod p is still ending", grace_seconds=600)
IMAGE = Waits("image i cannot be pulled", advice="check its name")
UNCONFIGURED = Waits("secret s not found", UserError, advice="create it")


def test_a_wait_is_told_when_it_changes_and_every_five_minutes() -> None:
    patience = Patience(1800)
    assert patience.hear(NODE, 0) == NODE.what
    assert patience.hear(NODE, 299) is None
    assert patience.hear(QUOTA, 299) == QUOTA.what
    assert patience.hear(QUOTA, 598) is None
    assert patience.hear(QUOTA, 599) == QUOTA.what
    assert patience.hear(None, 600) is None
    assert patience.hear(QUOTA, 601) == QUOTA.what


def test_a_wait_that_is_too_long_ends() -> None:
    patience = Patience(1800)
    patience.hear(NODE, 0)
    patience.hear(PODS, 1799)
    with pytest.raises(InfrastructureError, match=r"its pods \(for 30 minutes, kubernetes.pending_minutes\)"):
        patience.hear(PODS, 1800)
    patience = Patience(1800)
    patience.hear(NODE, 0)
    patience.hear(None, 1000)
    assert patience.hear(NODE, 1900) == NODE.what  # it had run meanwhile


def test_a_queue_has_its_own_time_and_none_where_nothing_is_said() -> None:
    patience = Patience(1800)
    for now in range(0, 10**6, 300):
        assert patience.hear(QUOTA, now) == QUOTA.what
        assert patience.left(now) == 300
    # Its pods' time begins once it has its quota.
    patience.hear(NODE, 10**6)
    patience.hear(NODE, 10**6 + 1799)
    with pytest.raises(InfrastructureError, match=r"pending_minutes"):
        patience.hear(NODE, 10**6 + 1800)
    patience = Patience(1800, queue_seconds=3600)
    patience.hear(QUOTA, 0)
    patience.hear(QUOTA, 3599)
    assert patience.left(3599) == 1
    with pytest.raises(InfrastructureError, match=r"queue q: none \(for 60 minutes, kubernetes.queue_minutes\)"):
        patience.hear(QUOTA, 3600)


def test_a_pod_that_is_ending_has_its_grace_and_the_next_its_whole_time() -> None:
    patience = Patience(1800)
    patience.hear(ENDING, 0)
    patience.hear(ENDING, 2399)
    patience.hear(NODE, 2400)
    patience.hear(NODE, 4199)
    patience = Patience(1800)
    patience.hear(ENDING, 0)
    with pytest.raises(InfrastructureError, match=r"ending \(for 40 minutes, kubernetes.pending_minutes and its grace"):
        patience.hear(ENDING, 2400)


def test_an_image_and_a_secret_have_five_minutes_and_what_is_wrong_none() -> None:
    patience = Patience(1800)
    patience.hear(NODE, 0)
    patience.hear(IMAGE, 1000)
    patience.hear(IMAGE, 1299)
    with pytest.raises(InfrastructureError, match=r"image i cannot be pulled \(for 5 minutes\); check its name"):
        patience.hear(IMAGE, 1300)
    patience = Patience(1800)
    patience.hear(UNCONFIGURED, 0)
    patience.hear(UNCONFIGURED, 299)
    with pytest.raises(UserError, match=r"secret s not found \(for 5 minutes\); create it"):
        patience.hear(UNCONFIGURED, 300)
    with pytest.raises(UserError, match="invalid"):
        Patience(1800).hear(Waits("invalid", UserError, at_once=True), 0)


def test_the_next_look_is_when_there_is_something_to_tell_or_to_end() -> None:
    patience = Patience(400)
    assert patience.left(0) == 300
    patience.hear(NODE, 0)
    assert patience.left(10) == 290
    patience.hear(NODE, 300)
    assert patience.left(310) == 90
