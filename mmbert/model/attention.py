"""Attention over packed segments: the tokens of all segments in one row, their borders in `cu_seqlens`.

The back end for CPU (and any device without a variable-length kernel) groups segments of similar length, gathers each
group into a small padded batch for torch's scaled_dot_product_attention, and puts the results back. Which rows go where
depends on the segments alone, so it is worked out once a microbatch (`AttentionPlan`) and shared by all layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own spelling
from torch import Tensor

# A group takes segments down to this share of its longest. Measured on segments of 45 tokens on average: narrower
# groups cost more calls than they save padding, wider ones the reverse.
_SHORTEST_IN_GROUP = 0.85
# Segments that differ by no more than this many tokens share a group whatever their ratio.
_SAME_LENGTH = 8


class Entry(NamedTuple):
    """A run of queries and the run of keys that it may look at, as places in the packed row."""

    query_start: int
    queries: int
    key_start: int
    keys: int


@dataclass(frozen=True)
class Group:
    """One padded batch of `rows` entries, `queries` x `keys` each. Without a mask every query sees every key."""

    rows: int
    queries: int
    keys: int
    mask: Tensor | None  # bool [rows, 1, 1 or queries, keys]


@dataclass(frozen=True)
class Gather:
    """The groups of one kind of layer and where their rows come from."""

    groups: tuple[Group, ...]
    key_rows: Tensor  # [sum of rows x keys], a token each
    query_rows: Tensor | None  # [sum of rows x queries]; None where they are the key rows
    slots: Tensor  # [tokens], the place of each token among the query rows


class AttentionPlan:
    """How to attend within the segments of one microbatch.

    `cu_seqlens` [segments + 1] int32 runs from 0 to the number of tokens; repeated ends (empty segments) are allowed.
    `max_seqlen` is at least the longest segment. `positions` [tokens] restart at 0 in each segment.
    """

    def __init__(self, cu_seqlens: Tensor, max_seqlen: int) -> None:
        self.cu_seqlens = cu_seqlens
        self.max_seqlen = max_seqlen
        self.tokens = int(cu_seqlens[-1])
        starts = cu_seqlens[:-1].long().repeat_interleave(cu_seqlens.diff(), output_size=self.tokens)
        self.positions = torch.arange(self.tokens, device=cu_seqlens.device) - starts
        self._gathers: dict[int | None, Gather] = {}

    def gather(self, window: int | None) -> Gather:
        """The groups for full attention (None) or for a window of so many tokens, half on each side."""
        if window is not None and self.max_seqlen <= window // 2 + 1:
            window = None
        if window not in self._gathers:
            self._gathers[window] = _gather(self.cu_seqlens, self.tokens, window)
        return self._gathers[window]


def _gather(cu_seqlens: Tensor, tokens: int, window: int | None) -> Gather:
    borders = cu_seqlens.tolist()
    whole: list[Entry] = []
    blocks: list[Entry] = []
    for start, end in pairwise(borders):
        if window is None or end - start <= 2 * window:
            whole.append(Entry(start, end - start, start, end - start))
        else:
            blocks += _blocks(start, end, window)
    half = window // 2 if window is not None else None
    device = cu_seqlens.device
    batches = [_batch(entries, half, device) for entries in (*_similar(whole), *_similar(blocks))]
    query_rows = torch.cat([rows for _, rows, _, _ in batches])
    real = torch.cat([real for _, _, real, _ in batches]).nonzero().squeeze(1)
    slots = torch.empty(tokens, dtype=torch.long, device=device)
    slots[query_rows[real]] = real
    return Gather(
        groups=tuple(group for group, _, _, _ in batches),
        key_rows=torch.cat([rows for _, _, _, rows in batches]),
        query_rows=query_rows if blocks else None,
        slots=slots,
    )


def _blocks(start: int, end: int, window: int) -> list[Entry]:
    """A long segment as runs of `window` queries, each with the keys within half a window of it."""
    half = window // 2
    found = []
    for query in range(start, end, window):
        last = min(query + window, end)
        first_key, last_key = max(start, query - half), min(end, last + half)
        found.append(Entry(query, last - query, first_key, last_key - first_key))
    return found


def _similar(entries: list[Entry]) -> list[list[Entry]]:
    """Entries in groups of similar length, longest first; equal lengths keep their order."""
    groups: list[list[Entry]] = []
    for entry in sorted((e for e in entries if e.keys), key=lambda e: -e.keys):
        shortest = min(groups[-1][0].keys * _SHORTEST_IN_GROUP, groups[-1][0].keys - _SAME_LENGTH) if groups else 0
        if groups and entry.keys >= shortest:
            groups[-1].append(entry)
        else:
            groups.append([entry])
    return groups


def _batch(entries: list[Entry], half: int | None, device: torch.device) -> tuple[Group, Tensor, Tensor, Tensor]:
    """A group with its query rows, which of them are real, and its key rows.

    Places past an entry's end repeat its last token: as queries they see what that token sees (so no row of the mask is
    empty, which would make NaN), as keys they are masked.
    """
    query_start, queries, key_start, keys = torch.tensor(entries, device=device).T.unsqueeze(-1)
    query, key = (torch.arange(int(n.max()), device=device) for n in (queries, keys))
    query_rows = query_start + torch.minimum(query, queries - 1)
    key_rows = key_start + torch.minimum(key, keys - 1)
    mask = (key < keys)[:, None, None, :]
    if half is not None and int(keys.max()) > half + 1:
        near = (query_rows[:, :, None] - key_rows[:, None, :]).abs() <= half
        mask = mask & near[:, None]
    group = Group(len(entries), len(query), len(key), None if bool(mask.all()) else mask)
    return group, query_rows.flatten(), (query < queries).flatten(), key_rows.flatten()


def rotary_turns(positions: Tensor, theta: float, head_dim: int) -> Tensor:
    """Turns by position x theta^(-2i / head_dim) as unit complex numbers, complex64 [tokens, 1, 1, head_dim / 2]."""
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions.float()[:, None] / theta**exponents
    return torch.polar(torch.ones_like(angles), angles)[:, None, None]


def pair_rotary_rows(weight: Tensor, heads: int) -> Tensor:
    """Reorder the rows of a fused qkv weight so that the two numbers which rotary positions turn together are
    neighbours.

    The original turns number i of a head with number i + head_dim / 2. Scores do not change when queries and keys are
    reordered alike, and neighbours turn in one pass as complex numbers, four times faster on a CPU than half by half.
    """
    width = weight.shape[1]
    by_half = weight.view(3, heads, 2, -1, width)
    return torch.cat([by_half[:2].transpose(2, 3).flatten(0, 3), by_half[2:].flatten(0, 3)])


class _Rotate(torch.autograd.Function):
    """Turn queries and keys of qkv [tokens, 3 x heads x head_dim] in place; the backward turns their gradients back."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, turns: Tensor, heads: int) -> Tensor:
        ctx.save_for_backward(turns)
        ctx.heads = heads
        ctx.mark_dirty(qkv)
        _turn(qkv, turns, heads)
        return qkv

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (turns,) = ctx.saved_tensors
        grad = grads[0].contiguous()
        _turn(grad, turns.conj(), ctx.heads)
        return grad, None, None


def _turn(qkv: Tensor, turns: Tensor, heads: int) -> None:
    pairs = qkv.view(len(qkv), 3, heads, -1, 2)[:, :2]
    if qkv.dtype == torch.float32:
        torch.view_as_complex(pairs).mul_(turns)
    else:
        pairs.copy_(torch.view_as_real(torch.view_as_complex(pairs.float()) * turns))


def packed_attention(qkv: Tensor, turns: Tensor, heads: int, plan: AttentionPlan, window: int | None) -> Tensor:
    """Softmax attention within each segment, with rotary positions.

    `qkv` [tokens, 3 x heads x head_dim], from a weight reordered by `pair_rotary_rows`, is overwritten; `turns` comes
    from `rotary_turns`; `window` is in tokens, half on each side, or None for full attention. Returns [tokens, heads x
    head_dim].
    """
    dim = qkv.shape[1] // (3 * heads)
    rows: Tensor = _Rotate.apply(qkv, turns, heads)  # type: ignore[no-untyped-call]
    gather = plan.gather(window)
    parts = torch.split(rows.index_select(0, gather.key_rows), [group.rows * group.keys for group in gather.groups])
    batches = [
        part.view(group.rows, group.keys, 3, heads, dim).unbind(2)
        for group, part in zip(gather.groups, parts, strict=True)
    ]
    if gather.query_rows is not None:
        queries = rows[:, : heads * dim].index_select(0, gather.query_rows)
        parts = torch.split(queries, [group.rows * group.queries for group in gather.groups])
        batches = [
            (part.view(group.rows, group.queries, heads, dim), k, v)
            for group, part, (_, k, v) in zip(gather.groups, parts, batches, strict=True)
        ]
    outputs = []
    for group, (q, k, v) in zip(gather.groups, batches, strict=True):
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), group.mask)
        outputs.append(out.transpose(1, 2).reshape(group.rows * group.queries, heads * dim))
    return torch.cat(outputs).index_select(0, gather.slots)
