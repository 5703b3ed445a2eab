"""A run that looks for an artifact while it is collected: in every order of their operations, and without each look."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmbert import artifacts, marks, storage
from mmbert.errors import InfrastructureError, UserError
from mmbert.marks import Deletion, LostError
from tests.collecting import DAY, GRACE, HOUR, Actor, World

Run = Callable[[World], artifacts.Artifact]


@pytest.fixture
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as found:
        yield found


def due(tmp_path: Path, number: int, patch: pytest.MonkeyPatch) -> World:
    """A store with an artifact that the next collection deletes."""
    world = World(tmp_path / str(number), patch)
    world.make("a")
    world.now += GRACE + DAY
    marks.put(world.place("a"))
    world.now += GRACE + DAY
    return world


def finds_or_makes(world: World) -> artifacts.Artifact:
    return artifacts.find(world.place("a")) or world.make("a")


def makes_again(world: World) -> artifacts.Artifact:
    """As a component whose effect lies outside of the store does: it never looks whether it was done."""
    return world.make("a")


def played(world: World, run: Run, order: tuple[int, ...]) -> None:
    """A run's operations, each when the collection has done so many of its own; then both to their ends."""
    collector = world.collector()
    while not (collector.ended or collector.at == "mlflow"):
        collector.step()
    runner = Actor(lambda actor: run(world))
    done = 0
    for position in order:
        while done < position and not collector.ended:
            collector.step()
            done += 1
        if not runner.ended:
            runner.step()
    while not (collector.ended and runner.ended):
        for actor in (collector, runner):
            if not actor.ended:
                actor.step()
    assert collector.error is None
    if runner.error is not None:
        raise runner.error
    for path in runner.result.paths():
        runner.result.read(path)
    assert world.complete(world.place("a"))


ORDERS = list(itertools.combinations_with_replacement(range(1, 9), 3))


@pytest.mark.parametrize("run", [finds_or_makes, makes_again])
def test_in_any_order_a_run_has_the_whole_artifact(tmp_path: Path, patch: pytest.MonkeyPatch, run: Run) -> None:
    deleted = 0
    for number, order in enumerate(ORDERS):
        with pytest.MonkeyPatch.context() as own:
            world = due(tmp_path, number, own)
            played(world, run, (1, *order))
            deleted += bool(world.deleted)
    # Both outcomes were among them.
    assert 0 < deleted < len(ORDERS)


def loses(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether some order loses the artifact, or a file of it."""
    for number, order in enumerate(ORDERS):
        with pytest.MonkeyPatch.context() as own:
            try:
                played(due(tmp_path, number, own), run, (1, *order))
            except (AssertionError, UserError):
                return True
    return False


def no_look_at_what_is_wanted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(marks, "wanted", lambda uri: False)


def the_look_before_the_word(patch: pytest.MonkeyPatch) -> None:
    def begin(self: Deletion) -> bool:
        if marks.wanted(self.uri):
            return False
        self._renew()
        return True

    patch.setattr(Deletion, "begin", begin)


def no_second_look_at_the_mark(patch: pytest.MonkeyPatch) -> None:
    def settle(uri: str) -> None:
        if marks.read(uri) is not None:
            storage.write_bytes(storage.join(uri, marks.WANTED), b"{}")

    patch.setattr(marks, "settle", settle)


def nothing_said_of_a_find(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(marks, "settle", lambda uri: None)


@pytest.mark.parametrize(
    ("removed", "run"),
    [
        (no_look_at_what_is_wanted, finds_or_makes),
        (the_look_before_the_word, finds_or_makes),
        (no_second_look_at_the_mark, finds_or_makes),
        (nothing_said_of_a_find, finds_or_makes),
        (nothing_said_of_a_find, makes_again),
    ],
)
def test_each_look_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, removed: Callable[[pytest.MonkeyPatch], None], run: Run
) -> None:
    removed(monkeypatch)
    assert loses(tmp_path, run, monkeypatch)


def test_a_run_goes_on_where_a_collection_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before each of its operations: what is there afterwards is whole, and the next collection goes on."""
    for number in itertools.count():
        with pytest.MonkeyPatch.context() as own:
            world = due(tmp_path, number, own)
            collector = world.collector()
            for _ in range(number):
                if not collector.ended:
                    collector.step()
            survived = collector.ended
            collector.kill()
            if number % 2:
                # Until some time has passed nobody can know that it is dead.
                if list(Path(world.root, "collection").glob("*")):
                    with pytest.raises(InfrastructureError, match="another collection is at work"):
                        world.collect()
                world.now += marks.LEASE_SECONDS + marks.STALL_SECONDS + 1
                runner = Actor(lambda actor: finds_or_makes(world))  # noqa: B023
                made = runner.finish()
                assert [made.read(path) for path in made.paths()]
            else:
                world.now += GRACE + DAY
                for _ in range(2):
                    world.collect()
                    world.now += GRACE + DAY
                assert not list(Path(world.root, "documents").rglob("*.json"))
        if survived:
            return


def test_who_waits_for_a_deletion_goes_on_when_it_has_ended(tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    world = due(tmp_path, 0, patch)
    collector = world.collector()
    while not collector.at.startswith("delete_files"):
        collector.step()
    runner = Actor(lambda actor: finds_or_makes(world))
    for _ in range(20):
        runner.step()
    assert runner.at == "pause"
    collector.finish()
    assert runner.finish().read("shard") == b"kept a"


def test_a_run_whose_clock_is_ahead_waits_for_a_deletion_that_lives(tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    world = due(tmp_path, 0, patch)
    collector = world.collector()
    while not collector.at.startswith("delete_files"):
        collector.step()
    with pytest.MonkeyPatch.context() as ahead:
        ahead.setattr(marks, "now", lambda: world.now + HOUR)
        runner = Actor(lambda actor: finds_or_makes(world))
        for _ in range(20):
            runner.step()
    assert runner.at == "pause"
    assert marks.read(world.place("a"))
    collector.finish()
    assert runner.finish()


def test_a_run_does_not_wait_for_a_deletion_that_is_dead(tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    """However long the clock of the machine that did it said that it may go on."""
    world = due(tmp_path, 0, patch)
    marks._write(world.place("a"), marks.Mark(world.now, world.now + 365 * DAY))
    world.now += marks.LEASE_SECONDS
    runner = Actor(lambda actor: finds_or_makes(world))
    while runner.at != "pause":
        runner.step()
    world.now += marks.STALL_SECONDS - 1
    for _ in range(10):
        runner.step()
        assert not runner.ended
    world.now += 2
    for _ in range(10):
        if not runner.ended:
            runner.step()
    assert runner.ended
    assert runner.error is None


def test_a_collection_that_stood_still_deletes_nothing_more(tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    world = due(tmp_path, 0, patch)
    collector = world.collector()
    while not collector.at.startswith("exists"):
        collector.step()
    world.now += marks.LEASE_SECONDS + 1
    with pytest.raises(LostError, match="stood still"):
        collector.finish()
    assert world.complete(world.place("a"))


@pytest.mark.parametrize("steps", range(8))
def test_two_collections_never_work_at_once(tmp_path: Path, patch: pytest.MonkeyPatch, steps: int) -> None:
    world = due(tmp_path, 0, patch)
    one, two = world.collector(), world.collector()
    for _ in range(steps):
        one.step()
    refused = []
    for collector in (two, one):
        with contextlib.suppress(InfrastructureError):
            collector.finish()
        refused += [str(collector.error)] if collector.error else []
    assert len(refused) == (steps > 1)
    assert all("another collection is at work" in error for error in refused)
