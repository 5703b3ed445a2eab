"""The order in which the rows of one stream come, for ever, epoch after epoch."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from mmbert.loader.permutation import permute
from mmbert.loader.randomness import derive_key, random_bits

_EPOCHS_KEPT = 2  # lanes of one process cross an epoch's border at slightly different times


class StreamOrder:
    """Rows of a stream by position: epoch = position // rows; in each epoch every row comes exactly once.

    A keyed permutation orders the shards that the stream's rows span, and another the rows within each shard, so that
    a downloaded shard is used up before the next. Memory: two numbers a spanned shard.
    """

    def __init__(self, name: str, seed: int, row_begin: int, rows: int, shard_begins: NDArray[np.int64]) -> None:
        """`shard_begins`: int64 [shards + 1], the data set's first row of each shard and, last, its number of rows."""
        self.rows = rows
        self._name, self._seed, self._row_begin, self._shard_begins = name, seed, row_begin, shard_begins
        self._orders: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    # Made on first use: a process has thousands of streams, and draws from few of them in its first batches.
    @functools.cached_property
    def _key(self) -> int:
        return derive_key("order", self._seed, self._name)

    @functools.cached_property
    def _edges(self) -> NDArray[np.int64]:
        """The stream's first row in each of its shards and, last, the end of its rows."""
        begin, end, begins = self._row_begin, self._row_begin + self.rows, self._shard_begins
        first = int(np.searchsorted(begins, begin, side="right")) - 1
        last = int(np.searchsorted(begins, end, side="left"))
        return begins[first : last + 1].clip(begin, end)

    def row(self, position: int) -> int:
        """The row of the data set at a position of the stream."""
        epoch, index = divmod(position, self.rows)
        spans, ends = self._spans(epoch)
        place = int(ends.searchsorted(index, side="right"))
        span = int(spans[place])
        begin, end = int(self._edges[span]), int(self._edges[span + 1])
        count = end - begin
        within = index - int(ends[place]) + count
        return begin + permute(within, count, derive_key("rows", self._key, epoch, span))

    def _spans(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The spans in this epoch's order and the index at which each ends."""
        if epoch not in self._orders:
            if len(self._orders) >= _EPOCHS_KEPT:
                del self._orders[min(self._orders)]
            counts = np.diff(self._edges)
            bits = random_bits(derive_key("shards", self._key, epoch), len(counts))
            order = np.argsort(bits, kind="stable")
            self._orders[epoch] = order, np.cumsum(counts[order])
        return self._orders[epoch]
