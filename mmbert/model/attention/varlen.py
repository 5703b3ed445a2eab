"""torch's own variable-length attention (`torch.nn.attention.varlen`, torch 2.11+): FlashAttention 2 inside."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from mmbert.model.attention.kernels import KernelPlan
from mmbert.model.attention.segments import places


def varlen_plan(cu_seqlens: Tensor, max_seqlen: int, tokens: int, device: torch.device) -> KernelPlan:
    cu_seqlens = cu_seqlens.to(device)

    def attend(q: Tensor, k: Tensor, v: Tensor, reach: int | None) -> Tensor:
        window = (-1, -1) if reach is None else (reach, reach)
        out = varlen_attn(q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, window_size=window)
        assert isinstance(out, Tensor)  # noqa: S101 -- a pair only where more was asked for
        return out

    return KernelPlan(attend, places(cu_seqlens, tokens), max_seqlen)
