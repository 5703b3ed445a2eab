"""The flash-attn package, where it is installed (an optional extra: docs/performance.md tells how to build it)."""

from __future__ import annotations

import torch
from flash_attn import flash_attn_varlen_func
from torch import Tensor

from mmbert.model.attention.kernels import KernelPlan
from mmbert.model.attention.segments import places


def flash_plan(cu_seqlens: Tensor, max_seqlen: int, tokens: int, device: torch.device) -> KernelPlan:
    cu_seqlens = cu_seqlens.to(device)

    def attend(q: Tensor, k: Tensor, v: Tensor, reach: int | None) -> Tensor:
        window = (-1, -1) if reach is None else (reach, reach)
        out: Tensor = flash_attn_varlen_func(
            q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, window_size=window
        )
        return out

    return KernelPlan(attend, places(cu_seqlens, tokens), max_seqlen)
