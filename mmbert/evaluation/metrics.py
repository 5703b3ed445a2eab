"""What a metric's values can be, told by how its name ends. Imports nothing, since recipes are checked with it."""

from __future__ import annotations

import math

_LOWER_IS_BETTER = ("bits_per_byte", "_mb", "_seconds", "_difference")
_UNBOUNDED = (*_LOWER_IS_BETTER, "_per_second")
_CORRELATIONS = ("matthews", "pearson", "spearman", "p-MRR")


def lower_is_better(metric: str) -> bool:
    """Whether less of it is better: bits, memory, time, distances."""
    return metric.endswith(_LOWER_IS_BETTER)


def is_share(metric: str) -> bool:
    """Whether its values are shares (0..1) or correlations (-1..1); others have a unit of their own."""
    return not metric.endswith(_UNBOUNDED)


def value_range(metric: str) -> tuple[float, float]:
    """The least and the most that it can be."""
    if not is_share(metric):
        return 0.0, math.inf
    return (-1.0 if metric.endswith(_CORRELATIONS) else 0.0), 1.0
