"""Watches (Kubernetes API Concepts, "Efficient detection of changes")."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.kubernetes.cluster.errors import expired
from tests.kubernetes.cluster.faults import Faults
from tests.kubernetes.cluster.resources import Kind
from tests.kubernetes.cluster.store import Change, Object, Store


class CutError(Exception):
    """The connection is to be broken."""


@dataclass(frozen=True)
class Watch:
    """What is watched: the kind, of one namespace or all (""), what selects, from which version, for how long."""

    kind: Kind
    namespace: str
    selects: Callable[[Object], bool]
    version: str = ""
    seconds: float | None = None
    has_bookmarks: bool = False

    def events(self, store: Store, faults: Faults, is_closing: Callable[[], bool]) -> Iterator[Object]:
        """Events as they happen. Raises CutError by a fault."""
        deadline = None if self.seconds is None else time.monotonic() + self.seconds
        with store.changed:
            # Without a version, or with 0: the present objects come first, as ADDED ("Semantics for watch").
            is_fresh = self.version in ("", "0")
            position = store.version if is_fresh else int(self.version)
            found = [_event("ADDED", item) for item in self._present(store)] if is_fresh else []
        yield from found
        while not is_closing():
            with store.changed:
                if faults.comes("cut"):
                    raise CutError
                is_gone = position < store.compacted or faults.comes("gone")
                found = [] if is_gone else self._after(store, position)
                left = None if deadline is None else deadline - time.monotonic()
                is_late = left is not None and left <= 0
                if not (found or is_gone or is_late):
                    store.changed.wait(left)
                    continue
                oldest = max(store.compacted, position + 1)
                position = position if is_gone else store.version
            yield from found
            if is_gone:
                yield _event("ERROR", expired(position, oldest).status())
                return
            if is_late:
                if self.has_bookmarks:
                    yield self._bookmark(position)
                return

    def _present(self, store: Store) -> list[Object]:
        return [item for item in store.list(self.kind, self.namespace) if self.selects(item)]

    def _after(self, store: Store, version: int) -> list[Object]:
        news = []
        for change in reversed(store.history):
            if change.version <= version:
                break
            if change.kind is self.kind and (event := self._event(change)):
                news.append(event)
        return news[::-1]

    def _event(self, change: Change) -> Object | None:
        """What is no longer selected is DELETED for who selects, what is selected now ADDED."""
        old, new = (item if item and self._has(item) else None for item in (change.old, change.new))
        if new is not None:
            return _event("MODIFIED" if old is not None else "ADDED", new)
        if old is not None:
            # The last state, with the version of the deletion.
            meta = {**old["metadata"], "resourceVersion": str(change.version)}
            return _event("DELETED", {**old, "metadata": meta})
        return None

    def _has(self, item: Object) -> bool:
        return self.namespace in ("", item["metadata"].get("namespace", "")) and self.selects(item)

    def _bookmark(self, version: int) -> Object:
        """ "Watch bookmarks": an object with nothing but its resourceVersion."""
        item: dict[str, Any] = {"apiVersion": self.kind.api_version, "kind": self.kind.kind}
        return _event("BOOKMARK", {**item, "metadata": {"resourceVersion": str(version)}})


def _event(kind: str, item: Object) -> Object:
    return {"type": kind, "object": item}
