"""FlexAttention with block masks worked out from the segments' borders, once a microbatch for each kind of layer.

Segments are runs, so the keys that a block of queries may see are a run of blocks too, and the mask's tables are
arithmetic on a few numbers a block: torch's `create_block_mask` would look at every pair of tokens instead.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from mmbert.model.attention.kernels import KernelPlan
from mmbert.model.attention.segments import Places, places

BLOCK = 128


def flex_plan(cu_seqlens: Tensor, max_seqlen: int, tokens: int, device: torch.device) -> KernelPlan:
    cu_seqlens = cu_seqlens.to(device)
    where = places(cu_seqlens, tokens)
    masks: dict[int | None, BlockMask] = {}

    def attend(q: Tensor, k: Tensor, v: Tensor, reach: int | None) -> Tensor:
        if reach not in masks:
            masks[reach] = block_mask(cu_seqlens, where, reach)
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
        attention = flex_attention if torch.compiler.is_compiling() or not q.is_cuda else _compiled()
        out: Tensor = attention(q, k, v, block_mask=masks[reach])
        return out.squeeze(0).transpose(0, 1)

    return KernelPlan(attend, where, max_seqlen)


@cache
def _compiled() -> Any:
    """Outside of a compiled model the function is compiled by itself, for any number of tokens: uncompiled it holds
    every score."""
    return torch.compile(flex_attention, dynamic=True)


def block_mask(cu_seqlens: Tensor, where: Places, reach: int | None) -> BlockMask:
    """Which blocks of keys each block of queries sees, within segments and no further than `reach` on each side.

    With a reach no block counts as whole: in a window narrower than a block, none is.
    """
    tokens = len(where.segments)
    blocks = -(-tokens // BLOCK)
    numbers = torch.arange(blocks, device=cu_seqlens.device, dtype=torch.int32)
    first = numbers * BLOCK
    last = (first + BLOCK - 1).clamp(max=tokens - 1)
    begin_segment, end_segment = (where.segments.index_select(0, place) for place in (first, last))
    begin = cu_seqlens.index_select(0, begin_segment)
    end = cu_seqlens.index_select(0, end_segment + 1)
    if reach is None:
        # Blocks of keys wholly inside the one segment of a whole block of queries need no mask.
        alone = (begin_segment == end_segment) & (first + BLOCK <= tokens)
        full_first = (begin + BLOCK - 1) // BLOCK
        full = torch.where(alone, (end // BLOCK - full_first).clamp(min=0), 0)
    else:
        begin, end = torch.maximum(begin, first - reach), torch.minimum(end, last + reach + 1)
        full_first, full = numbers, torch.zeros_like(numbers)
    low, high = begin // BLOCK, (end - 1) // BLOCK
    before = torch.where(full > 0, full_first - low, high - low + 1)
    after = torch.where(full > 0, high - (full_first + full - 1), 0)
    # Entries past a block's count are never read, but must be blocks that exist.
    skipped = torch.where(numbers < before[:, None], low[:, None], (full_first + full - before)[:, None])
    partial_tables = _tables(before + after, numbers + skipped, blocks)
    full_tables = _tables(full, full_first[:, None] + numbers, blocks)

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:  # noqa: ARG001 -- torch's signature
        same = where.segments[query] == where.segments[key]
        return same if reach is None else same & ((query - key).abs() <= reach)

    # Who sees whom is symmetric, so the tables by keys, which the backward takes, are the tables by queries.
    return BlockMask(
        seq_lengths=(tokens, tokens),
        kv_num_blocks=partial_tables[0],
        kv_indices=partial_tables[1],
        full_kv_num_blocks=full_tables[0],
        full_kv_indices=full_tables[1],
        q_num_blocks=partial_tables[0],
        q_indices=partial_tables[1],
        full_q_num_blocks=full_tables[0],
        full_q_indices=full_tables[1],
        BLOCK_SIZE=(BLOCK, BLOCK),
        mask_mod=seen,
    )


def _tables(counts: Tensor, indices: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
    return counts.int()[None, None], indices.clamp(0, blocks - 1).int().contiguous()[None, None]
