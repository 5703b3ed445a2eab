"""The original's batch-size warm-up, and the token count at which it takes a batch's learning rate."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from math import ceil


@dataclass(frozen=True)
class BatchWarmup:
    """Rows (microbatches) of a process's next batch, from `first` to `last`, by the real tokens that it has packed.

    A size s lasts tokens in proportion to s: size first + i + 1 begins at ceil(T / sum(first .. last - 1) x
    sum(first .. first + i)), with T = `tokens` / `world_size`.
    """

    first: int
    last: int
    tokens: int
    world_size: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.first < self.last:
            raise ValueError(
                f"a warm-up goes from 1 row or more to a larger number, not from {self.first} to {self.last}"
            )

    def thresholds(self) -> list[int]:
        """Token counts at which the second size begins, the third, ..."""
        sizes = range(self.first, self.last)
        step = Fraction(self.tokens, self.world_size * sum(sizes))
        return [ceil(step * reached) for reached in accumulate(sizes)]

    def __call__(self, tokens: int) -> int:
        return self.first + bisect.bisect_right(self.thresholds(), tokens)


def learning_rate_tokens(batch_tokens: Sequence[int]) -> list[int]:
    """For each batch, the token count of the schedule at which it runs; `batch_tokens` counts padding too.

    Composer sets the next learning rate before it counts the batch, so batch k runs at the rate of the tokens before
    batch k - 1, and the first two at that of the start.
    """
    before = [0, *accumulate(batch_tokens)]
    return [before[max(0, k - 1)] for k in range(len(batch_tokens))]
