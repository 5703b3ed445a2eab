"""The release gate: what a candidate must reach, and how far it may fall below the champion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mmbert.evaluation.metrics import is_share
from mmbert.evaluation.results.compare import Difference, compare
from mmbert.evaluation.results.scorecard import Scorecard
from mmbert.evaluation.scores import Score
from mmbert.recipe.schema import Gate


@dataclass(frozen=True)
class Finding:
    """One reason for a refusal, or (`refuses` is false) one thing worth knowing.

    `name` is the score's (`suite/task/metric/language`) or the suite's. `before` is the champion's value, None against
    a minimum; `limit` is the bound, or how far it may drop; `low` and `high` bound the change.
    """

    what: str
    name: str
    refuses: bool = True
    before: float | None = None
    after: float | None = None
    limit: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None

    def __str__(self) -> str:
        return f"{self.name}: {self.what}"


@dataclass(frozen=True)
class Verdict:
    """`champion` is the label of what it was compared with, empty where there was nothing."""

    findings: tuple[Finding, ...]
    champion: str = ""

    @property
    def passed(self) -> bool:
        return not self.refusals

    @property
    def refusals(self) -> list[Finding]:
        return [f for f in self.findings if f.refuses]

    def text(self) -> str:
        """A line a finding; those that refuse first."""
        notes = [f for f in self.findings if not f.refuses]
        return "\n".join([*(f"fell: {f}" for f in self.refusals), *(f"note: {f}" for f in notes)])


def judge(gate: Gate, candidate: Scorecard, champion: Scorecard | None) -> Verdict:
    """Whether the candidate may become champion. Without a champion only minima and maxima count.

    A drop refuses where it is larger than allowed and significant. One without any spread to test it by refuses too,
    unless it stands on a single unit. So does what the champion was measured on and the candidate was not, or was with
    other settings or data.
    """
    findings = [*_bounds(gate.minimum, candidate, floor=True), *_bounds(gate.maximum, candidate, floor=False)]
    if champion is None:
        return Verdict(tuple(findings))
    compared = compare(champion, candidate)
    lost = [name for name in compared.only_before if name.count("/") == 2]
    findings += [Finding("the champion was measured on it, the candidate was not", name) for name in lost]
    findings += [found for d in compared.differences if (found := _drop(gate, d)) is not None]
    label = f"{champion.model} ({champion.model_digest[:12]})"
    return Verdict(tuple(findings), label)


def _bounds(limits: Mapping[str, float], card: Scorecard, *, floor: bool) -> Iterable[Finding]:
    for name, limit in limits.items():
        value = _value(card, name)
        if value is None:
            yield Finding("not measured, and the gate has a bound for it", name, limit=limit)
        elif value < limit if floor else value > limit:
            side = "below the minimum" if floor else "above the maximum"
            yield Finding(f"{value:.4g} is {side} {limit:g}", name, after=value, limit=limit)


def _value(card: Scorecard, name: str) -> float | None:
    """The value that a bound is about: a task's, or the mean of a suite's tasks."""
    suite, _, rest = name.partition("/")
    task, _, metric = rest.partition("/")
    overall = [s for s in card.scores if s.suite == suite and s.language is None]
    firsts = {s.task: s for s in reversed(overall) if metric in {"", s.metric}}
    chosen = [s.value for s in firsts.values() if (s.task == task if task else is_share(s.metric))]
    return sum(chosen) / len(chosen) if chosen else None


def _drop(gate: Gate, difference: Difference) -> Finding | None:
    before, after = difference.before, difference.after
    if difference.unlike:
        if after.language is not None:
            return None
        what = f"not comparable with the champion's ({'; '.join(difference.unlike)}); evaluate the champion again"
        return Finding(what, after.name, before=before.value, after=after.value)
    allowed = allowed_drop(gate, before)
    if difference.gain >= -allowed:
        return None
    tested = difference.p is not None
    refuses = difference.significant(gate.significance) if tested else min(before.n, after.n) > 1
    unit = "points" if is_share(after.metric) else "of the metric's unit"
    change = difference.change * (100 if is_share(after.metric) else 1)
    bounds = ""
    if difference.low is not None and difference.high is not None:
        bounds = f", 95% interval of the change {difference.low:+.4f} to {difference.high:+.4f}"
    judged = f"p {difference.p:.2g}, {difference.method}" if tested else "no interval to test it by"
    what = (
        f"from {before.value:.4f} to {after.value:.4f} ({change:+.2f} {unit}{bounds}; {judged}; allowed {allowed:.4g})"
        + ("" if refuses else ", within chance")
    )
    return Finding(
        what, after.name, refuses, before.value, after.value, allowed, difference.low, difference.high, difference.p
    )


def allowed_drop(gate: Gate, champion: Score) -> float:
    """How far a score may fall below the champion's, in its own unit. The recipe says it in shares."""
    name = f"{champion.suite}/{champion.task}"
    limits = gate.largest_language_drops if champion.language is not None else gate.largest_drops
    common = gate.largest_language_drop if champion.language is not None else gate.largest_drop
    limit = limits.get(name, limits.get(champion.suite, common))
    return limit if is_share(champion.metric) else limit * abs(champion.value)
