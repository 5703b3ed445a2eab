"""Scores over time: what a re-evaluation adds to the history, and what got worse."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mmbert.evaluation.metrics import is_share, lower_is_better
from mmbert.evaluation.results.compare import Comparison, Difference, compare
from mmbert.evaluation.results.scorecard import Scorecard
from mmbert.evaluation.scores import Score
from mmbert.evaluation.selection import Release
from mmbert.tables import counted
from mmbert.tracking.registry import CHAMPION

_LANGUAGES_NAMED = 8


@dataclass(frozen=True)
class Evaluated:
    """A model of this re-evaluation and how it compares.

    `since` compares with the model's own evaluation before this one, `against` with the champion's of now; None where
    there is nothing to compare with.
    """

    label: str
    role: str
    digest: str
    since: Comparison | None = None
    against: Comparison | None = None

    def comparisons(self) -> list[tuple[str, Comparison]]:
        """What it is compared with, and how it compares."""
        found = {"its evaluation before": self.since, "the champion": self.against}
        return [(name, comparison) for name, comparison in found.items() if comparison and comparison.differences]


@dataclass(frozen=True)
class Trend:
    """All that the trend page shows. `history` holds this re-evaluation's scores too, oldest first.

    `alerts` is what got worse, a line each; `verdicts` what the gate said.
    """

    name: str
    when: datetime.datetime
    history: tuple[Scorecard, ...]
    evaluated: tuple[Evaluated, ...]
    releases: tuple[Release, ...]
    alerts: tuple[str, ...] = ()
    verdicts: tuple[str, ...] = ()
    language_names: Mapping[str, str] = field(default_factory=dict)

    def label_of(self, digest: str) -> str:
        """The model's version, or the beginning of its digest where it is not registered."""
        return next((f"version {r.version}" for r in self.releases if r.digest == digest), digest[:8])

    def name_of(self, language: str) -> str:
        return self.language_names.get(language, language)


def evaluated_models(history: Iterable[Scorecard], models: Sequence[tuple[str, str, str]]) -> tuple[Evaluated, ...]:
    """Each model (label, role, digest) with its changes. The champion is the first whose role says so."""
    cards = sorted(history, key=lambda card: card.when)
    champion = next((digest for _, role, digest in models if role == CHAMPION), "")
    latest = {digest: _latest([card for card in cards if card.model_digest == digest]) for _, _, digest in models}
    found = []
    for label, role, digest in models:
        now = latest[digest]
        since = against = None
        if now is not None:
            before = _before([card for card in cards if card.model_digest == digest])
            since = compare(before, now) if before is not None else None
            best = latest.get(champion) if digest != champion else None
            against = compare(best, now) if best is not None else None
        found.append(Evaluated(label, role, digest, since, against))
    return tuple(found)


def worse(difference: Difference) -> bool:
    """Whether chance does not explain a change for the worse.

    Where settings or data differ no test is made of it (`Difference.unlike`), and a re-evaluation is there to see just
    that: it counts where the two 95% intervals do not overlap.
    """
    if difference.gain >= 0:
        return False
    if not difference.unlike:
        return difference.significant()
    before, after = difference.before, difference.after
    return after.low > before.high if lower_is_better(after.metric) else after.high < before.low


def gain_interval(difference: Difference) -> tuple[float, float]:
    """95% interval of the gain: the comparison's own, else from both intervals, as of independent values."""
    before, after = difference.before, difference.after
    if difference.low is not None and difference.high is not None:
        low, high = difference.low, difference.high
    else:
        low = difference.change - math.hypot(before.high - before.value, after.value - after.low)
        high = difference.change + math.hypot(before.value - before.low, after.high - after.value)
    return (-high, -low) if lower_is_better(after.metric) else (low, high)


def alerts_of(evaluated: Iterable[Evaluated], name_of: Mapping[str, str]) -> list[str]:
    """A line for each task that got worse, and one for the languages of a task that did."""
    found = []
    for model in evaluated:
        for against, comparison in model.comparisons():
            changed = [difference for difference in comparison.differences if worse(difference)]
            lines = [_told(difference) for difference in changed if difference.after.language is None]
            lines += _languages([difference for difference in changed if difference.after.language], name_of)
            found += [f"{model.label}, against {against}: {line}" for line in lines]
    return found


def title_of(score: Score) -> str:
    """`demo · article retrieval (accuracy)`."""
    return f"{score.suite} · {score.task.replace('_', ' ')} ({score.metric.replace('_', ' ')})"


def number(score: Score, value: float) -> str:
    """The value as people read that metric: shares as percent, anything else as it is."""
    if is_share(score.metric):
        return f"{value:.1%}"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"


def signed(score: Score, value: float) -> str:
    return f"{'+' if value >= 0 else ''}{number(score, value)}"


def _told(difference: Difference) -> str:
    why = f" ({'; '.join(difference.unlike)})" if difference.unlike else ""
    before, after = _interval(difference.before), _interval(difference.after)
    return f"{title_of(difference.after)} went from {before} to {after}{why}"


def _interval(score: Score) -> str:
    return f"{number(score, score.value)} ({number(score, score.low)} to {number(score, score.high)})"


def _languages(changed: Sequence[Difference], name_of: Mapping[str, str]) -> list[str]:
    by_task: dict[str, list[Difference]] = {}
    for difference in changed:
        by_task.setdefault(title_of(difference.after), []).append(difference)
    lines = []
    for title, found in by_task.items():
        shown = sorted(found, key=lambda difference: difference.gain)[:_LANGUAGES_NAMED]
        named = [
            f"{name_of.get(str(d.after.language), str(d.after.language))} {number(d.before, d.before.value)} to "
            f"{number(d.after, d.after.value)}"
            for d in shown
        ]
        more = f" and {len(found) - len(shown)} more" if len(found) > len(shown) else ""
        lines.append(f"{title} got worse in {counted(len(found), 'language')}: {', '.join(named)}{more}")
    return lines


def _latest(cards: Sequence[Scorecard]) -> Scorecard | None:
    """One scorecard of a model's evaluations, the last of each score."""
    if not cards:
        return None
    return replace(cards[-1], suite="", scores=tuple({s.name: s for card in cards for s in card.scores}.values()))


def _before(cards: Sequence[Scorecard]) -> Scorecard | None:
    """The same of the evaluations before: of each score the last but one."""
    found: dict[str, Score] = {}
    last: dict[str, Score] = {}
    for card in cards:
        for score in card.scores:
            if score.name in last:
                found[score.name] = last[score.name]
            last[score.name] = score
    return replace(cards[0], suite="", scores=tuple(found.values())) if found else None
