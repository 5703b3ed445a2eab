"""Attention written plainly, one whole mask over the row: what the back ends are held to, never used in training."""

from __future__ import annotations

import torch
from torch import Tensor

from mmbert.model.attention.kernels import KernelPlan
from mmbert.model.attention.segments import places


def reference_plan(cu_seqlens: Tensor, max_seqlen: int, tokens: int, device: torch.device) -> KernelPlan:
    where = places(cu_seqlens.to(device), tokens)

    def attend(q: Tensor, k: Tensor, v: Tensor, reach: int | None) -> Tensor:
        seen = where.segments[:, None] == where.segments
        if reach is not None:
            seen = seen & ((where.positions[:, None] - where.positions).abs() <= reach)
        scores = torch.einsum("qhd,khd->hqk", q.float(), k.float()) / q.shape[-1] ** 0.5
        weights = scores.masked_fill(~seen, -torch.inf).softmax(dim=-1)
        return torch.einsum("hqk,khd->qhd", weights, v.float()).to(v.dtype)

    return KernelPlan(attend, where, max_seqlen)
