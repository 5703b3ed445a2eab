"""A score with its interval, and the bootstrap that the intervals come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Units:
    """What a score's value was made from: the n resampled units (examples, documents) in the data set's own order.

    The value is sum(parts) / sum(wholes), where empty `wholes` are all 1: a mean. Two models' scores of the same units
    are compared in pairs. Over several seeds, parts are the seeds' means.
    """

    parts: tuple[float, ...]
    wholes: tuple[float, ...] = ()


@dataclass(frozen=True)
class Score:
    """One measured value. `low` and `high` bound the 95% bootstrap interval; `n` counts what was resampled.

    `language` is None for a score over all languages. `chance` is the value of guessing, where that is defined.
    `settings` holds the plain values that the score depends on, so that two scores can be told comparable. Where a task
    was run with several `seeds`, `value` is their mean and `deviation` their standard deviation. `data_revision` is the
    commit or content digest of the data set, empty where it is this project's own. `units` are there where the value is
    a mean or a ratio of sums; shares are 0..1, correlations -1..1, never percent.
    """

    suite: str
    task: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    language: str | None = None
    chance: float | None = None
    deviation: float | None = None
    seeds: tuple[int, ...] = ()
    data_revision: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    units: Units | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """`suite/task/metric`, and the language where it is of one."""
        return "/".join([self.suite, self.task, self.metric, *([self.language] if self.language else [])])

    def to_json(self) -> dict[str, Any]:
        # asdict would copy each of thousands of units by itself.
        data = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "units"}
        data |= {"seeds": list(self.seeds), "settings": dict(self.settings)}
        if self.units is None:
            return data
        parts, wholes = list(self.units.parts), list(self.units.wholes)
        return {**data, "units": {"parts": parts, **({"wholes": wholes} if wholes else {})}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Score:
        """Raises TypeError where a field is missing or not known."""
        units = data.get("units")
        kept = None if units is None else Units(tuple(units["parts"]), tuple(units.get("wholes", ())))
        return cls(**{**data, "seeds": tuple(data.get("seeds", ())), "units": kept})


def resampling_counts(n: int, samples: int, seed: int) -> FloatArray:
    """How often each of `n` units is drawn in each bootstrap sample: [samples, n], rows add up to n."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, n, size=(samples, n)) + np.arange(samples)[:, None] * n
    return np.bincount(drawn.ravel(), minlength=samples * n).reshape(samples, n).astype(np.float64)


def interval(values: FloatArray) -> tuple[float, float]:
    """The 2.5% and 97.5% quantiles of bootstrap values; samples in which the value is undefined (nan) are left out."""
    low, high = np.nanquantile(values, (0.025, 0.975))
    return float(low), float(high)


def ratio_interval(parts: FloatArray, wholes: FloatArray, samples: int, seed: int) -> tuple[float, float]:
    """Interval of sum(parts) / sum(wholes), both [n], resampling the n units they belong to."""
    counts = resampling_counts(len(parts), samples, seed)
    return interval((counts @ parts) / (counts @ wholes))
