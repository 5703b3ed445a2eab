"""A store in a folder whose every operation is a step that a test takes, with a clock and an MLflow of its own."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from mmbert import artifacts, marks, storage
from mmbert.collection import pool
from mmbert.collection.collect import Collected, collect
from mmbert.collection.needs import REGISTERED, RUNNING, Need
from mmbert.lineage import Store

KINDS = {"m": "mixture", "t": "data_report"}
"""Of what has a name of its own; the others are documents."""
HOUR, DAY = 3600.0, 86400.0
GRACE = 7 * DAY
_READS = ("read_bytes", "exists", "list_stored", "list_files")
_WRITES = ("write_bytes", "delete_file", "delete_files")


class Killed(BaseException):
    """What stands for SIGKILL: no operation of an actor happens after it."""


class Actor:
    """A thread that stops before each operation on the store and goes on when it is told to."""

    def __init__(self, work: Callable[[Actor], Any]) -> None:
        self.result: Any = None
        self.error: Exception | None = None
        self.ended = self.resting = self.killed = False
        self.at = ""
        self.last_step = 0.0
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._work = work
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._stopped.acquire()

    def _run(self) -> None:
        _local.actor = self
        try:
            self.gate("start")
            self.result = self._work(self)
        except Killed:
            pass
        except Exception as error:
            self.error = error
        self.ended = True
        self._stopped.release()

    def gate(self, at: str, resting: bool = False) -> None:
        if self.killed:
            raise Killed
        self.at, self.resting = at, resting
        self._stopped.release()
        self._go.acquire()
        self.resting = False
        if self.killed:
            raise Killed

    def step(self) -> None:
        assert not self.ended
        self._go.release()
        self._stopped.acquire()

    def finish(self) -> Any:
        """Go on to the end, through rests. Raises what it raised."""
        while not self.ended:
            self.step()
        if self.error is not None:
            raise self.error
        return self.result

    def rest(self) -> None:
        """Go on to where it rests next, or to the end."""
        while not self.ended:
            self.step()
            if self.resting:
                return

    def kill(self) -> None:
        if not self.ended:
            self.killed = True
            self._go.release()
            self._stopped.acquire()
        self._thread.join()


_local = threading.local()


def _actor() -> Actor | None:
    return getattr(_local, "actor", None)


class World:
    """`needed_at`: when each artifact was last needed by a registered model or by a run that lives."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root = str(root)
        self.now = 1_800_000_000.0
        self.registry: dict[str, str] = {}
        self.running: dict[str, set[str]] = {}
        self.needed_at: dict[str, float] = {}
        self.deleted: list[str] = []
        self.resumable: dict[str, bool] = {}
        patch.setattr(marks, "now", lambda: self.now)
        patch.setattr(marks, "elapsed", lambda: self.now)
        # In the actor's own thread, where each is a step.
        patch.setattr(pool, "at_once", lambda action, items, go_on: [(go_on(), action(item))[1] for item in items])
        patch.setattr(marks, "pause", lambda seconds: self._pause())
        for name in (*_READS, *_WRITES):
            patch.setattr(storage, name, self._gated(name, getattr(storage, name)))
        self._patch = patch

    def _pause(self) -> None:
        if (actor := _actor()) is not None:
            actor.gate("pause")

    def _gated(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def gated(uri: str, *arguments: Any) -> Any:
            if (actor := _actor()) is not None:
                actor.gate(f"{name} {uri.removeprefix(self.root)}")
            if name == "delete_file" and uri.endswith(f"/{artifacts.MANIFEST}"):
                self._check_deletion(uri.removesuffix(f"/{artifacts.MANIFEST}"))
            value = function(uri, *arguments)
            if name == "write_bytes":
                os.utime(uri, (self.now, self.now))
            return value

        return gated

    def _check_deletion(self, uri: str) -> None:
        self.deleted.append(uri)
        idle = self.now - self.needed_at.get(uri, 0.0)
        assert idle >= GRACE, f"{uri} was deleted {idle / HOUR:.1f} hours after it was needed last"

    def needs(self, store: Store) -> list[Need]:
        if (actor := _actor()) is not None:
            actor.gate("mlflow")
        found = [Need(uri, REGISTERED, f"model version {version}") for version, uri in self.registry.items()]
        return found + [Need(u, RUNNING, f"run {run}", False) for run, uris in self.running.items() for u in uris]

    def step(self, actor: Actor) -> None:
        actor.step()
        actor.last_step = self.now

    def collector(self) -> Actor:
        return Actor(lambda actor: collect(self.root, self.needs, GRACE))

    def collect(self) -> Collected:
        found: Collected = self.collector().finish()
        return found

    def place(self, name: str) -> str:
        return storage.join(self.root, KINDS.get(name, "documents"), hashlib.sha256(name.encode()).hexdigest()[:32])

    def make(
        self, name: str, made_of: Iterable[artifacts.Artifact] = (),
        announce: Callable[[str], None] = lambda uri: None,
    ) -> artifacts.Artifact:  # fmt: skip
        """Do a piece of work as a component does it, kept files before its attempt's own."""
        inputs = [{"uri": a.uri, "digest": a.digest, "kind": a.manifest.kind} for a in made_of]
        uri = self.place(name)
        writer = artifacts.ArtifactWriter(uri, uri.split("/")[-2], uri.rpartition("/")[2], {}, {"documents": inputs})
        writer.begin({entry["uri"] for entry in inputs})
        announce(uri)
        kept = f"kept {name}".encode()
        shard = storage.join(writer.kept_uri, "shard")
        if not storage.exists(shard):
            storage.write_bytes(shard, kept)
        self.resumable[uri] = True
        writer.adopt("shard", hashlib.sha256(kept).hexdigest(), len(kept))
        writer.add_bytes("text", f"text {name}".encode())
        made = writer.commit({})
        self.resumable[uri] = False
        return made

    def complete(self, uri: str) -> bool:
        """Whether the artifact is there with all its files, looked at without a step of anybody."""
        manifest = Path(uri, artifacts.MANIFEST)
        if not manifest.exists():
            return False
        made = artifacts._parse(uri, manifest.read_bytes())
        return all(Path(uri, file.key).is_file() for file in made.files)

    def closure(self, uris: Iterable[str]) -> set[str]:
        found, waiting = set(), list(uris)
        while waiting:
            uri = waiting.pop()
            if uri in found or not Path(uri, artifacts.MANIFEST).exists():
                continue
            found.add(uri)
            made = artifacts._parse(uri, Path(uri, artifacts.MANIFEST).read_bytes())
            waiting += [entry["uri"] for entries in made.inputs.values() for entry in entries]
        return found
