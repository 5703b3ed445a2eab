"""Cross-entropy through a linear decoder, without ever holding all logits.

`blocked` is for the CPU, `fused` for CUDA devices with Triton, `chunked` for anything else; `plain` is what they are
compared with. All give the same numbers within tolerance.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mmbert.model.loss import blocked, chunked, plain
from mmbert.model.loss.rows import IGNORED

__all__ = ["IGNORED", "MaskedLoss", "linear_cross_entropy"]


class MaskedLoss(NamedTuple):
    """`total`: a scalar in fp32, the sum of `rows`. `rows` [rows] fp32: -ln p of each target, 0 where it is IGNORED;
    gradients flow through `total` alone."""

    total: Tensor
    rows: Tensor


# hidden, weight (both of the type that matrix products run in), bias, targets, and whether gradients are wanted ->
# the losses [rows] fp32, and the gradients of their sum by hidden, weight and bias. The gradients' memory is the
# caller's.
Implementation = Callable[[Tensor, Tensor, Tensor, Tensor, bool], tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None]]


def _fused(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, gradients: bool
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None]:
    # Imported late: Triton is not everywhere.
    from mmbert.model.loss.fused import softmax_gradient_

    return chunked.linear_cross_entropy(hidden, weight, bias, targets, gradients, softmax_gradient_)


_IMPLEMENTATIONS: dict[str, Implementation] = {
    "blocked": blocked.linear_cross_entropy,
    "chunked": chunked.linear_cross_entropy,
    "fused": _fused,
}


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    implementation: Literal["auto", "blocked", "chunked", "fused", "plain"] = "auto",
) -> MaskedLoss:
    """-ln softmax(hidden @ weight.T + bias)[target] of every row, and their sum.

    `hidden` [rows, width], `weight` [words, width], `bias` [words], `targets` [rows] int64, IGNORED where a row counts
    nothing. The forward pass works out the gradients too, so that no logit is computed twice; the backward pass can
    run once. Under autocast the matrix products run in its type, the softmax and the sums of gradients in fp32.
    """
    if implementation == "plain":
        return MaskedLoss(*plain.linear_cross_entropy(hidden, weight, bias, targets))
    arguments = hidden, weight, bias, targets, implementation
    return MaskedLoss(*_LinearCrossEntropy.apply(*arguments))  # type: ignore[no-untyped-call]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, implementation: str
    ) -> tuple[Tensor, Tensor]:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        name = _choose(device, dtype) if implementation == "auto" else implementation
        with torch.autocast(device, enabled=False):
            losses, ctx.gradients = _IMPLEMENTATIONS[name](
                hidden.to(dtype), weight.to(dtype), bias, targets, any(ctx.needs_input_grad)
            )
            ctx.dtypes = hidden.dtype, weight.dtype, bias.dtype
            ctx.mark_non_differentiable(losses)
            return losses.sum(), losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("a second backward pass through the loss: its gradients were given away by the first")
        scaled = (gradient.mul_(grads[0]).to(dtype) for gradient, dtype in zip(gradients, ctx.dtypes, strict=True))
        return (*scaled, None, None)


def _choose(device: str, dtype: torch.dtype) -> str:
    if device == "cuda" and importlib.util.find_spec("triton"):
        return "fused"
    return "blocked" if device == "cpu" and dtype == torch.float32 else "chunked"
