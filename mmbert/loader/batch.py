"""A batch as the model takes it, and its parts as loader processes send them.

Processes send numpy arrays, not tensors: they travel through a pipe, so no shared memory segment can be left behind.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmbert.loader.state import LaneState, LoaderState
from mmbert.model.loss import IGNORED


@dataclass(frozen=True)
class Part:
    """Rows of one step from some lanes, masked, one after the other.

    tokens uint32 [T]; segment_lengths int64 [S]; masked int64 [M], positions within their rows; targets uint32 [M];
    masked_streams int32 [M], the stream of each; how many tokens, segments and masked tokens each row has, int64 [rows]
    each; stream_tokens int64 [streams]; the lanes' states after these rows.
    """

    tokens: NDArray[np.uint32]
    segment_lengths: NDArray[np.int64]
    masked: NDArray[np.int64]
    targets: NDArray[np.uint32]
    masked_streams: NDArray[np.int32]
    row_tokens: NDArray[np.int64]
    row_segments: NDArray[np.int64]
    row_masked: NDArray[np.int64]
    stream_tokens: NDArray[np.int64]
    states: dict[int, LaneState]


def merge_parts(parts: Sequence[Part]) -> Part:
    """The parts of one rank's step as one, rows in the order of the global batch.

    Part w of n holds, for each round of the rank's lanes, lanes w, w + n, ...
    """
    if len(parts) == 1:
        return parts[0]
    lanes = [len(p.states) for p in parts]
    # (round, lane, place in the concatenation) of every row.
    places = np.cumsum([0, *(len(p.row_tokens) for p in parts)])
    keys = []
    for w, part in enumerate(parts):
        number = np.arange(len(part.row_tokens))
        keys.append(np.stack([number // lanes[w], number % lanes[w] * len(parts) + w, number + places[w]]))
    rounds, lane, place = np.concatenate(keys, axis=1)
    order = place[np.lexsort((lane, rounds))]

    def joined(values: str, counts: str | None) -> NDArray[np.int64]:
        whole = np.concatenate([getattr(p, values) for p in parts])
        if counts is None:
            return np.asarray(whole[order])
        ends = np.cumsum(np.concatenate([getattr(p, counts) for p in parts]))
        pieces = np.split(whole, ends[:-1])
        return np.concatenate([pieces[i] for i in order])

    return Part(
        tokens=joined("tokens", "row_tokens").astype(np.uint32, copy=False),
        segment_lengths=joined("segment_lengths", "row_segments"),
        masked=joined("masked", "row_masked"),
        targets=joined("targets", "row_masked").astype(np.uint32, copy=False),
        masked_streams=joined("masked_streams", "row_masked").astype(np.int32, copy=False),
        row_tokens=joined("row_tokens", None),
        row_segments=joined("row_segments", None),
        row_masked=joined("row_masked", None),
        stream_tokens=np.sum([p.stream_tokens for p in parts], axis=0),
        states={lane: state for p in parts for lane, state in p.states.items()},
    )


_TENSORS = ("input_ids", "cu_seqlens", "masked_indices", "targets", "masked_streams")


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch, or a microbatch of it. T tokens in S segments, M of them masked; no padding,
    unless `fixed_shape` made it.

    input_ids: int64 [T], the rows one after the other, real tokens only.
    cu_seqlens: int32 [S + 1], where each segment begins, and T: a segment attends to itself only.
    max_seqlen: length of the longest segment.
    masked_indices: int64 [M], positions in input_ids, rising. targets: int64 [M], the tokens that stood there.
    masked_streams: int32 [M], the stream that each masked token came from.
    rows, tokens: how many. padded_tokens: what a padded batch of these rows would hold besides, in tokens.
    row_begins: int64 numpy [rows + 1, 3], the first token, segment and masked token of each row, and the totals.
    row_longest: int64 numpy [rows], the longest segment of each row.
    stream_tokens: int64 numpy [streams], tokens of each stream in the whole batch (of a microbatch: None).
    state: the lanes of this rank after the whole batch (of a microbatch: None).
    """

    input_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: int
    masked_indices: torch.Tensor
    targets: torch.Tensor
    masked_streams: torch.Tensor
    rows: int
    tokens: int
    padded_tokens: int
    row_begins: NDArray[np.int64]
    row_longest: NDArray[np.int64]
    stream_tokens: NDArray[np.int64] | None
    state: LoaderState | None

    @property
    def masked(self) -> int:
        """How many masked tokens; rows that only fill up a constant shape are not among them."""
        return int(self.row_begins[-1, 2])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch with its tensors on a device."""
        moved = {name: getattr(self, name).to(device, non_blocking=non_blocking) for name in _TENSORS}
        return dataclasses.replace(self, **moved)

    def pin_memory(self) -> Batch:
        """The same batch with its tensors in page-locked memory, for copies that do not block."""
        moved = {name: getattr(self, name).pin_memory() for name in _TENSORS}
        return dataclasses.replace(self, **moved)


def make_batch(part: Part, max_seq_len: int, fingerprint: str) -> Batch:
    """A batch of all rows of a part; max_seq_len is the length that a padded row would have."""
    counts = np.stack([part.row_tokens, part.row_segments, part.row_masked], axis=1)
    row_begins = np.concatenate([np.zeros((1, 3), np.int64), np.cumsum(counts, axis=0)])
    cu_seqlens = np.concatenate([[0], np.cumsum(part.segment_lengths)]).astype(np.int32)
    row_longest = np.maximum.reduceat(part.segment_lengths, row_begins[:-1, 1])
    masked = part.masked + np.repeat(row_begins[:-1, 0], part.row_masked)
    rows, tokens = len(part.row_tokens), len(part.tokens)
    return Batch(
        input_ids=torch.from_numpy(part.tokens.astype(np.int64)),
        cu_seqlens=torch.from_numpy(cu_seqlens),
        max_seqlen=int(row_longest.max()),
        masked_indices=torch.from_numpy(masked),
        targets=torch.from_numpy(part.targets.astype(np.int64)),
        masked_streams=torch.from_numpy(part.masked_streams),
        rows=rows,
        tokens=tokens,
        padded_tokens=rows * max_seq_len - tokens,
        row_begins=row_begins,
        row_longest=row_longest,
        stream_tokens=part.stream_tokens,
        state=LoaderState(fingerprint, part.states),
    )


def split_microbatches(batch: Batch, rows_per_microbatch: int) -> list[Batch]:
    """Microbatches of whole rows, the last one shorter where they do not divide; the tokens are not copied."""
    if rows_per_microbatch < 1:
        raise ValueError(f"rows_per_microbatch must be at least 1, not {rows_per_microbatch}")
    width = (batch.tokens + batch.padded_tokens) // batch.rows
    begins = range(0, batch.rows, rows_per_microbatch)
    return [_rows_of(batch, begin, min(begin + rows_per_microbatch, batch.rows), width) for begin in begins]


def _rows_of(batch: Batch, begin: int, end: int, width: int) -> Batch:
    (token, segment, masked), (token_end, segment_end, masked_end) = batch.row_begins[[begin, end]].tolist()
    return Batch(
        input_ids=batch.input_ids[token:token_end],
        cu_seqlens=batch.cu_seqlens[segment : segment_end + 1] - token,
        max_seqlen=int(batch.row_longest[begin:end].max()),
        masked_indices=batch.masked_indices[masked:masked_end] - token,
        targets=batch.targets[masked:masked_end],
        masked_streams=batch.masked_streams[masked:masked_end],
        rows=end - begin,
        tokens=token_end - token,
        padded_tokens=(end - begin) * width - (token_end - token),
        row_begins=batch.row_begins[begin : end + 1] - batch.row_begins[begin],
        row_longest=batch.row_longest[begin:end],
        stream_tokens=None,
        state=None,
    )


@dataclass(frozen=True)
class BatchShape:
    """A constant shape for microbatches: how many tokens, masked tokens and segments, padding included.

    `max_seq_len` is the longest that a segment can be, and padding is cut to it.
    """

    tokens: int
    masked: int
    segments: int
    max_seq_len: int
    pad_token_id: int


def microbatch_shape(rows: int, max_seq_len: int, mask_probability: float, pad_token_id: int) -> BatchShape:
    """The shape that microbatches of so many rows nearly always fit, unless their documents are short.

    Masked tokens are a binomial draw: its mean and six standard deviations, one microbatch in a billion has more.
    Segments: room for four a row and one more every 1,024 tokens, and no more, because a GPU's kernels start blocks for
    empty ones too. Documents of some 200 tokens and less need more: `ShapeFiller` grows.
    """
    tokens = rows * max_seq_len
    deviation = math.sqrt(tokens * mask_probability * (1 - mask_probability))
    masked = math.ceil((tokens * mask_probability + 6 * deviation) / 128) * 128
    return BatchShape(tokens, masked, 4 * rows + math.ceil(tokens / 1024), max_seq_len, pad_token_id)


def fixed_shape(batch: Batch, shape: BatchShape) -> Batch:
    """The batch filled up to a constant shape, so that what is compiled for one fits all.

    Padding tokens follow the real ones, in segments of their own no longer than max_seq_len, and the last border is
    repeated: segments of no tokens. Surplus masked rows point at token 0 and have the target IGNORED. `tokens` and
    `masked` still count real ones; `padded_tokens` are those added. What does not fit doubles its share of the shape
    until it does; nothing is ever left out.
    """
    tokens = _capacity(len(batch.input_ids), shape.tokens, "tokens")
    masked = _capacity(len(batch.targets), shape.masked, "masked tokens")
    padding = range(batch.tokens + shape.max_seq_len, tokens + shape.max_seq_len, shape.max_seq_len)
    borders = torch.tensor([min(end, tokens) for end in padding], dtype=torch.int32)
    cu_seqlens = torch.cat([batch.cu_seqlens, borders])
    segments = _capacity(len(cu_seqlens) - 1, shape.segments, "segments")
    return dataclasses.replace(
        batch,
        input_ids=_filled(batch.input_ids, tokens, shape.pad_token_id),
        cu_seqlens=_filled(cu_seqlens, segments + 1, tokens),
        max_seqlen=shape.max_seq_len,
        masked_indices=_filled(batch.masked_indices, masked, 0),
        targets=_filled(batch.targets, masked, IGNORED),
        masked_streams=_filled(batch.masked_streams, masked, 0),
        padded_tokens=tokens - batch.tokens,
    )


class ShapeFiller:
    """Fills microbatches up to one shape, which grows where one does not fit and never shrinks.

    So a run has few shapes whatever its documents' lengths: each share of the shape can double only so often.
    """

    def __init__(self, shape: BatchShape) -> None:
        self.shape = shape

    def __call__(self, batch: Batch) -> Batch:
        """`fixed_shape` of the batch, in the shape so far."""
        filled = fixed_shape(batch, self.shape)
        self.shape = dataclasses.replace(
            self.shape,
            tokens=len(filled.input_ids),
            masked=len(filled.targets),
            segments=len(filled.cu_seqlens) - 1,
        )
        return filled


def _filled(values: Tensor, length: int, filler: int) -> Tensor:
    return torch.cat([values, values.new_full((length - len(values),), filler)])


def _capacity(needed: int, capacity: int, what: str) -> int:
    if needed <= capacity:
        return capacity
    grown: int = capacity * 2 ** math.ceil(math.log2(needed / capacity))
    # Python shows the same warning from the same line once.
    warnings.warn(
        f"a microbatch has more than {capacity:,} {what}; from now on there is room for {grown:,}, and the model is "
        "compiled once more",
        stacklevel=3,
    )
    return grown
