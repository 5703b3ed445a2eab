"""Rows of shards: documents cut into pieces that fit a row, wrapped in bos and eos, and packed in their order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmbert.loader.packing import cut

Ids = NDArray[np.uint32]
Integers = NDArray[np.int64]


class Place(NamedTuple):
    """Where a piece stands in a unit's input: its part, the document in the part, the piece of the document."""

    part: int = 0
    document: int = 0
    piece: int = 0


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Consecutive whole documents of one language, without special tokens.

    `ids`: uint32 [tokens] of all documents, one after another; `lengths`: int64 [documents], in tokens; `text_bytes`:
    int64 [documents], of UTF-8. The first one is document `first` of part `part`.
    """

    language: str
    part: int
    first: int
    ids: Ids
    lengths: Integers
    text_bytes: Integers


@dataclass(frozen=True, slots=True)
class Pieces:
    """Consecutive pieces. `tokens`: uint32 [tokens]; `lengths`, `text_bytes` (a document's stand at its first piece):
    int64 [pieces]; `places`: int64 [pieces, 3], a `Place` each."""

    tokens: Ids
    lengths: Integers
    text_bytes: Integers
    places: Integers

    def __add__(self, after: Pieces) -> Pieces:
        return Pieces(
            np.concatenate([self.tokens, after.tokens]),
            np.concatenate([self.lengths, after.lengths]),
            np.concatenate([self.text_bytes, after.text_bytes]),
            np.concatenate([self.places, after.places]),
        )

    def since(self, piece: int) -> Pieces:
        begin = int(self.lengths[:piece].sum())
        return Pieces(self.tokens[begin:], self.lengths[piece:], self.text_bytes[piece:], self.places[piece:])


@dataclass(frozen=True, slots=True)
class Row:
    """`tokens`: uint32 [T]; `lengths`: uint32 [pieces]. `text_bytes` and `documents` are of those that begin here.
    `after` is the place of the next piece."""

    tokens: Ids
    lengths: Ids
    text_bytes: int
    documents: int
    after: Place


def wrapped_pieces(batch: TokenBatch, row_tokens: int, bos: int | None, eos: int | None) -> Pieces:
    """Cut the documents of a batch into pieces that fit a row, and put bos and eos around each (None: without).

    No token is lost and the order is kept; a document without tokens gives no piece.
    """
    front, back = int(bos is not None), int(eos is not None)
    longest = row_tokens - front - back
    begins, lengths = cut(batch.lengths, longest)
    ends = np.cumsum(batch.lengths)
    document = np.searchsorted(ends, begins, side="right")
    number = (begins - (ends - batch.lengths)[document]) // longest
    wrapped = lengths + (front + back)
    tokens = batch.ids
    if front or back:
        after = np.cumsum(wrapped)
        text = np.ones(int(after[-1]) if len(after) else 0, bool)
        tokens = np.empty(len(text), np.uint32)
        for token, places in ((bos, after - wrapped), (eos, after - 1)):
            if token is not None:
                text[places] = False
                tokens[places] = token
        tokens[text] = batch.ids
    places = np.stack([np.full_like(number, batch.part), batch.first + document, number], axis=1)
    return Pieces(tokens, wrapped, np.where(number == 0, batch.text_bytes[document], 0), places)


class RowPacker:
    """Packs consecutive pieces of one language into rows, as many as fit; how they come in batches does not matter."""

    def __init__(self, row_tokens: int) -> None:
        self._row_tokens = row_tokens
        self._waiting: Pieces | None = None

    def add(self, pieces: Pieces) -> Iterator[Row]:
        """The rows that are full: those after which the next piece is known not to fit."""
        pieces = pieces if self._waiting is None else self._waiting + pieces
        ends = np.cumsum(pieces.lengths)
        first = begin = 0
        while True:
            last = int(np.searchsorted(ends, begin + self._row_tokens, side="right"))
            if last == len(ends):
                break
            yield _row(pieces, first, last, begin, int(ends[last - 1]))
            first, begin = last, int(ends[last - 1])
        self._waiting = pieces.since(first) if first < len(ends) else None

    def flush(self) -> Iterator[Row]:
        """The last row, however full; the language ends here."""
        if self._waiting is not None:
            count = len(self._waiting.lengths)
            yield _row(self._waiting, 0, count, 0, len(self._waiting.tokens))
        self._waiting = None


def _row(pieces: Pieces, first: int, last: int, begin: int, end: int) -> Row:
    if last < len(pieces.lengths):
        after = Place(*pieces.places[last].tolist())
    else:
        part, document, _ = pieces.places[last - 1].tolist()
        after = Place(part, document + 1)
    return Row(
        tokens=pieces.tokens[begin:end],
        lengths=pieces.lengths[first:last].astype(np.uint32),
        text_bytes=int(pieces.text_bytes[first:last].sum()),
        documents=int((pieces.places[first:last, 2] == 0).sum()),
        after=after,
    )
