"""The launcher `kubernetes`: a component as a Job, over several nodes as a TrainJob, with Ray as a RayJob.

The object is named after its work, so that a second start meets the first: a task that is tried again, because its
worker was killed, waits for what still runs. What stops a task deletes its object. Success is what the object itself
calls Complete; whether the artifact is there is asked afterwards (components.launchers.launch).
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator, Sequence

from components import profiles
from components.contract import Component
from components.launchers import work
from components.launchers.kubernetes import api, manifests, states
from components.launchers.kubernetes.logs import Follower
from components.launchers.kubernetes.manifests import (
    CONTAINER,
    JOB,
    JOB_SET,
    RAY_JOB,
    TRAIN_JOB,
    WAITER,
    WORK_LABEL,
    Manifests,
    Object,
)
from components.planning import Plan
from mmbert import artifacts
from mmbert.errors import InfrastructureError, MmbertError, UserError
from mmbert.ranks import STOPPED

_WATCH_SECONDS = 60.0
_LOOK_SECONDS = 1.0
_QUEUE_LOOK_SECONDS = 10.0
_SOON_SECONDS = 5.0
"""How long pods may take to be made, or an end to be counted, before anything is said of it."""
_DEADLINE = "DeadlineExceeded"
_SIGNAL = 128
"""Exit codes above are this and a signal's number."""

Tell = Callable[[str], None]


def run(plan: Plan, arguments: list[str], root: str, tell: Tell) -> tuple[int, str]:
    """Run `mmbert` with these arguments on the cluster; exit code (negative: the signal that ended it) and last line.

    `tell` hears what the work waits for, and what happens to it. Raises UserError for what a profile, an image or a
    permission lacks; InfrastructureError where the cluster does not answer, has no place for it, or lost it.
    """
    made = manifests.manifests(plan, arguments, root)
    made.item["metadata"]["annotations"][WAITER] = uuid.uuid4().hex
    if made.note:
        tell(made.note)
    with api.connected(str(made.item["metadata"]["namespace"]), tell) as cluster, _ended_with_us(cluster, made):
        thing = _started(cluster, made, plan, tell)
        watched = _Watched(cluster, made, plan, tell, thing)
        try:
            return watched.to_the_end()
        except UserError:
            # Nobody tries again, so nobody would meet it.
            _delete(cluster, made)
            raise
        finally:
            watched.stop()


def check(item: Component, root: str) -> None:
    """Raise UserError for what is wrong here, of profile, image, root or kubeconfig, before the store is asked."""
    manifests.check(item, root)
    api.check_kubeconfig()


@contextlib.contextmanager
def _ended_with_us(cluster: api.Cluster, made: Manifests) -> Iterator[None]:
    """What stops the task deletes its object. After an error of the cluster's or a SIGKILL it goes on, and the task's
    next attempt meets it."""
    try:
        yield
    except Exception:
        raise
    except BaseException:
        _delete(cluster, made)
        raise


def _delete(cluster: api.Cluster, made: Manifests) -> None:
    """Delete what is not over, unless another start has met it since and waits for it; what fails of that does not
    hide why."""
    try:
        while True:
            there = cluster.get(made.kind, made.name)
            if there is None or states.end(there) is not None or states.is_leaving(there):
                return
            meta = there["metadata"]
            if meta.get("annotations", {}).get(WAITER) != made.item["metadata"]["annotations"][WAITER]:
                print(f"{made.name} goes on: another start of the same work waits for it", flush=True)
                return
            with contextlib.suppress(api.ChangedError):
                cluster.delete(made.kind, made.name, states.uid_of(there), str(meta["resourceVersion"]))
                return
    except MmbertError as error:
        print(f"{made.kind.kind} {made.name} could not be deleted: {error}", flush=True)


def _started(cluster: api.Cluster, made: Manifests, plan: Plan, tell: Tell) -> Object:
    """The object that does this work: one that is at it already, or a new one once the last is gone with its pods."""
    leaving = _Leaving(made, tell)
    while True:
        there = cluster.get(made.kind, made.name)
        if there is None:
            _check_other_shapes(cluster, made)
            if rest := _rest(cluster, made):
                leaving.wait(rest)
                continue
            try:
                thing = _created(cluster, made, tell)
            except api.AlreadyThereError:
                continue
            break
        end = states.end(there)
        if states.is_leaving(there):
            leaving.wait([there])
        elif end is None or (end.complete and plan.done() is not None):
            taken = cluster.take(made.kind, made.name, made.item["metadata"]["annotations"][WAITER])
            if taken is None:
                continue
            print(f"{made.name} runs already; waiting for it", flush=True)
            thing = taken
            break
        else:
            with contextlib.suppress(api.ChangedError):
                cluster.delete(made.kind, made.name, states.uid_of(there))
    _serve(cluster, made, thing)
    return thing


def _serve(cluster: api.Cluster, made: Manifests, thing: Object) -> None:
    """Make the Service by which nodes meet, where they do."""
    if made.service is None:
        return
    try:
        cluster.create_service(_owned(made.service, made, thing))
    except MmbertError:
        # Without it the pods would wait for each other.
        _delete(cluster, made)
        raise


def _rest(cluster: api.Cluster, made: Manifests) -> list[Object]:
    """What is left of an object of this name that is gone itself."""
    rest = [pod for pod in cluster.pods(_digest(made))[0] if not states.is_over(pod)]
    # Trainer may make it anew while its TrainJob goes.
    job_set = cluster.get(JOB_SET, made.name) if made.kind == TRAIN_JOB else None
    return rest if job_set is None else [*rest, job_set]


def _check_other_shapes(cluster: api.Cluster, made: Manifests) -> None:
    """Raise InfrastructureError where the same work is on its way as another kind of object, of another profile."""
    for kind in (JOB, TRAIN_JOB, RAY_JOB):
        other = cluster.get(kind, made.name) if kind != made.kind else None
        if other is not None and states.end(other) is None:
            raise InfrastructureError(
                f"a {kind.kind} {made.name} is at the same work already, started with another profile; wait for its "
                "end, or delete it, and run this again"
            )


def _created(cluster: api.Cluster, made: Manifests, tell: Tell) -> Object:
    """A new object, once the namespace's quota has room for it. Raises AlreadyThereError."""
    patience = _patience()
    while True:
        try:
            return cluster.create(made.kind, made.item)
        except api.OverQuotaError as error:
            waits = states.Waits(f"waits for quota in the namespace {cluster.namespace}: {error}")
            told = patience.hear(waits, time.monotonic())
        if told is not None:
            tell(told)
        time.sleep(min(_QUEUE_LOOK_SECONDS, patience.left(time.monotonic())))


class _Leaving:
    """Waits for an earlier start's object and pods to be gone: there are never two at the same work."""

    def __init__(self, made: Manifests, tell: Tell) -> None:
        self._tell, self._name = tell, made.name
        share = profiles.cluster()
        grace = int(made.item["spec"].get("template", {}).get("spec", {}).get("terminationGracePeriodSeconds", 600))
        self._seconds = share.pending_minutes * 60 + grace
        self._since: float | None = None

    def wait(self, rest: Sequence[Object]) -> None:
        names = ", ".join(states.name_of(one) for one in rest)
        if self._since is None:
            self._since = time.monotonic()
            self._tell(f"an earlier start of {self._name} is still ending ({names}); waiting for it")
        if time.monotonic() - self._since > self._seconds:
            raise InfrastructureError(
                f"an earlier start of {self._name} does not end ({names}); where its node is lost, delete the node "
                "from the cluster, and run this again"
            )
        time.sleep(_LOOK_SECONDS)


def _owned(service: Object, made: Manifests, owner: Object) -> Object:
    """The Service with its owner, with which it goes."""
    reference = {
        "apiVersion": made.kind.api_version,
        "kind": made.kind.kind,
        "name": made.name,
        "uid": states.uid_of(owner),
    }
    return {**service, "metadata": {**service["metadata"], "ownerReferences": [reference]}}


def _patience() -> states.Patience:
    share = profiles.cluster()
    return states.Patience(share.pending_minutes * 60, share.queue_minutes and share.queue_minutes * 60)


def _digest(made: Manifests) -> str:
    return made.labels[WORK_LABEL]


def _tellers(name: str, thing: Object) -> list[str]:
    """The objects whose events say why there are no pods: itself, Trainer's Job for it, KubeRay's cluster for it."""
    ray = (thing.get("status") or {}).get("rayClusterName")
    return [name, f"{name}-{CONTAINER}-0", *([str(ray)] if ray else [])]


class _Watched:
    """An object at work, from its start to its end."""

    def __init__(self, cluster: api.Cluster, made: Manifests, plan: Plan, tell: Tell, thing: Object) -> None:
        self._cluster, self._made, self._plan, self._tell = cluster, made, plan, tell
        self._uid, self._since = states.uid_of(thing), str(thing["metadata"]["creationTimestamp"])
        self._patience = _patience()
        cluster.is_at_work = True
        self._follower: Follower | None = None
        self._followed = ""
        self._living = False
        self._steady: dict[str, str] = {}
        self._told: set[str] = set()
        self._runs = ""
        self._without_pods: float | None = None

    def stop(self) -> None:
        if self._follower is not None:
            self._follower.stop()

    def to_the_end(self) -> tuple[int, str]:
        """Exit code and last line; what happens meanwhile is told, and the log shown."""
        while True:
            thing = self._cluster.get(self._made.kind, self._made.name)
            pods, version = self._cluster.pods(_digest(self._made))
            self._tell_disruptions(pods)
            self._see(pods, thing)
            self._follow(pods)
            if thing is None or states.uid_of(thing) != self._uid:
                return self._gone()
            end = states.end(thing)
            if end is not None:
                # Pods of an earlier object may still be there, over.
                return self._ended(end, [p for p in pods if p["metadata"]["creationTimestamp"] >= self._since])
            seconds = self._wait(thing, pods)
            if self._living:
                for pod in (changed := self._cluster.changed_pods(_digest(self._made), version, seconds)):
                    if states.is_leaving(pod):
                        self._steady.pop(states.uid_of(pod), None)
                self._tell_disruptions(changed)
            else:
                self._cluster.changed(self._made.kind, thing, seconds)

    def _wait(self, thing: Object, pods: list[Object]) -> float:
        """Tell what it waits for; for how long nothing else is to be told. Raises where it waited too long."""
        suspended = bool(thing["spec"].get("suspend"))
        if self._living or suspended:
            self._without_pods = None
        elif self._without_pods is None:
            self._without_pods = time.monotonic()
        if self._without_pods is not None and time.monotonic() - self._without_pods < _SOON_SECONDS:
            return _LOOK_SECONDS
        workloads = self._if_allowed("workloads", lambda: self._cluster.workloads(self._uid)) if suspended else []
        no_events = self._living or suspended
        events = (
            []
            if no_events
            else self._if_allowed("events", lambda: self._cluster.events(*_tellers(self._made.name, thing)))
        )
        waits = states.waits(thing, pods, workloads, events)
        try:
            told = self._patience.hear(waits, time.monotonic())
        except MmbertError:
            _delete(self._cluster, self._made)
            raise
        if told is not None:
            self._tell(told)
        if waits is None and (runs := states.runs(pods)) != self._runs:
            self._runs = runs
            self._tell(runs)
        longest = _WATCH_SECONDS if self._living else _QUEUE_LOOK_SECONDS
        return min(longest, self._patience.left(time.monotonic()))

    def _if_allowed(self, what: str, ask: Callable[[], list[Object]]) -> list[Object]:
        try:
            return ask()
        except api.DeniedError as error:
            self._tell_denied(what, error)
            return []

    def _tell_denied(self, what: str, error: MmbertError | None) -> None:
        """Tell once of what is good to know and may not be read."""
        if error is not None and what not in self._told:
            self._told.add(what)
            self._tell(f"{error}; the work goes on without its {what}")

    def _tell_disruptions(self, pods: Sequence[Object]) -> None:
        """Tell of pods that were stopped, each once."""
        for pod in pods:
            happened = states.disruption(pod)
            if happened is not None and states.uid_of(pod) not in self._told:
                self._told.add(states.uid_of(pod))
                self._tell(f"{happened}; {self._again}")

    def _see(self, pods: Sequence[Object], thing: Object | None) -> None:
        """Keep which pods there are, and tell of those that are gone though nobody ended them as they should be."""
        at_work = thing is not None and not thing["spec"].get("suspend") and not states.is_leaving(thing)
        there = {states.uid_of(pod) for pod in pods}
        for uid in self._steady.keys() - there - self._told:
            # A Ray cluster goes with its work.
            if at_work and self._made.kind != RAY_JOB:
                self._told.add(uid)
                self._tell(f"pod {self._steady[uid]} is gone: somebody deleted it, or its node; {self._again}")
        living = [pod for pod in pods if not states.is_over(pod)]
        self._living = bool(living)
        self._steady = {states.uid_of(pod): states.name_of(pod) for pod in living if not states.is_leaving(pod)}

    @property
    def _again(self) -> str:
        where = ", from its last checkpoint" if self._plan.component.name == "train" else ""
        return f"the cluster starts it again{where}"

    def _follow(self, pods: Sequence[Object]) -> None:
        """Show the log of the pod that speaks for all, to its end, and then that of the one in its place."""
        leader = states.leader(pods)
        if self._follower is not None:
            self._tell_denied("log", self._follower.denied)
            followed = next((pod for pod in pods if states.uid_of(pod) == self._followed), None)
            if followed is None or states.exit_of(followed) is not None:
                self._follower.finish()
        if leader is None or not states.has_started(leader) or states.uid_of(leader) == self._followed:
            return
        if self._follower is not None:
            self._follower.finish()
            self._last_line(0)
            self._tell(f"starts again: pod {states.name_of(leader)}")
        self._followed = states.uid_of(leader)
        self._follower = Follower(self._cluster, states.name_of(leader), states.container_of(leader))

    def _ended(self, end: states.End, pods: Sequence[Object]) -> tuple[int, str]:
        if self._follower is not None:
            self._follower.finish()
            self._tell_denied("log", self._follower.denied)
        if end.complete:
            if self._made.kind != JOB:
                # A Job goes a day after it ended; these have no such field.
                try:
                    self._cluster.delete(self._made.kind, self._made.name, self._uid)
                except api.ChangedError:
                    pass
                except api.DeniedError as error:
                    self._tell(f"{error}; {self._made.kind.kind} {self._made.name} is done, and stays")
            return 0, self._last_line(0)
        called = f"{self._made.kind.kind} {self._made.name}"
        if end.reason == _DEADLINE:
            raise InfrastructureError(
                f"{called} took longer than its deadline_hours "
                f"(kubernetes.classes.{self._plan.component.resources} of the profile {profiles.shown_name()}); run it "
                "again to go on"
            )
        failed = states.decisive(pods)
        code = end.code if self._made.kind == RAY_JOB else failed.code if failed else None
        if code is None:
            raise InfrastructureError(
                f"{called} failed, and no pod is left that says why ({end.reason}: {end.message}); run it again to go "
                "on"
            )
        if failed is not None and failed.not_run and self._made.kind != RAY_JOB:
            raise InfrastructureError(
                f"the node could not run its container (pod {failed.pod}: {failed.reason or 'no reason given'}, exit "
                f"code {failed.code}: {failed.message or 'nothing said'}); run it again to go on"
            )
        if code == work.KILLED or (failed is not None and failed.out_of_memory):
            self._raise_killed(failed is not None and failed.out_of_memory)
        last = failed.message if failed is not None and self._made.kind != RAY_JOB else ""
        return _SIGNAL - code if code > _SIGNAL and code != STOPPED else code, last or self._last_line(code)

    def _last_line(self, code: int) -> str:
        return "" if self._follower is None else self._follower.shown.last_line(code)

    def _raise_killed(self, ran_out: bool) -> None:
        item, arguments = self._plan.component, self._plan.arguments
        limit, key = profiles.memory(item, arguments), profiles.memory_key(item, arguments)
        raise InfrastructureError(work.about_memory(item.name, limit, key, ran_out))

    def _gone(self) -> tuple[int, str]:
        """How it ended where somebody deleted it: what it left tells."""
        if artifacts.find(self._plan.uri) is None:
            raise InfrastructureError(
                f"{self._made.kind.kind} {self._made.name} was deleted before it told how it ended; run it again"
            )
        return 0, ""
