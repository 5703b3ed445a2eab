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
    ends = lengths.cumsum()
    if lengths.max(initial=0) <= longest:
        return ends - lengths, lengths
    pieces = (lengths + (longest - 1)) // longest
    # A piece begins `longest` after the one before it, or where its document does.
    begins = (ends - lengths - longest * (pieces.cumsum() - pieces)).repeat(pieces)
    begins += longest * np.arange(len(begins))
    return begins, np.minimum(ends.repeat(pieces) - begins, longest)


def choose(lengths: NDArray[np.int64], room: int) -> NDArray[np.int64]:
    """The pieces that fill a row of `room` tokens, as indices into `lengths`.

    `lengths`: int64 [pieces], all above 0, in the order in which the pieces wait.

    Pieces are taken in turn until one does not fit; the rest of the row goes to the longest piece that fits, again and
    again. The first in the queue is always taken, so a piece waits for at most as many rows as there were pieces before
    it.
    """
    ends = lengths.cumsum()
    in_turn = int(ends.searchsorted(room, side="right"))
    chosen = list(range(in_turn))
    if in_turn:
        room -= int(ends[in_turn - 1])
    rest = lengths[in_turn:]
    places = (rest <= room).nonzero()[0]
    fitting = rest[places]
    while len(fitting):
        best = int(fitting.argmax())
        chosen.append(in_turn + int(places[best]))
        room -= int(fitting[best])
        fitting[best] = room + 1
        left = fitting <= room
        fitting, places = fitting[left], places[left]
    return np.array(chosen, np.int64)
