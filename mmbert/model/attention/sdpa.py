"""The back end for CPU, and for any device without a variable-length kernel.

It groups segments of similar length, gathers each group into a small padded batch for torch's
scaled_dot_product_attention, and puts the results back. Which rows go where depends on the segments alone, so it is
worked out once a microbatch and shared by all layers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own spelling
from torch import Tensor

from mmbert.model.attention.rotary import pair_rotary, pair_rotary_rows, rotary_angles, turn_pairs
from mmbert.model.attention.segments import places

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


class SdpaPlan:
    """Reads the borders on the host: `cu_seqlens` may stay there whatever the model's device, and should."""

    def __init__(self, cu_seqlens: Tensor, max_seqlen: int, tokens: int, device: torch.device) -> None:
        self.max_seqlen = max_seqlen
        self.tokens = tokens
        self.device = device
        self._host = cu_seqlens.cpu()
        self._positions = places(self._host, tokens).positions.to(device)
        self._gathers: dict[int | None, Gather] = {}
        self._turns: dict[float, Tensor] = {}

    def attend(self, hidden: Tensor, weight: Tensor, heads: int, theta: float, window: int | None) -> Tensor:
        dim = len(weight) // (3 * heads)
        if theta not in self._turns:
            self._turns[theta] = pair_rotary(rotary_angles(self._positions, theta, dim))
        # The projection's output is ours alone, so it may be turned in place.
        rows = turn_pairs(F.linear(hidden, pair_rotary_rows(weight, heads)), self._turns[theta], heads)
        return _attend(rows, heads, dim, self._gather(window))

    def _gather(self, window: int | None) -> Gather:
        """The groups for full attention (None) or for a window of so many tokens, half on each side."""
        if window is not None and self.max_seqlen <= window // 2 + 1:
            window = None
        if window not in self._gathers:
            self._gathers[window] = _on(self.device, _gather(self._host, self.tokens, window))
        return self._gathers[window]


def _on(device: torch.device, gather: Gather) -> Gather:
    if device.type == "cpu":
        return gather
    groups = (g if g.mask is None else replace(g, mask=g.mask.to(device)) for g in gather.groups)
    query_rows = None if gather.query_rows is None else gather.query_rows.to(device)
    return Gather(tuple(groups), gather.key_rows.to(device), query_rows, gather.slots.to(device))


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
    batches = [_batch(entries, half) for entries in (*_similar(whole), *_similar(blocks))]
    query_rows = torch.cat([rows for _, rows, _, _ in batches])
    real = torch.cat([real for _, _, real, _ in batches]).nonzero().squeeze(1)
    slots = torch.empty(tokens, dtype=torch.long)
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


def _batch(entries: list[Entry], half: int | None) -> tuple[Group, Tensor, Tensor, Tensor]:
    """A group with its query rows, which of them are real, and its key rows.

    Places past an entry's end repeat its last token: as queries they see what that token sees (so no row of the mask is
    empty, which would make NaN), as keys they are masked.
    """
    query_start, queries, key_start, keys = torch.tensor(entries).T.unsqueeze(-1)
    query, key = (torch.arange(int(n.max())) for n in (queries, keys))
    query_rows = query_start + torch.minimum(query, queries - 1)
    key_rows = key_start + torch.minimum(key, keys - 1)
    mask = (key < keys)[:, None, None, :]
    if half is not None and int(keys.max()) > half + 1:
        near = (query_rows[:, :, None] - key_rows[:, None, :]).abs() <= half
        mask = mask & near[:, None]
    group = Group(len(entries), len(query), len(key), None if bool(mask.all()) else mask)
    return group, query_rows.flatten(), (query < queries).flatten(), key_rows.flatten()


def _attend(rows: Tensor, heads: int, dim: int, gather: Gather) -> Tensor:
    """`rows` [tokens, 3 x heads x dim]: queries and keys turned, values -> [tokens, heads x dim]."""
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
