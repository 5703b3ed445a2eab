"""The order in which the rows of one stream come, for ever, epoch after epoch."""

from __future__ import annotations

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
        self._key = derive_key("order", seed, name)
        first = int(np.searchsorted(shard_begins, row_begin, side="right")) - 1
        last = int(np.searchsorted(shard_begins, row_begin + rows, side="left"))
        edges = shard_begins[first : last + 1].clip(row_begin, row_begin + rows)
        self._begins = edges[:-1]
        self._counts = np.diff(edges)
        self._orders: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    def row(self, position: int) -> int:
        """The row of the data set at a position of the stream."""
        epoch, index = divmod(position, self.rows)
        spans, ends = self._spans(epoch)
        place = int(np.searchsorted(ends, index, side="right"))
        span = int(spans[place])
        count = int(self._counts[span])
        within = index - int(ends[place]) + count
        return int(self._begins[span]) + permute(within, count, derive_key("rows", self._key, epoch, span))

    def _spans(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The spans in this epoch's order and the index at which each ends."""
        if epoch not in self._orders:
            if len(self._orders) >= _EPOCHS_KEPT:
                del self._orders[min(self._orders)]
            bits = random_bits(derive_key("shards", self._key, epoch), len(self._counts))
            order = np.argsort(bits, kind="stable")
            self._orders[epoch] = order, np.cumsum(self._counts[order])
        return self._orders[epoch]
