"""Which stream a lane draws its next row from: stride scheduling (Waldspurger and Weihl, 1995) in exact integers."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmbert.loader.randomness import derive_key

_SCALE = 1 << 48  # a stride is rounded to an integer: its relative error is below 2^-48


@dataclass(frozen=True)
class Share:
    """What the schedule knows of one stream. `row_tokens` is the mean length of its rows, in tokens."""

    name: str
    stride: int
    row_tokens: int


def shares(names: Sequence[str], weights: Sequence[float], row_tokens: Sequence[int]) -> list[Share]:
    """Streams with their strides: the inverse of each one's share of the tokens."""
    total = math.fsum(weights)
    return [
        Share(name, round(_SCALE * total / weight), tokens)
        for name, weight, tokens in zip(names, weights, row_tokens, strict=True)
    ]


def slot(name: str, seed: int, lane: int, lanes: int) -> int:
    """The lane's place among the stream's lanes: a rotation chosen by the stream's name.

    It is both the first position that the lane takes from the stream (it goes on in steps of `lanes`) and the order in
    which the lanes come to the stream. So the lanes together take positions 0, 1, 2, ... nearly in turn: an epoch of a
    small stream is finished before the next begins, and a stream that only some lanes will reach has its exact
    expectation.
    """
    return (lane + derive_key("rotation", seed, name)) % lanes


class Interleaver:
    """The stream of least virtual time next; virtual time = offset + consumed tokens x stride.

    Token shares follow the weights however long rows are: after any draw, each stream is within one row of its share.
    """

    def __init__(self, streams: Sequence[Share], seed: int, lane: int, lanes: int, consumed: NDArray[np.int64]) -> None:
        """`consumed`: int64 [streams], tokens that the lane has taken from each stream so far."""
        self._strides = [s.stride for s in streams]
        self._offsets = [self._offset(s, seed, lane, lanes) for s in streams]
        self._heap = [(self._time(i, int(tokens)), i) for i, tokens in enumerate(consumed)]
        heapq.heapify(self._heap)

    @property
    def next(self) -> int:
        """The index of the stream to draw from; ties go to the lower index."""
        return self._heap[0][1]

    def advance(self, consumed: int) -> None:
        """Say how many tokens the lane has now taken, in all, from the stream that was next."""
        heapq.heapreplace(self._heap, (self._time(self.next, consumed), self.next))

    def _time(self, stream: int, consumed: int) -> int:
        return self._offsets[stream] + consumed * self._strides[stream]

    @staticmethod
    def _offset(share: Share, seed: int, lane: int, lanes: int) -> int:
        """Uniform over one row's worth of virtual time, spread evenly over the lanes."""
        fraction = derive_key("offset", seed, share.name) >> 96  # 32 bits
        place = (slot(share.name, seed, lane, lanes) << 32) + fraction
        return share.row_tokens * share.stride * place // (lanes << 32)
