"""Deletion of objects and of what they own (Garbage Collection; Pod Lifecycle, "Termination of Pods")."""

from __future__ import annotations

import time
from typing import Any

from tests.kubernetes.cluster import errors
from tests.kubernetes.cluster.resources import JOB, KINDS, POD, Kind
from tests.kubernetes.cluster.store import Object, Store, stamp

FOREGROUND = "foregroundDeletion"
ORPHAN = "orphan"
_GRACE = 30
"""Pod Lifecycle: `terminationGracePeriodSeconds` is 30 where a pod does not say it."""


def delete(store: Store, kind: Kind, namespace: str, name: str, options: Object | None = None) -> Object:
    """Delete an object as `options` (meta/v1 DeleteOptions) ask; what is left of it, or what it was.

    Preconditions that do not hold raise ApiError (409). Without a `propagationPolicy` a Job's pods are kept (the
    orphaning default of batch/v1: Jobs, "Job cleanup"; API reference, Job, `kubectl` asks for Background), those of
    other owners are deleted in the background (Garbage Collection, "Cascading deletion").
    """
    options = options or {}
    with store.changed:
        item = store.get(kind, namespace, name)
        _check(kind, item, options.get("preconditions") or {})
        meta = item["metadata"]
        policy = options.get("propagationPolicy") or ("Orphan" if kind is JOB else "Background")
        if policy not in ("Foreground", "Background", "Orphan"):
            why = f'Unsupported value: "{policy}": supported values: "Foreground", "Background", "Orphan"'
            raise errors.bad_request(f"DeleteOptions is invalid: propagationPolicy: {why}")
        if kind is POD:
            _end_pod(item, options.get("gracePeriodSeconds"))
        elif "deletionTimestamp" not in meta:
            meta["deletionTimestamp"] = stamp(time.time())
            meta["deletionGracePeriodSeconds"] = 0
        if wanted := {"Foreground": FOREGROUND, "Orphan": ORPHAN}.get(policy):
            finalizers = [other for other in meta.get("finalizers", []) if other not in (FOREGROUND, ORPHAN)]
            if any(store.owned(other, item) for other in KINDS):
                meta["finalizers"] = [*finalizers, wanted]
        return store.update(kind, item)


def _check(kind: Kind, item: Object, preconditions: Object) -> None:
    """API reference, DeleteOptions, `preconditions`: if not fulfilled, a 409 Conflict is returned."""
    for key, called in (("uid", "UID"), ("resourceVersion", "ResourceVersion")):
        wanted, present = preconditions.get(key), item["metadata"][key]
        if wanted and wanted != present:
            why = f"Precondition failed: {called} in precondition: {wanted}, {called} in object meta: {present}"
            raise errors.conflict(kind, item["metadata"]["name"], why)


def _end_pod(pod: Object, seconds: Any) -> None:
    """A pod that no node has, or that has ended, goes at once; a running one when its kubelet says so, or its grace
    period was given as 0 (Pod Lifecycle, "Forced Pod termination")."""
    meta = pod["metadata"]
    grace = pod["spec"].get("terminationGracePeriodSeconds", _GRACE) if seconds is None else int(seconds)
    if not pod["spec"].get("nodeName"):
        # Pod Lifecycle, "Garbage collection of Pods": an unscheduled pod that is ended is marked as failed.
        pod["status"]["phase"] = "Failed"
    if pod["status"]["phase"] in ("Succeeded", "Failed"):
        grace = 0
    if "deletionTimestamp" in meta:
        grace = min(grace, meta["deletionGracePeriodSeconds"])
    meta["deletionTimestamp"] = stamp(time.time() + grace)
    meta["deletionGracePeriodSeconds"] = grace


def confirm(store: Store, pod: Object) -> None:
    """The kubelet says that a deleted pod's containers are gone."""
    store.change(POD, pod, lambda item: item["metadata"].update(deletionGracePeriodSeconds=0))


def collect(store: Store) -> None:
    """What the garbage collector does: Garbage Collection, "Foreground cascading deletion", "Orphaned dependents"."""
    uids = {item["metadata"]["uid"] for _, item in store.everything()}
    for kind, item in store.everything():
        meta = item["metadata"]
        owners = meta.get("ownerReferences") or ()
        if owners and not any(owner["uid"] in uids for owner in owners) and "deletionTimestamp" not in meta:
            _delete(store, kind, item, "Background")
        if "deletionTimestamp" in meta and FOREGROUND in meta.get("finalizers", ()):
            _foreground(store, kind, item)
        if "deletionTimestamp" in meta and ORPHAN in meta.get("finalizers", ()):
            _orphan(store, kind, item)


def _foreground(store: Store, kind: Kind, owner: Object) -> None:
    """Dependents first; those whose reference says `blockOwnerDeletion` hold the owner until they are gone."""
    is_held = False
    for other in KINDS:
        for item in store.owned(other, owner):
            if "deletionTimestamp" not in item["metadata"]:
                _delete(store, other, item, "Foreground")
            is_held = is_held or any(
                ref["uid"] == owner["metadata"]["uid"] and ref.get("blockOwnerDeletion")
                for found in [store.find(other, item["metadata"].get("namespace", ""), item["metadata"]["name"])]
                if found and found["metadata"]["uid"] == item["metadata"]["uid"]
                for ref in found["metadata"].get("ownerReferences", ())
            )
    if not is_held:
        store.change(kind, owner, lambda item: item["metadata"]["finalizers"].remove(FOREGROUND))


def _orphan(store: Store, kind: Kind, owner: Object) -> None:
    uid = owner["metadata"]["uid"]

    def release(item: Object) -> None:
        meta = item["metadata"]
        meta["ownerReferences"] = [ref for ref in meta["ownerReferences"] if ref["uid"] != uid]

    for other in KINDS:
        for item in store.owned(other, owner):
            store.change(other, item, release)
    store.change(kind, owner, lambda item: item["metadata"]["finalizers"].remove(ORPHAN))


def _delete(store: Store, kind: Kind, item: Object, policy: str) -> None:
    meta = item["metadata"]
    present = store.find(kind, meta.get("namespace", ""), meta["name"])
    if present is not None and present["metadata"]["uid"] == meta["uid"]:
        delete(store, kind, meta.get("namespace", ""), meta["name"], {"propagationPolicy": policy})
