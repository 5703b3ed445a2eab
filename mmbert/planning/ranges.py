"""A figure as planning knows it: between two bounds, with what is expected."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

WIDEST = 3.0
"""A range whose ends are further apart helps nobody to decide."""
# A little less, for what rounding adds on the way.
_DRAWN_IN = 2.95


@dataclass(frozen=True)
class Range:
    """0 < low <= expected <= high <= 3 low. Raises ValueError for anything else: a bug, not a user's mistake."""

    low: float
    expected: float
    high: float

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.expected <= self.high <= WIDEST * self.low:
            raise ValueError(f"no range: {self.low}, {self.expected}, {self.high}")

    def through(self, function: Callable[[float], float]) -> Range:
        """Of a function that rises, or falls, all the way."""
        ends = function(self.low), function(self.high)
        return Range(min(ends), function(self.expected), max(ends))


def around(expected: float, low: float, high: float) -> Range:
    """The range with these ends; where they are too far apart, both are drawn in alike, by ratio."""
    low, high = min(low, expected), max(high, expected)
    if high > _DRAWN_IN * low:
        share = math.log(_DRAWN_IN) / math.log(high / low)
        low, high = expected * (low / expected) ** share, expected * (high / expected) ** share
    return Range(low, expected, high)
