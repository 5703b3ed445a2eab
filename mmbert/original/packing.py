"""The original's sequence packer: a whole microbatch is one row, and documents go to the fullest row that they fit."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class PackerSettings:
    """Sizes in sequences. A row holds `microbatch_size` x `max_seq_len` tokens, a batch `batch_size` /
    `microbatch_size` rows; the buffer is filled from source batches of `source_batch_size` documents while a whole one
    fits in.

    `rows_at`: rows of the next batch, by the real tokens of the batches before it (the batch-size warm-up).
    """

    batch_size: int
    microbatch_size: int
    max_seq_len: int
    buffer_size: int
    source_batch_size: int
    pad_token_id: int
    rows_at: Callable[[int], int] | None = None

    def __post_init__(self) -> None:
        if self.batch_size % self.microbatch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of microbatch_size {self.microbatch_size}"
            )


@dataclass(frozen=True)
class PackedBatch:
    """tokens: int64 [rows, width], padded at the end of each row. cu_seqlens: int32 [segments + 1] of each row, where
    its documents begin, and the width; trailing padding is a segment of its own."""

    tokens: Ids
    cu_seqlens: list[NDArray[np.int32]]

    @property
    def segments(self) -> list[int]:
        """Of each row, the padding's included: what the original weighs a microbatch's loss by."""
        return [len(bounds) - 1 for bounds in self.cu_seqlens]


def pack(documents: Iterable[Ids], settings: PackerSettings) -> Iterator[PackedBatch]:
    """Batches of one pass over the documents, each int64 [length] with 0 < length <= max_seq_len.

    Documents come in their order. Each goes to the row with the least room that it fits in, the first among equals; one
    that fits nowhere waits until the batch is done, and those that waited then stand at the front, in reverse order. A
    batch is done when a buffer's worth of documents waits or the documents are at an end; the pass ends with the first
    batch that has an empty row, which is dropped with all that it holds (as in the original).
    """
    sources = _source_batches(documents, settings.source_batch_size)
    buffer: deque[Ids] = deque()
    taken_tokens = 0
    width = settings.microbatch_size * settings.max_seq_len
    while True:
        rows = settings.batch_size // settings.microbatch_size
        if settings.rows_at is not None:
            rows = settings.rows_at(taken_tokens)
        filled: list[list[Ids]] = [[] for _ in range(rows)]
        room = np.full(rows, width)
        waiting: list[Ids] = []
        while buffer or _fill(buffer, sources, settings, len(waiting)):
            document = buffer.popleft()
            row = _fullest(room, len(document))
            if row is None:
                waiting.append(document)
            else:
                filled[row].append(document)
                room[row] -= len(document)
        buffer.extendleft(waiting)
        if not all(filled):
            return
        batch = _batch(filled, width, settings.pad_token_id)
        taken_tokens += int((batch.tokens != settings.pad_token_id).sum())
        yield batch


def _source_batches(documents: Iterable[Ids], size: int) -> Iterator[list[Ids]]:
    batch: list[Ids] = []
    for document in documents:
        batch.append(document)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _fill(buffer: deque[Ids], sources: Iterator[list[Ids]], settings: PackerSettings, waiting: int) -> bool:
    """Fill an empty buffer with source batches while one fits beside the waiting documents. False where none came."""
    while waiting + len(buffer) + settings.source_batch_size <= settings.buffer_size:
        batch = next(sources, None)
        if batch is None:
            break
        buffer.extend(batch)
    return bool(buffer)


def _fullest(room: NDArray[np.int64], length: int) -> int | None:
    fitting = np.flatnonzero(room >= length)
    return int(fitting[room[fitting].argmin()]) if len(fitting) else None


def _batch(filled: list[list[Ids]], width: int, pad: int) -> PackedBatch:
    tokens = np.full((len(filled), width), pad, np.int64)
    bounds = []
    for row, documents in zip(tokens, filled, strict=True):
        ends = np.cumsum([0, *(len(d) for d in documents)])
        row[: ends[-1]] = np.concatenate(documents)
        if ends[-1] < width:
            ends = np.append(ends, width)
        bounds.append(ends.astype(np.int32))
    return PackedBatch(tokens, bounds)
