"""Two models' scores against each other: what changed, by how much, and whether chance explains it.

A change is judged in one of these ways, the first that can be:

- `paired bootstrap`: both scores hold the same units (same data, same settings, same number). Units are drawn for both
  models together; the interval is that of the drawn changes, the p-value that of a normal distribution with their
  standard deviation.
- `intervals`: half the width of each 95% interval over 1.96 is taken for its standard error, the spread over seeds is
  added to it, and the two models' errors count as independent. Wider than the truth where the data are the same.
- `none`: no interval on either side, a published value, or settings or data that differ. Nothing is called significant
  then.

All p-values are two-sided. Those of a task's languages are corrected together by Holm's method (Holm 1979, A simple
sequentially rejective multiple test procedure); those over all languages are not corrected.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from mmbert.evaluation.metrics import is_share, lower_is_better
from mmbert.evaluation.results.scorecard import Scorecard
from mmbert.evaluation.scores import Score, Units, interval, resampling_counts

Method = Literal["paired bootstrap", "intervals", "none"]

SIGNIFICANCE = 0.05
_Z95 = 1.959964
_SAMPLES = 1000
_NO_SPREAD = 1e-12
_SEED = 17
_NO_MATTER = {"bootstrap_samples"}
"""Settings that change no value."""


@dataclass(frozen=True)
class Difference:
    """One score in both models. `change` is `after` less `before`, in the metric's own unit; None fields: not known.

    `low` and `high` bound the 95% interval of the change; `p` is corrected over the languages of the task. `unlike`
    says what keeps the two from being compared.
    """

    before: Score
    after: Score
    method: Method
    low: float | None = None
    high: float | None = None
    p: float | None = None
    unlike: tuple[str, ...] = ()

    @property
    def published(self) -> bool:
        """Whether one of the two was published by others: its interval and settings are not known."""
        return not (self.before.n and self.after.n)

    @property
    def change(self) -> float:
        return self.after.value - self.before.value

    @property
    def gain(self) -> float:
        """The change, positive where it is for the better."""
        return -self.change if lower_is_better(self.after.metric) else self.change

    def significant(self, level: float = SIGNIFICANCE) -> bool:
        return self.p is not None and self.p < level


@dataclass(frozen=True)
class SuiteChange:
    """Means over the tasks of a suite that both models have and whose metric is a share; `p` as in `Difference`."""

    suite: str
    tasks: int
    before: float
    after: float
    low: float | None
    high: float | None
    p: float | None

    @property
    def change(self) -> float:
        return self.after - self.before

    def significant(self, level: float = SIGNIFICANCE) -> bool:
        return self.p is not None and self.p < level


@dataclass(frozen=True)
class Comparison:
    """`differences` in the order of the first model's scores; `only_before` and `only_after` name the other scores."""

    before: Scorecard
    after: Scorecard
    differences: tuple[Difference, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]

    @property
    def overall(self) -> list[Difference]:
        return [d for d in self.differences if d.after.language is None]

    @property
    def by_language(self) -> list[Difference]:
        """The worst change first; of those that cannot be compared, none."""
        found = [d for d in self.differences if d.after.language is not None and not d.unlike]
        return sorted(found, key=lambda d: (d.gain, d.after.name))

    def suites(self) -> list[SuiteChange]:
        """A mean a suite, of each task's first metric. Tasks with other data or settings are left out."""
        found = []
        for suite in dict.fromkeys(d.after.suite for d in self.overall):
            firsts = {d.after.task: d for d in reversed(self.overall) if d.after.suite == suite}
            shares = [d for d in firsts.values() if is_share(d.after.metric) and not d.unlike]
            if shares:
                found.append(_suite_change(suite, shares))
        return found


def compare(before: Scorecard, after: Scorecard) -> Comparison:
    """What changed from one model to the other."""
    old, new = {s.name: s for s in before.scores}, {s.name: s for s in after.scores}
    found = [_difference(old[name], new[name]) for name in old if name in new]
    return Comparison(
        before,
        after,
        tuple(_corrected(found)),
        tuple(name for name in old if name not in new),
        tuple(name for name in new if name not in old),
    )


def _difference(before: Score, after: Score) -> Difference:
    if unlike := differing(before, after):
        return Difference(before, after, "none", unlike=unlike)
    if not (before.n and after.n):
        return Difference(before, after, "none")
    drawn = _paired_changes(before, after)
    if drawn is not None:
        low, high = interval(drawn)
        return Difference(before, after, "paired bootstrap", low, high, _paired_p(before, after, float(drawn.std())))
    change = after.value - before.value
    error = math.hypot(_standard_error(before), _standard_error(after))
    if not error:
        return Difference(before, after, "none")
    low, high = change - _Z95 * error, change + _Z95 * error
    return Difference(before, after, "intervals", low, high, two_sided(change, error))


def differing(before: Score, after: Score) -> tuple[str, ...]:
    """Settings and data in which two scores of a task differ, as `max_seq_len: 128 / 512`; none of published ones."""
    if not (before.n and after.n):
        return ()
    old, new = _plain(before.settings), _plain(after.settings)
    keys = sorted((old.keys() | new.keys()) - _NO_MATTER)
    found = [f"{key}: {old.get(key, '-')} / {new.get(key, '-')}" for key in keys if old.get(key) != new.get(key)]
    if before.data_revision != after.data_revision:
        revisions = f"{before.data_revision[:12] or '-'} / {after.data_revision[:12] or '-'}"
        found.append(f"data revision: {revisions}")
    return tuple(found)


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON has them: what was never written to a file may still hold tuples."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}


def _paired_changes(before: Score, after: Score) -> Any:
    """Bootstrapped changes [samples], or None where the two do not hold the same units."""
    old, new = before.units, after.units
    if old is None or new is None or len(old.parts) != len(new.parts) or len(old.parts) < 2:
        return None
    n = len(old.parts)
    counts = resampling_counts(n, _SAMPLES, _SEED)

    def drawn(units: Units) -> Any:
        wholes = np.asarray(units.wholes) if units.wholes else np.ones(n)
        return (counts @ np.asarray(units.parts)) / (counts @ wholes)

    return drawn(new) - drawn(old)


def _paired_p(before: Score, after: Score, error: float) -> float:
    change = after.value - before.value
    if error > _NO_SPREAD:
        return two_sided(change, math.hypot(error, _seed_error(before), _seed_error(after)))
    # Every unit changed by the same: the sign test is what is left.
    return 1.0 if abs(change) <= _NO_SPREAD else 2.0 ** (1 - after.n)


def _standard_error(score: Score) -> float:
    return math.hypot((score.high - score.low) / (2 * _Z95), _seed_error(score))


def _seed_error(score: Score) -> float:
    return (score.deviation or 0.0) / math.sqrt(max(1, len(score.seeds)))


def two_sided(change: float, error: float) -> float:
    """The p-value of a normally distributed change of this standard error."""
    return math.erfc(abs(change) / error / math.sqrt(2))


def _corrected(differences: Iterable[Difference]) -> list[Difference]:
    found = list(differences)
    families: dict[tuple[str, str, str], list[int]] = {}
    for index, difference in enumerate(found):
        score = difference.after
        if score.language is not None and difference.p is not None:
            families.setdefault((score.suite, score.task, score.metric), []).append(index)
    for members in families.values():
        corrected = holm([found[i].p or 0.0 for i in members])
        for index, p in zip(members, corrected, strict=True):
            found[index] = replace(found[index], p=p)
    return found


def holm(values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given."""
    order = sorted(range(len(values)), key=values.__getitem__)
    steps = [(len(values) - rank) * values[index] for rank, index in enumerate(order)]
    highest = itertools.accumulate(steps, max)
    adjusted = dict(zip(order, highest, strict=True))
    return [min(1.0, adjusted[index]) for index in range(len(values))]


def _suite_change(suite: str, tasks: Sequence[Difference]) -> SuiteChange:
    """Tasks count as independent: the mean's error is the root of their squared errors over their number."""
    before, after = (sum(getattr(d, side).value for d in tasks) / len(tasks) for side in ("before", "after"))
    errors = [(d.high - d.low) / (2 * _Z95) for d in tasks if d.low is not None and d.high is not None]
    error = math.hypot(*errors) / len(tasks)
    if len(errors) < len(tasks) or not error:
        return SuiteChange(suite, len(tasks), before, after, None, None, None)
    change = after - before
    bounds = change - _Z95 * error, change + _Z95 * error
    return SuiteChange(suite, len(tasks), before, after, *bounds, two_sided(change, error))
