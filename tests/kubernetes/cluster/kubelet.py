"""The kubelets of all nodes: bound pods start, and their statuses tell how they fare (Pod Lifecycle).

Of a pod's containers the first is played, and its state is that of all.
"""

from __future__ import annotations

import base64
import itertools
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.kubernetes.cluster import deletion, events
from tests.kubernetes.cluster.logs import Log
from tests.kubernetes.cluster.nodes import CannotStartError, Ended, Play, Player, Stop
from tests.kubernetes.cluster.resources import CONFIG_MAP, POD, SECRET, SERVICE, Kind
from tests.kubernetes.cluster.store import Object, Store, now, set_condition

RAY_TYPE = "ray.io/node-type"
_SERVICE_SECONDS = 2.0
_IMAGE = re.compile(
    r"^(?:[a-zA-Z0-9.-]+(?::[0-9]+)?/)?[a-z0-9]+(?:[._/-]+[a-z0-9]+)*(?::[\w][\w.-]{0,127})?(?:@sha256:[0-9a-f]{64})?$"
)


@dataclass
class _Task:
    """A pod that is played. `outcome`, where set, is what its status says in the end in place of the player's word."""

    log: Log
    stop: Stop = field(default_factory=Stop)
    is_over: bool = False
    outcome: Callable[[Object, Ended], None] | None = None
    is_lost: bool = False


class Kubelet:
    """Runs the pods of a store with a player."""

    def __init__(self, store: Store, player: Player) -> None:
        self.store, self.player = store, player
        self.tasks: dict[str, _Task] = {}
        self._addresses = itertools.count(2)

    def sync(self) -> None:
        """Start the pods that were bound, end those that are deleted; called whenever something changed."""
        present = set()
        for pod in self.store.list(POD):
            uid = pod["metadata"]["uid"]
            present.add(uid)
            task = self.tasks.get(uid)
            if task is None and pod["spec"].get("nodeName") and pod["status"]["phase"] == "Pending":
                task = self.tasks[uid] = _Task(Log(self.store.changed))
                task.stop.grace = pod["spec"].get("terminationGracePeriodSeconds", 30)
                threading.Thread(target=self._run, args=(pod, task), name=pod["metadata"]["name"], daemon=True).start()
            if "deletionTimestamp" in pod["metadata"] and task is not None:
                if task.is_over:
                    deletion.confirm(self.store, pod)
                else:
                    task.stop.ask(pod["metadata"]["deletionGracePeriodSeconds"])
        for uid in self.tasks.keys() - present:
            # Removed by force: nothing tells of its containers any more.
            self.tasks[uid].stop.ask(0)
            if self.tasks[uid].is_over:
                del self.tasks[uid]

    def log(self, uid: str) -> Log | None:
        task = self.tasks.get(uid)
        return task.log if task else None

    def end(self, pod: Object, outcome: Callable[[Object, Ended], None]) -> None:
        """Kill a pod that runs; `outcome` changes the object when it has ended."""
        task = self.tasks[pod["metadata"]["uid"]]
        task.outcome = outcome
        task.stop.ask(0)

    def lose(self, pod: Object) -> None:
        """Its node is gone: what runs there is killed, and nobody hears of it."""
        task = self.tasks[pod["metadata"]["uid"]]
        task.is_lost = True
        task.log.is_lost = True
        task.stop.ask(0)
        task.log.close()

    def close(self) -> None:
        for task in list(self.tasks.values()):
            task.stop.ask(0)
            task.log.close()

    def _run(self, pod: Object, task: _Task) -> None:
        try:
            self._creating(pod)
            ended = self._play(pod, task)
        except CannotStartError as error:
            self._waiting(pod, error)
            task.stop.asked.wait()
            ended = None
        task.log.close()
        with self.store.changed:
            task.is_over = True
            if not task.is_lost:
                self.store.change(POD, pod, lambda item: self._ended(item, task, ended))
            self.sync()

    def _play(self, pod: Object, task: _Task) -> Ended:
        container = pod["spec"]["containers"][0]
        image = container["image"]
        if not _IMAGE.match(image):
            # Images, "Image names".
            why = f'couldn\'t parse image name "{image}": invalid reference format'
            raise CannotStartError("InvalidImageName", f'Failed to apply default image tag "{image}": {why}')
        play = Play(
            pod=pod,
            environment=self._environment(pod, container),
            hosts=self._hosts(pod),
            log=task.log.write,
            started=lambda: self._started(pod),
            stop=task.stop,
        )
        if RAY_TYPE in (pod["metadata"].get("labels") or {}):
            # A Ray cluster's own processes run until the cluster is deleted; they are not played.
            play.started()
            task.stop.asked.wait()
            return Ended(143, "Error")
        return self.player.play(play)

    def _hosts(self, asking: Object) -> list[str]:
        """The names that pods with a host name and a subdomain have (DNS for Services and Pods, "Pod's hostname and
        subdomain fields"), where a headless service of that name is there.

        DNS answers as soon as it is there; what a container is given here cannot change, so a pod that has a subdomain
        waits a while for its service.
        """
        namespace, own = asking["metadata"]["namespace"], asking["spec"].get("subdomain")

        def served() -> set[str]:
            return {item["metadata"]["name"] for item in self.store.list(SERVICE, namespace)}

        with self.store.changed:
            self.store.changed.wait_for(lambda: not own or own in served(), _SERVICE_SECONDS)
        services = served()
        found = []
        for pod in self.store.list(POD, namespace):
            host, domain = pod["spec"].get("hostname"), pod["spec"].get("subdomain")
            if host and domain in services:
                found += [f"{host}.{domain}", f"{host}.{domain}.{namespace}.svc.cluster.local"]
        return sorted(set(found))

    def _environment(self, pod: Object, container: Object) -> dict[str, str]:
        """Variables with their values (Define Environment Variables for a Container; a secret or config map that is not
        there and not optional keeps the container waiting: Secrets, "Optional Secrets")."""
        found: dict[str, str] = {}
        namespace = pod["metadata"]["namespace"]
        for source in container.get("envFrom") or ():
            for key, kind in (("secretRef", SECRET), ("configMapRef", CONFIG_MAP)):
                if ref := source.get(key):
                    values = self._values(kind, namespace, ref) or {}
                    found |= {source.get("prefix", "") + name: value for name, value in values.items()}
        for item in container.get("env") or ():
            value = self._value(pod, item) if "valueFrom" in item else item.get("value", "")
            if value is not None:
                found[item["name"]] = re.sub(r"\$\((\w+)\)", lambda m: found.get(m.group(1), m.group(0)), value)
        return found

    def _value(self, pod: Object, item: Object) -> str | None:
        source = item["valueFrom"]
        for key, kind in (("secretKeyRef", SECRET), ("configMapKeyRef", CONFIG_MAP)):
            if ref := source.get(key):
                values = self._values(kind, pod["metadata"]["namespace"], ref)
                if values is None:
                    return None
                if ref["key"] not in values and not ref.get("optional"):
                    why = f"couldn't find key {ref['key']} in {kind.kind} {pod['metadata']['namespace']}/{ref['name']}"
                    raise CannotStartError("CreateContainerConfigError", why)
                return values.get(ref["key"])
        if "resourceFieldRef" in source:
            resources = pod["spec"]["containers"][0].get("resources") or {}
            where, _, name = source["resourceFieldRef"]["resource"].partition(".")
            return str((resources.get(where) or {}).get(name, ""))
        return _field(pod, source["fieldRef"]["fieldPath"])

    def _values(self, kind: Kind, namespace: str, ref: Object) -> dict[str, str] | None:
        found = self.store.find(kind, namespace, ref["name"])
        if found is None:
            if ref.get("optional"):
                return None
            raise CannotStartError("CreateContainerConfigError", f'{kind.kind.lower()} "{ref["name"]}" not found')
        if kind is not SECRET:
            return found.get("data") or {}
        decoded = {key: base64.b64decode(value).decode() for key, value in (found.get("data") or {}).items()}
        return {**decoded, **(found.get("stringData") or {})}

    def _creating(self, pod: Object) -> None:
        def change(item: Object) -> None:
            status = item["status"]
            status["startTime"] = now()
            number = next(self._addresses)
            status |= {"hostIP": "10.0.0.1", "podIP": f"10.1.{number // 250}.{number % 250}"}
            set_condition(item, "Initialized", "True", "", "")
            set_condition(item, "Ready", "False", "ContainersNotReady", "containers with unready status")
            status["containerStatuses"] = [
                _container(part, {"waiting": {"reason": "ContainerCreating"}}) for part in item["spec"]["containers"]
            ]

        self.store.change(POD, pod, change)

    def _waiting(self, pod: Object, error: CannotStartError) -> None:
        def change(item: Object) -> None:
            state = {"waiting": {"reason": error.reason, "message": error.message}}
            item["status"]["containerStatuses"] = [_container(part, state) for part in item["spec"]["containers"]]

        self.store.change(POD, pod, change)
        events.record(self.store, pod, "Warning", "Failed", f"Error: {error.reason}: {error.message}", "kubelet")

    def _started(self, pod: Object) -> None:
        def change(item: Object) -> None:
            if item["status"]["phase"] != "Pending":
                return
            item["status"]["phase"] = "Running"
            set_condition(item, "Ready", "True", "", "")
            set_condition(item, "ContainersReady", "True", "", "")
            state = {"running": {"startedAt": now()}}
            item["status"]["containerStatuses"] = [
                {**_container(part, state), "ready": True, "started": True} for part in item["spec"]["containers"]
            ]

        self.store.change(POD, pod, change)
        name = pod["spec"]["containers"][0]["name"]
        events.record(self.store, pod, "Normal", "Started", f"Container started: {name}", "kubelet")

    @staticmethod
    def _ended(item: Object, task: _Task, ended: Ended | None) -> None:
        """The pod's phase by its containers' exit codes (Pod Lifecycle, "Pod phase")."""
        status = item["status"]
        set_condition(item, "Ready", "False", "PodCompleted" if ended and not ended.code else "PodFailed", "")
        if ended is None:
            # Deleted while it waited: its containers never ran.
            status["phase"] = "Failed"
            return
        status["phase"] = "Failed" if ended.code else "Succeeded"
        began = status["containerStatuses"][0]["state"].get("running", {}).get("startedAt", now())
        parts = item["spec"]["containers"]
        message = ended.message
        if not message and ended.code and parts[0]["terminationMessagePolicy"] == "FallbackToLogsOnError":
            message = task.log.tail()
        state = {
            "exitCode": ended.code, "reason": ended.reason, "startedAt": began, "finishedAt": now(),
            **({"message": message} if message else {}),
        }  # fmt: skip
        status["containerStatuses"] = [_container(part, {"terminated": state}) for part in parts]
        if task.outcome is not None:
            task.outcome(item, ended)


def _container(part: Object, state: dict[str, Any]) -> Object:
    """API reference, ContainerStatus."""
    return {
        "name": part["name"],
        "image": part["image"],
        "imageID": part["image"],
        "ready": False,
        "restartCount": 0,
        "started": False,
        "state": state,
        "lastState": {},
    }


def _field(pod: Object, path: str) -> str:
    """Downward API, "Available fields"."""
    if found := re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path):
        return str((pod["metadata"].get(found.group(1)) or {}).get(found.group(2), ""))
    item: Any = pod
    for key in path.split("."):
        item = item.get(key, "") if isinstance(item, dict) else ""
    return str(item)
