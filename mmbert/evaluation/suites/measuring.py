"""Scores by language and over all, with several seeds: mean, deviation, and the bootstrap interval of the mean.

The interval tells what another sample of test examples would give; the deviation what another seed would.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mmbert.evaluation.scores import FloatArray, Score, Units, interval

Rows = npt.NDArray[np.int64]
Measure = Callable[[Rows], float]
"""A metric of the test examples in the given rows, which may repeat some and leave out others."""


@dataclass(frozen=True)
class Measured:
    """One language's test set: `n` examples, and the metric on them of the model of each seed.

    `parts` [n]: where the metric is a mean, each example's part in it, averaged over seeds.
    """

    n: int
    seeds: Sequence[Measure]
    chance: float | None = None
    parts: FloatArray | None = None

    @classmethod
    def mean(cls, parts: Sequence[FloatArray], chance: float | None = None) -> Measured:
        """Of a metric that is a mean over examples; `parts` has its values [n] of each seed."""

        def measure(values: FloatArray, rows: Rows) -> float:
            return float(values[rows].mean())

        measures = [functools.partial(measure, values) for values in parts]
        return cls(len(parts[0]), measures, chance, np.mean(parts, axis=0))


def scores_of(
    suite: str,
    task: str,
    metric: str,
    languages: Mapping[str, Measured] | Mapping[None, Measured],
    *,
    seeds: Sequence[int],
    bootstrap_samples: int,
    settings: Mapping[str, Any],
) -> list[Score]:
    """The mean over the languages (`language` None) and a score each; of a task of no language, under None, that alone.

    Resampled are the examples, within each language and alike for all seeds.
    """
    values = {code: [m(np.arange(found.n)) for m in found.seeds] for code, found in languages.items()}
    drawn = {
        code: _resampled(found, bootstrap_samples, seeds[0], index)
        for index, (code, found) in enumerate(languages.items())
    }

    def score(
        language: str | None,
        by_seed: Sequence[float],
        resampled: FloatArray,
        n: int,
        chance: float | None,
        units: Units | None,
    ) -> Score:
        return Score(
            suite,
            task,
            metric,
            statistics.fmean(by_seed),
            *interval(resampled),
            n=n,
            language=language,
            chance=chance,
            deviation=statistics.stdev(by_seed) if len(by_seed) > 1 else None,
            seeds=tuple(seeds),
            settings={**settings, "bootstrap_samples": bootstrap_samples},
            units=units,
        )

    rows = [
        score(code, values[code], drawn[code], found.n, found.chance, _units([found]))
        for code, found in languages.items()
    ]
    if list(languages) == [None]:
        return rows
    means = [statistics.fmean(by_language) for by_language in zip(*values.values(), strict=True)]
    chances = [found.chance for found in languages.values() if found.chance is not None]
    everything = np.mean(list(drawn.values()), axis=0)
    chance = statistics.fmean(chances) if len(chances) == len(languages) else None
    overall = score(
        None, means, everything, sum(found.n for found in languages.values()), chance, _units(list(languages.values()))
    )
    return [overall, *rows]


def _units(languages: Sequence[Measured]) -> Units | None:
    """Every example counts by its language's size, so that the ratio of the sums is the mean over languages."""
    parts = [found.parts for found in languages if found.parts is not None]
    if len(parts) < len(languages):
        return None
    if len(parts) == 1:
        return Units(tuple(parts[0].tolist()))
    weights = [np.full(len(values), 1 / len(values)) for values in parts]
    weighted = [values * weight for values, weight in zip(parts, weights, strict=True)]
    return Units(tuple(np.concatenate(weighted).tolist()), tuple(np.concatenate(weights).tolist()))


def _resampled(found: Measured, samples: int, seed: int, index: int) -> FloatArray:
    """The mean over seeds of the metric on `samples` resamples."""
    rng = np.random.default_rng([seed, index])
    draws = (rng.integers(0, found.n, found.n) for _ in range(samples))
    return np.array([statistics.fmean(measure(rows) for measure in found.seeds) for rows in draws])
