"""Documents into rows of a batch: cutting, and choosing the pieces that fill a row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def cut(lengths: NDArray[np.int64], longest: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cut consecutive documents into pieces of at most `longest` tokens; no token is lost, moved or added.

    `lengths`: int64 [documents]. Returns begins and lengths of the pieces, int64 [pieces], in order. A document's bos
    and eos stay where they stand, so only its first piece begins with bos and only its last ends with eos.
    """
    lengths = lengths[lengths > 0]
    pieces = -(-lengths // longest)
    ends = np.cumsum(lengths)
    number = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    begins = np.repeat(ends - lengths, pieces) + number * longest
    return begins, np.minimum(np.repeat(ends, pieces) - begins, longest)


def choose(lengths: NDArray[np.int64], room: int) -> list[int]:
    """The pieces that fill a row of `room` tokens, as indices into `lengths`.

    `lengths`: int64 [pieces], in the order in which they wait, 0 for one that is gone. Pieces are taken in turn until
    one does not fit; the rest of the row goes to the longest piece that fits, again and again. The first in the queue
    is always taken, so a piece waits for at most as many rows as there were pieces before it.
    """
    taken_up_to = int(np.searchsorted(np.cumsum(lengths), room, side="right"))
    chosen = [int(i) for i in np.flatnonzero(lengths[:taken_up_to])]
    room -= int(lengths[:taken_up_to].sum())
    rest = lengths[taken_up_to:].copy()
    while room > 0 and len(rest):
        best = int(np.where(rest <= room, rest, 0).argmax())
        if not rest[best] or rest[best] > room:
            break
        chosen.append(taken_up_to + best)
        room -= int(rest[best])
        rest[best] = 0
    return chosen
