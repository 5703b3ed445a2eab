"""How the original puts the losses of a batch's microbatches together."""

from __future__ import annotations

from collections.abc import Sequence


def microbatch_weights(segments: Sequence[int]) -> list[float]:
    """Weights of the microbatches' mean losses: shares of the batch's segments, trailing padding being one, so that a
    masked token among few counts for more than one among many."""
    total = sum(segments)
    return [count / total for count in segments]
