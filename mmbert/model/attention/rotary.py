"""Rotary positions, two ways that give the same scores.

Half against half in real numbers, as the original turns them: what a compiler fuses into its neighbours. Or neighbours
as complex numbers, in place: four times faster on a CPU. Angles, sines and cosines are fp32 either way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rotary_angles(positions: Tensor, theta: float, head_dim: int) -> Tensor:
    """Position x theta^(-2i / head_dim), fp32 [tokens, head_dim / 2]."""
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    return positions.float()[:, None] / theta**exponents


@torch.library.custom_op(
    "mmbert::half_rotary", mutates_args=(), schema="(Tensor positions, float theta, int head_dim) -> (Tensor, Tensor)"
)
def half_rotary(positions: Tensor, theta: float, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines for `turn_halves`, fp32 [tokens, 1, head_dim / 2].

    An operator of its own, because Inductor would otherwise work powers, cosines and sines out again in every layer,
    for each number of each head, rather than read them.
    """
    angles = rotary_angles(positions, theta, head_dim)
    return angles.cos()[:, None], angles.sin()[:, None]


@half_rotary.register_fake
def _half_rotary_shapes(positions: Tensor, theta: float, head_dim: int) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    shape = len(positions), 1, head_dim // 2
    return (
        positions.new_empty(shape, dtype=torch.float32),
        positions.new_empty(shape, dtype=torch.float32),
    )


def turn_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn number i with number i + head_dim / 2; `x` [tokens, heads, head_dim], in its own type, contiguous."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def pair_rotary(angles: Tensor) -> Tensor:
    """The turns for `turn_pairs` as unit complex numbers, complex64 [tokens, 1, 1, head_dim / 2]."""
    return torch.polar(torch.ones_like(angles), angles)[:, None, None]


def pair_rotary_rows(weight: Tensor, heads: int) -> Tensor:
    """Reorder the rows of a fused qkv weight so that the two numbers which rotary positions turn together are
    neighbours, as `turn_pairs` takes them.

    The original turns number i of a head with number i + head_dim / 2. Scores do not change when queries and keys are
    reordered alike.
    """
    width = weight.shape[1]
    by_half = weight.view(3, heads, 2, -1, width)
    return torch.cat([by_half[:2].transpose(2, 3).flatten(0, 3), by_half[2:].flatten(0, 3)])


def turn_pairs(qkv: Tensor, turns: Tensor, heads: int) -> Tensor:
    """Turn queries and keys of qkv [tokens, 3 x heads x head_dim], from a weight reordered by `pair_rotary_rows`, in
    place; the backward turns their gradients back."""
    turned: Tensor = _TurnPairs.apply(qkv, turns, heads)  # type: ignore[no-untyped-call]
    return turned


class _TurnPairs(torch.autograd.Function):
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
