"""What adding languages to a model did: gains on the new ones, what the old ones lost, by variant and by language."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmbert.errors import UserError
from mmbert.evaluation.results.compare import Comparison, Difference, compare
from mmbert.evaluation.results.scorecard import Scorecard
from mmbert.evaluation.scores import Score, Units, ratio_interval
from mmbert.evaluation.suites.names import BITS_PER_BYTE, DEMO
from mmbert.recipe.languages import language_name

NEW, OLD = "new languages", "old languages"
LARGEST_LOSS = 0.02
"""Of bits per byte, relative, that old languages may lose: what the project promises of its demo."""
_SAMPLES, _SEED = 1000, 17


@dataclass(frozen=True)
class Outcome:
    """One model beside the model before. Shares are of bits per byte: 0.25 is a quarter fewer bits."""

    model: str
    comparison: Comparison
    new: Difference
    old: Difference | None
    """None where no old language has held-out text."""
    gains: Mapping[str, float]
    """`gain` of each new language alone."""

    @property
    def gain(self) -> float:
        """Share of the bits per byte that the new languages no longer need."""
        return -self.new.change / self.new.before.value

    @property
    def median_gain(self) -> float:
        """Of the new languages, each counted once: those with a script of many bytes weigh most in `gain`."""
        return statistics.median(self.gains.values())

    @property
    def loss(self) -> float | None:
        """Share of bits per byte that the old languages need more; negative where they gained too."""
        return None if self.old is None else self.old.change / self.old.before.value


def outcome(before: Scorecard, after: Scorecard, new: Sequence[str]) -> Outcome:
    """Raises UserError where one of the two has no bits per byte of the new languages."""
    sides = [_with_sums(card, new) for card in (before, after)]
    found = {d.after.task: d for d in compare(*sides).overall if d.after.suite == DEMO}
    comparison = compare(before, after)
    gains = {
        str(d.after.language): -d.change / d.before.value
        for d in comparison.by_language
        if (d.after.suite, d.after.task) == (DEMO, BITS_PER_BYTE) and d.after.language in new
    }
    if NEW not in found or not gains:
        raise UserError(f"{before.model} and {after.model}: no bits per byte of {', '.join(new)} on both sides")
    return Outcome(after.model, comparison, found[NEW], found.get(OLD), gains)


def _with_sums(card: Scorecard, new: Sequence[str]) -> Scorecard:
    """The scorecard of two scores: bits per byte over the documents of all new languages, and of all old ones."""
    rows = [s for s in card.scores if (s.suite, s.task) == (DEMO, BITS_PER_BYTE) and s.language and s.units]
    summed = []
    for task, chosen in (
        (NEW, [s for s in rows if s.language in new]),
        (OLD, [s for s in rows if s.language not in new]),
    ):
        if chosen:
            summed.append(_sum(task, chosen))
    return Scorecard(card.model, card.model_digest, card.kind, DEMO, tuple(summed))


def _sum(task: str, scores: Sequence[Score]) -> Score:
    units = [score.units for score in scores if score.units is not None]
    parts = np.array([part for unit in units for part in unit.parts])
    wholes = np.array([whole for unit in units for whole in unit.wholes])
    low, high = ratio_interval(parts, wholes, _SAMPLES, _SEED)
    value = float(parts.sum() / wholes.sum())
    settings = {key: value for key, value in scores[0].settings.items() if key != "new"}
    kept = Units(tuple(parts.tolist()), tuple(wholes.tolist()))
    languages = {"languages": len(scores)}
    return Score(DEMO, task, "bits_per_byte", value, low, high, len(parts), settings=settings | languages, units=kept)


def verdict(found: Outcome) -> str:
    """One sentence for a log."""
    new = f"{found.model}: {NEW} {_change(found.new)} bits per byte ({-found.gain:+.1%}"
    new += f", half of them {-found.median_gain:+.1%} or better)"
    if found.old is None or found.loss is None:
        return f"{new}; no {OLD} were measured"
    kept = "kept" if found.loss <= LARGEST_LOSS else f"lost more than {LARGEST_LOSS:.0%}"
    return f"{new}; {OLD} {_change(found.old)} ({found.loss:+.1%}): {kept}"


def _change(difference: Difference) -> str:
    return f"{difference.before.value:.3f} -> {difference.after.value:.3f}"


def summary(outcomes: Sequence[Outcome], costs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Tables and claims for a terminal, the released model first; `models` and `tokens` for programs."""
    released = outcomes[0]
    models = [
        {"model": o.model, "new_gain": o.gain, "median_gain": o.median_gain, "old_loss": o.loss} for o in outcomes
    ]
    columns = ["model", "new: before", "after", "change", "old: before", "after", "change"]
    rows = [[o.model, *_row(o.new, -o.gain), *_row(o.old, o.loss)] for o in outcomes]
    spelled = ["language", "change", "bytes a token", "beside the others", "single bytes"]
    tokens = [
        [
            language_name(code),
            f"{-released.gains[code]:+.1%}" if code in released.gains else "-",
            cost["bytes_per_token"],
            cost["beside_others"] or "-",
            _percent(cost["byte_fallback_share"]),
        ]
        for code, cost in costs.items()
    ]
    return {
        "tables": [
            {"title": "Held-out masked bits per byte", "columns": columns, "rows": rows},
            {"title": "The new languages, and what the tokenizer makes of them", "columns": spelled, "rows": tokens},
        ],
        "claims": claims(released),
        "models": models,
        "tokens": dict(costs),
    }


def claims(found: Outcome) -> list[dict[str, Any]]:
    """What the run promised: the new languages gain, beyond chance; the old ones lose little."""
    bounds = [-bound / found.new.before.value for bound in (found.new.high or 0.0, found.new.low or 0.0)]
    gained = {
        "text": "the new languages need fewer bits per byte, and the interval excludes none",
        "figures": f"{found.gain:.1%} fewer, {bounds[0]:.1%} to {bounds[1]:.1%}; median of the languages "
        f"{found.median_gain:.1%}",
        "holds": bounds[0] > 0,
    }
    if found.loss is None:
        return [gained]
    kept = {
        "text": f"the old languages lose at most {LARGEST_LOSS:.0%}",
        "figures": f"{found.loss:+.1%}",
        "holds": found.loss <= LARGEST_LOSS,
    }
    return [gained, kept]


def _row(difference: Difference | None, change: float | None) -> list[Any]:
    if difference is None or change is None:
        return ["-", "-", "-"]
    return [difference.before.value, difference.after.value, f"{change:+.1%}"]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
