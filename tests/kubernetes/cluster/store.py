"""All objects in memory, each change with its resourceVersion, and the history that watches read."""

from __future__ import annotations

import copy
import random
import string
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tests.kubernetes.cluster import errors
from tests.kubernetes.cluster.resources import KINDS, POD, Kind

Object = dict[str, Any]

_HISTORY = 1000
"""Changes that a watch can begin from. The real server keeps those of five minutes (Kubernetes API Concepts, "Efficient
detection of changes")."""


@dataclass(frozen=True)
class Change:
    """What a change made of an object; `old` is None where it was created, `new` where it is gone."""

    version: int
    kind: Kind
    old: Object | None
    new: Object | None


def now() -> str:
    return stamp(time.time())


def stamp(seconds: float) -> str:
    """RFC 3339 in seconds, as Kubernetes writes times."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds_of(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def suffix() -> str:
    """Five letters and digits, as Kubernetes ends generated names (Object Names and IDs)."""
    return "".join(random.choices("bcdfghjklmnpqrstvwxz2456789", k=5))


class Store:
    """Objects by kind, namespace and name. What is handed out and taken in is copied.

    All methods may be called from any thread; who does several things at once holds `changed`, a re-entrant lock that
    is notified of every change.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.version = 0
        self.history: list[Change] = []
        self.compacted = 0
        self._objects: dict[Kind, dict[tuple[str, str], Object]] = {kind: {} for kind in KINDS}
        self._wake: float | None = None

    def create(self, kind: Kind, document: Object) -> Object:
        """Store a new object. Raises ApiError (409) where one of that name is there."""
        with self.changed:
            made = copy.deepcopy(document)
            meta = made.setdefault("metadata", {})
            place = (meta.get("namespace", ""), meta["name"])
            if (present := self._objects[kind].get(place)) is not None:
                raise errors.already_exists(kind, meta["name"], "deletionTimestamp" in present["metadata"])
            meta |= {"uid": meta.get("uid") or str(uuid.uuid4()), "creationTimestamp": now(), "generation": 1}
            made |= {"apiVersion": kind.api_version, "kind": kind.kind}
            self._put(kind, place, None, made)
            return copy.deepcopy(made)

    def get(self, kind: Kind, namespace: str, name: str) -> Object:
        """Raises ApiError (404)."""
        with self.changed:
            found = self._objects[kind].get((namespace if kind.is_namespaced else "", name))
            if found is None:
                raise errors.not_found(kind, name)
            return copy.deepcopy(found)

    def find(self, kind: Kind, namespace: str, name: str) -> Object | None:
        with self.changed:
            return copy.deepcopy(self._objects[kind].get((namespace if kind.is_namespaced else "", name)))

    def list(self, kind: Kind, namespace: str = "") -> list[Object]:
        """In the order of their creation; of all namespaces where none is given."""
        with self.changed:
            return [
                copy.deepcopy(found)
                for (place, _), found in self._objects[kind].items()
                if not namespace or place == namespace
            ]

    def owned(self, kind: Kind, owner: Object) -> list[Object]:
        """The objects whose owner references name this one by its uid."""
        uid = owner["metadata"]["uid"]
        with self.changed:
            return [
                copy.deepcopy(found)
                for found in self._objects[kind].values()
                if any(ref["uid"] == uid for ref in found["metadata"].get("ownerReferences", ()))
            ]

    def update(self, kind: Kind, document: Object) -> Object:
        """Replace an object. A `metadata.resourceVersion` that is not the present one raises ApiError (409): Kubernetes
        API Concepts, "Resource versions"; API conventions, "Concurrency Control and Consistency"."""
        with self.changed:
            meta = document["metadata"]
            place = (meta.get("namespace", ""), meta["name"])
            present = self._objects[kind].get(place)
            if present is None:
                raise errors.not_found(kind, meta["name"])
            if (
                meta.get("resourceVersion", present["metadata"]["resourceVersion"])
                != (present["metadata"]["resourceVersion"])
                or meta.get("uid", present["metadata"]["uid"]) != (present["metadata"]["uid"])
            ):
                raise errors.modified(kind, meta["name"])
            made = copy.deepcopy(document)
            for key in ("uid", "creationTimestamp", "resourceVersion"):
                made["metadata"][key] = present["metadata"][key]
            if made == present:
                return copy.deepcopy(present)
            if made.get("spec") != present.get("spec"):
                made["metadata"]["generation"] = present["metadata"]["generation"] + 1
            if _is_over(kind, made):
                self._remove(kind, place, present)
            else:
                self._put(kind, place, present, made)
            return copy.deepcopy(made)

    def change(self, kind: Kind, item: Object, what: Callable[[Object], object]) -> Object | None:
        """Let `what` change the present state of an object; None where it is gone, or another has its name."""
        with self.changed:
            present = self.find(kind, item["metadata"].get("namespace", ""), item["metadata"]["name"])
            if present is None or present["metadata"]["uid"] != item["metadata"]["uid"]:
                return None
            what(present)
            return self.update(kind, present)

    def remove(self, kind: Kind, item: Object) -> None:
        """Drop an object whatever its finalizers say."""
        with self.changed:
            place = (item["metadata"].get("namespace", ""), item["metadata"]["name"])
            if (present := self._objects[kind].get(place)) is not None:
                self._remove(kind, place, present)

    def compact(self) -> None:
        """Forget the history: a watch from before is answered 410."""
        with self.changed:
            self.history.clear()
            self.compacted = self.version
            self.changed.notify_all()

    def wake_at(self, seconds: float) -> None:
        """Let the controllers look again at this time (of `time.time()`)."""
        with self.changed:
            self._wake = seconds if self._wake is None else min(seconds, self._wake)

    def due(self) -> float | None:
        """The seconds until the next wish of `wake_at`, which it forgets."""
        with self.changed:
            wake, self._wake = self._wake, None
            return None if wake is None else max(0.0, wake - time.time())

    def everything(self) -> Iterator[tuple[Kind, Object]]:
        with self.changed:
            yield from [(kind, found) for kind in KINDS for found in self.list(kind)]

    def _put(self, kind: Kind, place: tuple[str, str], old: Object | None, new: Object) -> None:
        self.version += 1
        new["metadata"]["resourceVersion"] = str(self.version)
        self._objects[kind][place] = new
        self._tell(Change(self.version, kind, old, new))

    def _remove(self, kind: Kind, place: tuple[str, str], old: Object) -> None:
        self.version += 1
        del self._objects[kind][place]
        self._tell(Change(self.version, kind, old, None))

    def _tell(self, change: Change) -> None:
        self.history.append(change)
        if len(self.history) > _HISTORY:
            self.compacted = self.history.pop(0).version
        self.changed.notify_all()


def _is_over(kind: Kind, item: Object) -> bool:
    """Whether an object that is being deleted can go: no finalizer holds it (Finalizers), and a pod's kubelet said that
    its containers are gone (Pod Lifecycle, "Termination of Pods")."""
    meta = item["metadata"]
    if "deletionTimestamp" not in meta or meta.get("finalizers"):
        return False
    return kind is not POD or meta.get("deletionGracePeriodSeconds", 0) == 0


def condition(item: Object, name: str) -> Object | None:
    """The condition of this type where it is true."""
    for found in item.get("status", {}).get("conditions", ()):
        if found["type"] == name and found["status"] == "True":
            return dict(found)
    return None


def set_condition(item: Object, name: str, status: str, reason: str, message: str) -> None:
    """Set a condition; its time changes with its status only (API conventions, "Typical status properties")."""
    conditions = item.setdefault("status", {}).setdefault("conditions", [])
    made = {"type": name, "status": status, "reason": reason, "message": message}
    for found in conditions:
        if found["type"] == name:
            is_turned = found["status"] != status or "lastTransitionTime" not in found
            found.update(made, **({"lastTransitionTime": now()} if is_turned else {}))
            return
    conditions.append(made | {"lastTransitionTime": now()})


def owner_reference(owner: Object) -> Object:
    """Of a controller, as Kubernetes' own set it (Owners and Dependents)."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def is_dns_label(text: str, length: int = 63) -> bool:
    """RFC 1123 label (Object Names and IDs)."""
    allowed = set(string.ascii_lowercase + string.digits + "-")
    return 0 < len(text) <= length and set(text) <= allowed and "-" not in (text[0], text[-1])
