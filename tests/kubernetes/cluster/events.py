"""Events: what components of the cluster tell of an object (API reference, Event v1 core)."""

from __future__ import annotations

from tests.kubernetes.cluster.resources import EVENT
from tests.kubernetes.cluster.store import Object, Store, now, suffix


def record(store: Store, about: Object, kind: str, reason: str, message: str, component: str) -> None:
    """`kind` is Normal or Warning. What was told before of the same object, word for word, is not told again."""
    meta = about["metadata"]
    namespace = meta.get("namespace", "default")
    with store.changed:
        for event in store.list(EVENT, namespace):
            told = (event["involvedObject"]["uid"], event["reason"], event["message"])
            if told == (meta["uid"], reason, message):
                return
        store.create(
            EVENT,
            {
                "metadata": {"name": f"{meta['name']}.{suffix()}{suffix()}", "namespace": namespace},
                "involvedObject": {
                    "apiVersion": about["apiVersion"],
                    "kind": about["kind"],
                    "namespace": namespace,
                    "name": meta["name"],
                    "uid": meta["uid"],
                },
                "type": kind,
                "reason": reason,
                "message": message,
                "source": {"component": component},
                "firstTimestamp": now(),
                "lastTimestamp": now(),
                "count": 1,
            },
        )
