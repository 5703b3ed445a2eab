"""One lane: draws rows from its streams, cuts and shuffles their documents, and packs them into rows of the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mmbert.loader.interleave import Interleaver, shares, slot
from mmbert.loader.order import StreamOrder
from mmbert.loader.packing import choose, cut
from mmbert.loader.randomness import derive_key, random_bits
from mmbert.loader.state import LaneState

ReadRow = Callable[[int, int], tuple[NDArray[np.uint32], NDArray[np.int64]]]
"""(stream, row of its data set) -> its tokens [T] and the lengths of its documents [documents], which add up to T."""


@dataclass(frozen=True)
class StreamRows:
    """A stream as the order of documents sees it: a run of rows of one data set, and its share of the tokens.

    `name` chooses its random numbers; `shard_begins` is int64 [shards + 1], the data set's first row of each shard and
    its number of rows.
    """

    name: str
    weight: float
    row_begin: int
    rows: int
    tokens: int
    shard_begins: NDArray[np.int64]


@dataclass(frozen=True)
class LaneSettings:
    """What fixes the order and the packing, besides the streams.

    `buffer_tokens`: a lane keeps at least this many tokens waiting, and a document comes up to this many tokens later
    than its turn, at random: so a batch mixes the languages of several rows, and the packer has pieces to choose from.
    """

    seed: int
    lanes: int
    max_seq_len: int
    buffer_tokens: int
    packing: Literal["packed", "unpacked"]


class Schedule:
    """The order of documents: what all lanes of a process share."""

    def __init__(self, streams: Sequence[StreamRows], settings: LaneSettings) -> None:
        self.settings = settings
        self.names = [s.name for s in streams]
        self.orders = [StreamOrder(s.name, settings.seed, s.row_begin, s.rows, s.shard_begins) for s in streams]
        row_tokens = [max(1, s.tokens // s.rows) for s in streams]
        self.shares = shares(self.names, [s.weight for s in streams], row_tokens)


@dataclass(frozen=True)
class PackedRow:
    """One row of the batch, without padding: its segments, uint32 [length] each, and their lengths and streams."""

    segments: list[NDArray[np.uint32]]
    lengths: NDArray[np.int64]
    streams: NDArray[np.int64]

    @property
    def tokens(self) -> NDArray[np.uint32]:
        """uint32 [T]."""
        return np.concatenate(self.segments)


@dataclass(frozen=True)
class _DrawnRow:
    stream: int
    position: int
    clock: int
    tokens: NDArray[np.uint32]
    begins: NDArray[np.int64]
    lengths: NDArray[np.int64]
    turns: NDArray[np.int64]

    @property
    def pieces(self) -> int:
        return len(self.lengths)


class Lane:
    """An endless sequence of packed rows, and the state that continues it."""

    def __init__(self, number: int, schedule: Schedule, read: ReadRow, state: LaneState | None = None) -> None:
        self._schedule, self._settings, self._read, self._number = schedule, schedule.settings, read, number
        streams = len(schedule.names)
        self._consumed = np.zeros(streams, np.int64) if state is None else state.consumed.copy()
        self._draws = np.zeros(streams, np.int64) if state is None else state.draws.copy()
        self.emitted = 0 if state is None else state.emitted
        self._clock = int(self._consumed.sum())
        seed, lanes = self._settings.seed, self._settings.lanes
        self._next_stream = Interleaver(schedule.shares, seed, number, lanes, self._consumed)
        self._rows: list[_DrawnRow] = []
        # One column a piece, sorted by turn: drawn row, number in it, first token, length, turn, stream.
        self._pieces = np.zeros((6, 0), np.int64)
        # The pieces that wait: those of `_front`, which the packer sees, and all from `_tail` on.
        self._front = np.zeros(0, np.int64)
        self._front_lengths = np.zeros(0, np.int64)
        self._tail = 0
        self._waiting_tokens = 0
        if state is not None:
            self._restore(state)

    def next_row(self) -> PackedRow:
        """The next row: at most max_seq_len tokens. Raises what reading a row raises."""
        self._refill()
        if self._settings.packing == "packed":
            chosen = choose(self._front_lengths, self._settings.max_seq_len)
        else:
            chosen = np.zeros(1, np.int64)
        owners, _, begins, lengths, _, streams = self._pieces.take(self._front[chosen], axis=1)
        left = np.ones(len(self._front), bool)
        left[chosen] = False
        self._front, self._front_lengths = self._front[left], self._front_lengths[left]
        self._advance()
        self._waiting_tokens -= int(lengths.sum())
        self.emitted += 1
        places = zip(owners.tolist(), begins.tolist(), lengths.tolist(), strict=True)
        segments = [self._rows[owner].tokens[begin : begin + length] for owner, begin, length in places]
        return PackedRow(segments, lengths, streams)

    def state(self) -> LaneState:
        """The same for every way to get here: uninterrupted, or resumed at any row."""
        owners, numbers = self._pieces[:2].take(self._waiting(), axis=1)
        counts = np.array([r.pieces for r in self._rows], np.int64)
        offsets = np.cumsum(counts) - counts
        waiting = np.zeros(int(counts.sum()), bool)
        waiting[offsets[owners] + numbers] = True
        open_ = np.zeros(len(self._rows), bool)
        open_[owners] = True
        rows = [(r.stream, r.position, r.clock) for r, keep in zip(self._rows, open_, strict=True) if keep]
        return LaneState(
            self._consumed.copy(),
            self._draws.copy(),
            np.array(rows, np.int64).reshape(-1, 3),
            np.packbits(waiting[np.repeat(open_, counts)]),
            self.emitted,
        )

    def _waiting(self) -> NDArray[np.int64]:
        return np.concatenate([self._front, np.arange(self._tail, self._pieces.shape[1])])

    def _advance(self) -> None:
        """Let the packer see as many pieces as a row has tokens: enough to fill it even with pieces of one token."""
        tail = min(self._tail + self._settings.max_seq_len - len(self._front), self._pieces.shape[1])
        if tail > self._tail:
            self._front = np.concatenate([self._front, np.arange(self._tail, tail)])
            self._front_lengths = np.concatenate([self._front_lengths, self._pieces[3, self._tail : tail]])
            self._tail = tail

    def _restore(self, state: LaneState) -> None:
        self._add([self._fetch(*(int(v) for v in line)) for line in state.open_rows])
        offsets = np.cumsum([0, *(r.pieces for r in self._rows)])
        waiting = np.unpackbits(state.waiting, count=int(offsets[-1])).astype(bool)
        owners, numbers = self._pieces[:2]
        self._set_pieces(self._pieces[:, waiting[offsets[owners] + numbers]])

    def _refill(self) -> None:
        """Draw rows until enough tokens wait."""
        drawn: list[_DrawnRow] = []
        waiting = self._waiting_tokens
        while waiting < self._settings.buffer_tokens or waiting == 0:
            drawn.append(self._draw())
            waiting += len(drawn[-1].tokens)
        if drawn:
            self._add(drawn)

    def _draw(self) -> _DrawnRow:
        stream = self._next_stream.next
        first = slot(self._schedule.names[stream], self._settings.seed, self._number, self._settings.lanes)
        row = self._fetch(stream, first + int(self._draws[stream]) * self._settings.lanes, self._clock)
        self._draws[stream] += 1
        self._consumed[stream] += len(row.tokens)
        self._clock += len(row.tokens)
        self._next_stream.advance(int(self._consumed[stream]))
        return row

    def _fetch(self, stream: int, position: int, clock: int) -> _DrawnRow:
        """Read a row and give each of its pieces its turn: when the row was drawn, plus a random wait."""
        schedule, window = self._schedule, self._settings.buffer_tokens
        tokens, documents = self._read(stream, schedule.orders[stream].row(position))
        begins, lengths = cut(documents, self._settings.max_seq_len)
        key = derive_key("shuffle", self._settings.seed, schedule.names[stream], position)
        waits = (random_bits(key, len(lengths)) >> np.uint64(32)) * np.uint64(window) >> np.uint64(32)
        return _DrawnRow(stream, position, clock, tokens, begins, lengths, clock + waits.astype(np.int64))

    def _add(self, drawn: list[_DrawnRow]) -> None:
        """Put the pieces of new rows among those that wait, and forget what is gone."""
        pieces = self._pieces.take(self._waiting(), axis=1)
        open_ = np.zeros(len(self._rows), bool)
        open_[pieces[0]] = True
        pieces[0] = (np.cumsum(open_) - 1)[pieces[0]]
        self._rows = [row for row, keep in zip(self._rows, open_.tolist(), strict=True) if keep]
        new = [_columns(len(self._rows) + i, r) for i, r in enumerate(drawn)]
        self._rows += drawn
        pieces = np.concatenate([pieces, *new], axis=1)
        # Stable: equal turns keep the order of drawing, here as after a resume.
        self._set_pieces(pieces.take(pieces[4].argsort(kind="stable"), axis=1))

    def _set_pieces(self, pieces: NDArray[np.int64]) -> None:
        self._pieces, self._tail = pieces, 0
        self._front = self._front_lengths = np.zeros(0, np.int64)
        self._advance()
        self._waiting_tokens = int(pieces[3].sum())


def _columns(owner: int, row: _DrawnRow) -> NDArray[np.int64]:
    columns = np.empty((6, row.pieces), np.int64)
    columns[0] = owner
    columns[1] = np.arange(row.pieces)
    columns[2], columns[3], columns[4] = row.begins, row.lengths, row.turns
    columns[5] = row.stream
    return columns
