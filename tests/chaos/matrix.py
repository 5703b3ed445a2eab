"""The fault matrix: faults, the places where each is tried, and the table of how these trials ended."""

from __future__ import annotations

import difflib
import fnmatch
import random
import statistics
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Setting:
    """What a fault's trials are made for. `folder` is empty and the fault's own; `stack` ends what it starts, `lasting`
    what it starts for all faults."""

    folder: Path
    quick: bool
    seed: int
    stack: ExitStack
    lasting: ExitStack = field(default_factory=ExitStack)

    @property
    def shared(self) -> Path:
        """A folder for what is made once for all faults."""
        return self.folder.parent

    def random(self, name: str) -> random.Random:
        """The same numbers for the same seed and name, whatever else is tried."""
        return random.Random(f"{self.seed}/{name}")


@dataclass(frozen=True)
class Trial:
    """A fault at one place. `name` begins with the fault's and is the same for the same seed.

    `attempt` returns the seconds that the fault cost; it raises where anything was lost.
    """

    name: str
    attempt: Callable[[], float]
    injected: int = 1
    """How many faults it injects."""


@dataclass(frozen=True)
class Fault:
    """A row of the table. `figure` is (name, goal in seconds) where the seconds lost have a goal."""

    name: str
    row: str
    trials: Callable[[Setting], Iterable[Trial]]
    figure: tuple[str, float] | None = None


@dataclass(frozen=True)
class Outcome:
    fault: Fault
    trial: Trial
    seconds: float | None
    """None where it was not survived."""


def try_all(
    faults: Sequence[Fault], setting: Callable[[Fault], Setting], only: str, say: Callable[[str], None]
) -> list[Outcome]:
    """Try every trial whose name matches the pattern `only`, one after the other, whatever becomes of the others.

    A fault's name alone stands for all of its trials. Raises LookupError, with the names that there are, for none.
    """
    of_fault, _, place = only.partition("/")
    only = f"{of_fault}/{place or '*'}"
    outcomes, names = [], []
    for fault in faults:
        if not fnmatch.fnmatch(fault.name, of_fault):
            continue
        given = setting(fault)
        with given.stack:
            for trial in _trials(fault, given):
                names.append(trial.name)
                if not fnmatch.fnmatch(trial.name, only) and trial.name != fault.name:
                    continue
                began = time.monotonic()
                seconds: float | None = None
                try:
                    seconds = trial.attempt()
                except Exception:
                    say(f"{trial.name}: LOST\n{traceback.format_exc()}")
                    quick = "QUICK=1 " if given.quick else ""
                    say(f"  again: make chaos {quick}SEED={given.seed} ONLY='{trial.name}'")
                else:
                    say(f"{trial.name}: survived, {seconds:.1f} s lost, {time.monotonic() - began:.0f} s in all")
                outcomes.append(Outcome(fault, trial, seconds))
    if not outcomes:
        near = (
            difflib.get_close_matches(only, names, n=5, cutoff=0) if names else [f"{fault.name}/*" for fault in faults]
        )
        raise LookupError(f"no trial is named '{only}'; there are {', '.join(near)}{' and others' * (len(names) > 5)}")
    return outcomes


def _trials(fault: Fault, given: Setting) -> Iterator[Trial]:
    """A fault's trials; where they cannot be made, one of the fault's name that says so."""
    try:
        yield from fault.trials(given)
    except Exception as error:
        failure = error

        def attempt() -> float:
            raise failure

        yield Trial(fault.name, attempt)


def table(outcomes: Sequence[Outcome]) -> list[str]:
    """Fault, times tried, times survived, seconds lost; then the figures, the last line the sum."""
    rows = [("fault", "tried", "survived", "seconds lost (median, most)")]
    figures = []
    for fault in dict.fromkeys(outcome.fault for outcome in outcomes):
        own = [outcome for outcome in outcomes if outcome.fault is fault]
        lost = [outcome.seconds for outcome in own if outcome.seconds is not None]
        spent = f"{statistics.median(lost):.1f}, {max(lost):.1f}" if lost else "-"
        rows.append((fault.row, str(_injected(own)), str(_survived(own)), spent))
        if fault.figure and lost:
            name, goal = fault.figure
            figures.append(f"figure: {name} {max(lost):.1f} s, the most of {len(lost)} (goal {goal:g})")
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [*lines, *figures, f"figure: faults_survived {_survived(outcomes)} of {_injected(outcomes)}"]


def _injected(outcomes: Sequence[Outcome]) -> int:
    return sum(outcome.trial.injected for outcome in outcomes)


def _survived(outcomes: Sequence[Outcome]) -> int:
    return _injected([outcome for outcome in outcomes if outcome.seconds is not None])
