"""The fault matrix itself: what it prints, how it ends, how a trial is repeated."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.chaos import __main__ as command
from tests.chaos.matrix import Fault, Setting, Trial

TRIED: list[tuple[str, int]] = []


def _trials(setting: Setting) -> Iterator[Trial]:
    def attempt(name: str, number: int) -> float:
        TRIED.append((name, number))
        if name == "disk/full":
            raise AssertionError("a shard is gone")
        return 1.5

    for name, injected in (("disk/slow", 1), ("disk/full", 1), ("disk/gone", 3)):
        number = setting.random(name).randrange(1000)
        yield Trial(name, lambda name=name, number=number: attempt(name, number), injected)


@pytest.fixture(autouse=True)
def _faults(monkeypatch: pytest.MonkeyPatch) -> None:
    TRIED.clear()
    monkeypatch.setattr(command, "FAULTS", (Fault("disk", "a disk", _trials, ("seconds_lost", 60)),))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command.main, arguments)


def test_the_table_counts_faults_and_its_last_line_is_the_sum() -> None:
    ended = run("--seed", "7")
    lines = ended.output.splitlines()
    assert lines[0] == "seed 7"
    assert "a shard is gone" in ended.output
    assert lines[-4:] == [
        "fault   tried  survived  seconds lost (median, most)",
        "a disk  5      4         1.5, 1.5",
        "figure: seconds_lost 1.5 s, the most of 2 (goal 60)",
        "figure: faults_survived 4 of 5",
    ]
    assert ended.exit_code == 1


def test_a_trial_is_repeated_by_its_name_and_seed() -> None:
    lost = next(line for line in run("--seed", "7").output.splitlines() if "again:" in line)
    assert lost.strip() == "again: make chaos SEED=7 ONLY='disk/full'"
    before = next(tried for tried in TRIED if tried[0] == "disk/full")
    TRIED.clear()
    assert run("--seed", "7", "--only", "disk/full").exit_code == 1
    assert [before] == TRIED
    TRIED.clear()
    assert run("--seed", "8", "--only", "disk/[sg]*").exit_code == 0
    assert [name for name, _ in TRIED] == ["disk/slow", "disk/gone"]


def test_a_pattern_that_fits_no_trial_is_wrong_use() -> None:
    ended = run("--only", "network/*")
    assert ended.exit_code == 2
    assert "no trial is named 'network/*'; there are disk/*" in ended.output


def test_a_name_that_no_trial_of_its_fault_has_is_told_with_those_that_there_are() -> None:
    ended = run("--only", "disk/ful")
    assert ended.exit_code == 2
    assert "no trial is named 'disk/ful'; there are disk/full, disk/slow, disk/gone" in " ".join(ended.output.split())


def test_a_faults_name_alone_is_all_of_its_trials() -> None:
    run("--only", "disk")
    assert [name for name, _ in TRIED] == ["disk/slow", "disk/full", "disk/gone"]


def test_what_was_lost_in_a_quick_run_is_repeated_in_one() -> None:
    assert "again: make chaos QUICK=1 SEED=7 ONLY='disk/full'" in run("--quick", "--seed", "7").output


def test_folders_are_kept_where_that_is_wished() -> None:
    ended = run("--keep", "--only", "disk/slow")
    folder = Path(ended.output.partition("kept in ")[2].splitlines()[0])
    assert (folder / "disk").is_dir()
    shutil.rmtree(folder)


def test_a_fault_whose_trials_cannot_be_made_is_lost_and_the_others_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(setting: Setting) -> Iterator[Trial]:
        raise RuntimeError("the server did not start")
        yield

    faults = (Fault("network", "a network", none), Fault("disk", "a disk", _trials))
    monkeypatch.setattr(command, "FAULTS", faults)
    ended = run()
    assert "network: LOST" in ended.output
    assert "the server did not start" in ended.output
    assert ended.output.splitlines()[-1] == "figure: faults_survived 4 of 6"
    assert run("--only", "disk/slow").exit_code == 0
