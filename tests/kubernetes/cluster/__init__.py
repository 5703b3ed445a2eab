"""A Kubernetes cluster to test against: an API server over HTTP on loopback, with the controllers and nodes behind it.

It refuses what Kubernetes refuses, and each rule names the page of the documentation that says so. It is no Kubernetes:
what it does not serve is answered 404, what passes here was still not seen on a cluster.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from tests.kubernetes.cluster import (
    admission,
    deletion,
    disruptions,
    jobs,
    jobsets,
    queues,
    rayjobs,
    resources,
    scheduler,
    trainjobs,
    validation,
)  # fmt: skip
from tests.kubernetes.cluster.access import Access
from tests.kubernetes.cluster.faults import Faults
from tests.kubernetes.cluster.kubelet import Kubelet
from tests.kubernetes.cluster.nodes import Player
from tests.kubernetes.cluster.nodes.scripted import FOREVER, Run, Scripted
from tests.kubernetes.cluster.resources import (
    EVENT,
    JOB,
    JOB_SET,
    NAMESPACE,
    NODE,
    POD,
    RAY_JOB,
    SERVICE_ACCOUNT,
    TRAIN_JOB,
)  # fmt: skip
from tests.kubernetes.cluster.scheduler import Node
from tests.kubernetes.cluster.server import TOKEN, Api, Server
from tests.kubernetes.cluster.store import Object, Store

__all__ = ["FOREVER", "Cluster", "Node", "Run", "Scripted"]

NAME = "mmbert"
"""The namespace that is there, with pods under the restricted profile."""
_OVER_QUOTA = (
    "couldn't assign flavors to pod set main: insufficient unused quota for nvidia.com/gpu in flavor h100, "
    "8 more needed"
)


class Cluster:
    """A cluster that lives as long as the `with` block.

    `nodes` are its nodes, or how many alike; `player` plays pods; `accounts` are service accounts besides `default`.
    """

    def __init__(
        self,
        nodes: int | Sequence[Node] = 4,
        player: Player | None = None,
        accounts: Sequence[str] = ("mmbert-component",),
    ) -> None:
        self.store = Store()
        self.kubelet = Kubelet(self.store, player or Scripted())
        self.faults = Faults(self.store.changed)
        self.access = Access()
        self.queues = queues.Queues()
        self._refusal = ""
        self._is_closing = False
        self._error: BaseException | None = None
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        self.store.create(NAMESPACE, {"metadata": {"name": NAME, "labels": labels}})
        for account in ("default", *accounts):
            self.store.create(SERVICE_ACCOUNT, {"metadata": {"name": account, "namespace": NAME}})
        for number, node in enumerate([Node()] * nodes if isinstance(nodes, int) else nodes):
            self.store.create(NODE, node.document(f"node-{number}"))
        self._server = Server(Api(self.store, self.kubelet, self.faults, self.access))
        self._folder = tempfile.TemporaryDirectory(prefix="cluster-")
        self._controllers = threading.Thread(target=self._work, name="controllers", daemon=True)

    def __enter__(self) -> Cluster:
        self._controllers.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self.store.changed:
            self._is_closing = True
            self.store.changed.notify_all()
        self._server.stop()
        self._controllers.join()
        self.kubelet.close()
        self.kubelet.player.close()
        self._folder.cleanup()
        if self._error is not None:
            raise self._error

    @property
    def url(self) -> str:
        return self._server.url

    @property
    def kubeconfig(self) -> Path:
        """A kubeconfig for this cluster (Organizing Cluster Access Using kubeconfig Files)."""
        path = Path(self._folder.name) / "kubeconfig"
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "stand-in", "cluster": {"server": self.url}}],
            "users": [{"name": "launcher", "user": {"token": TOKEN}}],
            "contexts": [
                {"name": "stand-in", "context": {"cluster": "stand-in", "user": "launcher", "namespace": NAME}}
            ],
            "current-context": "stand-in",
        }
        path.write_text(yaml.safe_dump(document), "utf-8")
        return path

    def stop_server(self) -> None:
        """The API server is gone for good; pods go on."""
        self._server.stop()

    def add(self, *documents: Mapping[str, Any]) -> None:
        """What an administrator creates: validated and admitted as any object. Raises ApiError, or KeyError for a kind
        that the stand-in does not serve."""
        for document in documents:
            kind = resources.of(dict(document))
            checked = validation.checked(kind, dict(document))
            if kind.is_namespaced:
                checked["metadata"].setdefault("namespace", NAME)
            with self.store.changed:
                self.store.create(kind, admission.admit(self.store, kind, checked))

    def objects(self, kind: str, namespace: str = "") -> list[Object]:
        """All objects of a kind (`Pod` or `pods`), in the order of their creation."""
        return self.store.list(resources.named(kind), namespace)

    @property
    def events(self) -> list[Object]:
        return self.store.list(EVENT)

    def pods(self, phase: str = "") -> list[Object]:
        """The pods, of one phase where given."""
        return [pod for pod in self.store.list(POD) if phase in ("", pod["status"]["phase"])]

    def wait_for(self, found: Callable[[], Any], seconds: float = 10) -> Any:
        """What `found` returns as soon as it is true; looks again at every change. Raises AssertionError."""
        deadline = time.monotonic() + seconds
        with self.store.changed:
            while not (value := found()):
                left = deadline - time.monotonic()
                assert left > 0, (
                    f"not within {seconds} s; pods: {[(p['metadata']['name'], p['status']) for p in self.pods()]}"
                )
                self.store.changed.wait(left)
            return value

    def forbid(self, verb: str, resource: str) -> None:
        """Refuse this verb on this resource (`pods`, `pods/log`, `jobs`; `*`: any) with 403."""
        self.access.forbidden.add((verb, resource))

    def no_nodes(self, message: str) -> None:
        """Let no pod be scheduled any more, for this reason of the scheduler's; "" ends it."""
        self._poke(lambda: setattr(self, "_refusal", message))

    def quota(self, queue: str, admits: bool, message: str = _OVER_QUOTA) -> None:
        """Whether a Kueue queue admits; what was admitted stays."""
        self._poke(
            lambda: self.queues.closed.pop(queue, None) if admits else self.queues.closed.update({queue: message})
        )

    def evict_queue(self, queue: str) -> None:
        """Kueue takes back the quota of what a queue has admitted."""
        queues.evict(self.store, queue)

    def evict(self, pod: str | Object) -> None:
        disruptions.evict(self.store, self.kubelet, self._pod(pod))

    def preempt(self, pod: str | Object) -> None:
        disruptions.preempt(self.store, self._pod(pod))

    def drain(self, pod: str | Object) -> None:
        disruptions.drain(self.store, self._pod(pod))

    def oom(self, pod: str | Object) -> None:
        disruptions.oom(self.kubelet, self._pod(pod))

    def lose_node(self, pod: str | Object) -> None:
        disruptions.lose_node(self.store, self.kubelet, self._pod(pod))

    def vanish(self, pod: str | Object) -> None:
        disruptions.vanish(self.store, self._pod(pod))

    def _pod(self, pod: str | Object) -> Object:
        name = pod if isinstance(pod, str) else pod["metadata"]["name"]
        namespace = NAME if isinstance(pod, str) else pod["metadata"]["namespace"]
        return self.store.get(POD, namespace, name)

    def _poke(self, what: Callable[[], Any]) -> None:
        """Change what is no object, and let the controllers look."""
        with self.store.changed:
            what()
            self.store.wake_at(0)
            self.store.changed.notify_all()

    def _work(self) -> None:
        """The controllers: after every change all are asked, until nothing changes any more."""
        seen = -1
        try:
            while True:
                with self.store.changed:
                    while self.store.version == seen and not self._is_closing:
                        left = self.store.due()
                        if left == 0:
                            break
                        if left is not None:
                            self.store.wake_at(time.time() + left)
                        self.store.changed.wait(left)
                    if self._is_closing:
                        return
                    seen = self.store.version
                    self._reconcile()
        except BaseException as error:
            self._error = error
            raise

    def _reconcile(self) -> None:
        for kind in (JOB, TRAIN_JOB, RAY_JOB):
            for item in self.store.list(kind):
                self.queues.reconcile(self.store, kind, item)
        for kind, controller in (
            (TRAIN_JOB, trainjobs.reconcile), (JOB_SET, jobsets.reconcile), (RAY_JOB, rayjobs.reconcile),
            (JOB, jobs.reconcile),
        ):  # fmt: skip
            for item in self.store.list(kind):
                # As it is now: those before may have changed it.
                if present := self.store.find(kind, item["metadata"]["namespace"], item["metadata"]["name"]):
                    controller(self.store, present)
        jobs.release_orphans(self.store)
        for pod in self.store.list(POD):
            scheduler.schedule(self.store, pod, self._refusal)
        self.kubelet.sync()
        deletion.collect(self.store)
