"""Runs that start, are killed, end and register while collections go on and are killed: nothing needed is ever lost."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from mmbert import artifacts, marks, storage
from mmbert.collection.collect import collect
from mmbert.errors import InfrastructureError
from tests.collecting import DAY, GRACE, HOUR, Actor, World

# What each piece of work is made from; names are shared by all runs, so that they find each other's work.
CHAINS: dict[str, tuple[str, ...]] = {
    "a": (),
    "b": ("a",),
    "c": ("a", "b"),
    "d": ("b",),
    "e": (),
    "m": ("b",),
    "t": ("m",),
}
TOLD_BY = {"m": "t"}
"""What a workflow makes beside what it registers, to tell of it; it stays as long as that is registered."""
NAMES = st.sampled_from(sorted(CHAINS))


class Pipeline:
    """A workflow's run: it does pieces of work in order, finds them done where it can, and reads all of them again."""

    def __init__(self, world: World, number: int, target: str, registers: bool) -> None:
        self.world, self.name, self.target = world, f"run {number}", target
        self.used: dict[str, artifacts.Artifact] = {}
        self.registers = registers
        self.alive = True
        self.actor = Actor(self._work)

    def _work(self, actor: Actor) -> None:
        self.world.running[self.name] = set()
        model = self._done(self.target, actor)
        if self.target in TOLD_BY:
            self._done(TOLD_BY[self.target], actor)
        if self.registers:
            self.world.registry[self.name] = model.uri
            actor.gate("works", resting=True)
        for artifact in self.used.values():
            for path in artifact.paths():
                artifact.read(path)

    def _done(self, name: str, actor: Actor) -> artifacts.Artifact:
        made_of = [self._done(one, actor) for one in CHAINS[name]]
        uri = self.world.place(name)
        found = artifacts.find(uri) or self.world.make(
            name, [artifacts.open_artifact(one.uri) for one in made_of], announce=self._announce
        )
        self.used[uri] = found
        self._announce(uri)
        # Long work, like training, is done between two operations.
        actor.gate("works", resting=True)
        return found

    def _announce(self, uri: str) -> None:
        self.world.running[self.name].add(uri)

    def end(self, said: bool) -> None:
        self.alive = False
        if said:
            self.world.running.pop(self.name, None)


class Collections(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="collecting-"))
        self.patch = pytest.MonkeyPatch()
        self.world = World(self.folder / "store", self.patch)
        self.runs: list[Pipeline] = []
        self.collector: Actor | None = None
        for path in ("spool/1.jsonl", "results/d/s/1.parquet", "notes.txt", "work/curation/clean/1/done.json"):
            Path(self.world.root, path).parent.mkdir(parents=True, exist_ok=True)
            Path(self.world.root, path).write_text("theirs", "utf-8")

    @initialize(collections=st.integers(0, 2), registered=st.sampled_from(["", "d", *TOLD_BY]))
    def fill(self, collections: int, registered: str) -> None:
        """Work of former runs, all of it unmarked, marked or due, but for what was registered."""
        made: dict[str, artifacts.Artifact] = {}
        for one, made_of in CHAINS.items():
            made[one] = self.world.make(one, [made[other] for other in made_of])
        if registered:
            self.world.registry["former"] = made[registered].uri
        for _ in range(collections):
            self._pass(GRACE + DAY)
            if not self.world.deleted:
                self.world.collect()

    def live(self) -> list[Pipeline]:
        return [run for run in self.runs if run.alive]

    @rule(name=NAMES, registers=st.booleans())
    def start(self, name: str, registers: bool) -> None:
        if len(self.live()) < 2:
            self.runs.append(Pipeline(self.world, len(self.runs), name, registers))

    @rule(data=st.data(), steps=st.integers(1, 6))
    @precondition(lambda self: self.live())
    def step_run(self, data: st.DataObject, steps: int) -> None:
        run = data.draw(st.sampled_from(self.live()), label="run")
        for _ in range(steps):
            if not run.actor.ended:
                self.world.step(run.actor)
        self._ended(run)

    @rule(data=st.data())
    @precondition(lambda self: self.live())
    def rest_run(self, data: st.DataObject) -> None:
        self._rest(data.draw(st.sampled_from(self.live()), label="run"))

    def _rest(self, run: Pipeline) -> None:
        for _ in range(200):
            if run.actor.ended or run.actor.at == "pause":
                break
            self.world.step(run.actor)
            if run.actor.resting:
                break
        self._ended(run)

    def _ended(self, run: Pipeline) -> None:
        if run.actor.ended:
            assert run.actor.error is None, run.actor.error
            run.end(said=True)

    @rule(data=st.data(), said=st.booleans())
    @precondition(lambda self: self.live())
    def kill_run(self, data: st.DataObject, said: bool) -> None:
        run = data.draw(st.sampled_from(self.live()), label="run")
        run.actor.kill()
        run.end(said)

    @rule(data=st.data())
    @precondition(lambda self: self.world.registry)
    def unregister(self, data: st.DataObject) -> None:
        self.world.registry.pop(data.draw(st.sampled_from(sorted(self.world.registry)), label="version"))

    @rule()
    @precondition(lambda self: self.world.running)
    def mend_mlflow(self) -> None:
        """Somebody ends the runs of killed processes."""
        live = {run.name for run in self.live()}
        for name in [name for name in self.world.running if name not in live]:
            del self.world.running[name]

    @rule()
    @precondition(lambda self: self.collector is None)
    def start_collection(self) -> None:
        self.collector = Actor(lambda actor: collect(self.world.root, self.world.needs, GRACE))

    @rule()
    @precondition(lambda self: self.collector is not None)
    def go_to_a_deletion(self) -> None:
        """On to where the next mark is about to be written."""
        assert self.collector is not None
        while not self.collector.ended:
            self.world.step(self.collector)
            if self.collector.at.startswith("write_bytes") and self.collector.at.endswith(marks.MARK):
                break
        self._collected()

    @rule(steps=st.integers(1, 4))
    @precondition(lambda self: self.collector is not None)
    def step_collection(self, steps: int) -> None:
        assert self.collector is not None
        for _ in range(steps):
            if not self.collector.ended:
                self.world.step(self.collector)
        self._collected()

    @rule()
    @precondition(lambda self: self.collector is not None)
    def end_collection(self) -> None:
        assert self.collector is not None
        while not self.collector.ended:
            self.world.step(self.collector)
        self._collected()

    def _collected(self) -> None:
        if self.collector is not None and self.collector.ended:
            error = self.collector.error
            assert error is None or isinstance(error, InfrastructureError), error
            assert error is None or "another collection" in str(error) or "stood still" in str(error), error
            self.collector = None

    @rule()
    @precondition(lambda self: self.collector is not None)
    def kill_collection(self) -> None:
        assert self.collector is not None
        self.collector.kill()
        assert self.collector.error is None, self.collector.error
        self.collector = None

    @rule(seconds=st.sampled_from([60.0, marks.STALL_SECONDS / 4]))
    def wait(self, seconds: float) -> None:
        """Requests are under way for less than STALL_SECONDS."""
        if all(r.actor.resting or self._stands(r.actor) + seconds < marks.STALL_SECONDS for r in self.live()) and (
            self.collector is None or self._stands(self.collector) + seconds < marks.STALL_SECONDS
        ):
            self._pass(seconds)

    @rule(seconds=st.sampled_from([HOUR, GRACE / 2, GRACE + DAY]))
    def wait_long(self, seconds: float) -> None:
        """Runs work meanwhile, and no collection does."""
        if self.collector is not None:
            self.end_collection()
        for run in self.live():
            if not run.actor.resting:
                self._rest(run)
        if all(run.actor.resting for run in self.live()):
            self._pass(seconds)

    def _stands(self, actor: Actor) -> float:
        return self.world.now - actor.last_step if actor.last_step else 0.0

    def _pass(self, seconds: float) -> None:
        self._needed()
        self.world.now += seconds
        self._needed()

    def _needed(self) -> None:
        used = [uri for run in self.live() for uri in run.used]
        registered = self.world.closure(self.world.registry.values())
        told = [self.world.place(by) for about, by in TOLD_BY.items() if self.world.place(about) in registered]
        for uri in self.world.closure([*registered, *used, *told]):
            self.world.needed_at[uri] = self.world.now

    @invariant()
    def nothing_needed_is_lost(self) -> None:
        self._needed()
        for run in self.live():
            for uri in run.used:
                assert self.world.complete(uri), f"{uri} is gone or half there, and {run.name} uses it"
        for version, uri in self.world.registry.items():
            assert self.world.complete(uri), f"{uri} is gone or half there, and version {version} is it"
            for about, by in TOLD_BY.items():
                if uri == self.world.place(about):
                    assert self.world.complete(self.world.place(by)), f"what tells of {uri} is gone"

    @invariant()
    def what_is_there_is_whole(self) -> None:
        for manifest in Path(self.world.root).rglob(artifacts.MANIFEST):
            uri = str(manifest.parent)
            assert self.world.complete(uri), f"{uri} is half there"
            made = artifacts.look(uri)
            assert made is not None
            for entry in made.manifest.inputs.get("documents", []):
                assert self.world.complete(entry["uri"]), f"what {uri} was made from is gone"

    @invariant()
    def what_work_goes_on_from_stays(self) -> None:
        for place, kept in self.world.resumable.items():
            if kept and not Path(place, artifacts.MANIFEST).exists():
                assert Path(place, artifacts.KEPT, "shard").exists(), f"{place} cannot be gone on from"

    @invariant()
    def theirs_stays(self) -> None:
        assert Path(self.world.root, "spool/1.jsonl").exists()
        assert Path(self.world.root, "results/d/s/1.parquet").exists()
        assert Path(self.world.root, "notes.txt").exists()

    def teardown(self) -> None:
        try:
            for run in self.runs:
                run.actor.kill()
            if self.collector is not None:
                self.collector.kill()
            self._all_goes_in_the_end()
        finally:
            self.patch.undo()
            shutil.rmtree(self.folder)

    def _all_goes_in_the_end(self) -> None:
        """With nothing running, registered or half done, some collections later no artifact is left."""
        for place in self.world.resumable:
            if not any(Path(place, name).exists() for name in (artifacts.MANIFEST, marks.MARK)):
                shutil.rmtree(place, ignore_errors=True)
        self.world.running.clear()
        self.world.registry.clear()
        for _ in range(6):
            self.world.now += GRACE + DAY
            self.world.collect()
        left = storage.list_files(self.world.root)
        assert not [p for p in left if p.endswith(artifacts.MANIFEST)], left
        assert not list(Path(self.world.root).rglob(marks.MARK))


FEW = settings(
    max_examples=25, stateful_step_count=30, deadline=None, derandomize=True,
    suppress_health_check=list(HealthCheck), database=None, print_blob=False, phases=[Phase.generate],
)  # fmt: skip


def test_nothing_needed_is_ever_lost() -> None:
    run_state_machine_as_test(Collections, settings=FEW)
