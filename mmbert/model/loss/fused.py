"""One Triton kernel between the matrix products: bias, softmax, loss, and the logits' gradient written over them."""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from mmbert.model.loss.rows import IGNORED

_BLOCK = 4096
_WARPS = 8


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]
    logits, bias, targets, losses, words, stride, ignored: tl.constexpr, gradients: tl.constexpr, block: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    target = tl.load(targets + row)
    counted = target != ignored
    # A target that is no word gives NaN; a read outside the logits could give anything.
    word = (target >= 0) & (target < words)
    answer = tl.where(word, target, 0)
    # Read before the gradient takes its place.
    answered = tl.load(logits + answer).to(tl.float32) + tl.load(bias + answer).to(tl.float32)
    # A softmax for each lane over all blocks, and one for the lanes: a reduction a row instead of two a block.
    peaks = tl.full((block,), float("-inf"), tl.float32)
    totals = tl.zeros((block,), tl.float32)
    for first in range(0, words, block):
        columns = first + tl.arange(0, block)
        inside = columns < words
        values = tl.load(logits + columns, mask=inside, other=float("-inf")).to(tl.float32)
        values += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
        # One exponential does for either order; where a lane has no value yet, none may become NaN.
        shrink = tl.exp(-tl.abs(tl.where(values > float("-inf"), values - peaks, float("-inf"))))
        totals = tl.where(values > peaks, totals * shrink + 1.0, totals + shrink)
        peaks = tl.maximum(peaks, values)
    peak = tl.max(peaks, 0)
    total = tl.sum(totals * tl.exp(peaks - peak), 0)
    log_total = peak + tl.log(total)
    tl.store(losses + row, tl.where(counted, tl.where(word, log_total - answered, float("nan")), 0.0))
    if gradients:
        for first in range(0, words, block):
            columns = first + tl.arange(0, block)
            inside = columns < words
            values = tl.load(logits + columns, mask=inside, other=float("-inf")).to(tl.float32)
            values += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
            gradient = tl.exp(values - log_total) - tl.where(columns == answer, 1.0, 0.0)
            gradient = tl.where(counted, gradient, 0.0)
            tl.store(logits + columns, gradient.to(logits.dtype.element_ty), mask=inside)


def softmax_gradient_(logits: Tensor, bias: Tensor, targets: Tensor, gradients: bool) -> Tensor:
    """`chunked.SoftmaxGradient`, in one read of the logits for the loss and one read and write for their gradient."""
    losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    if len(logits):
        _kernel[(len(logits),)](
            logits,
            bias,
            targets.contiguous(),
            losses,
            logits.shape[1],
            logits.stride(0),
            ignored=IGNORED,
            gradients=gradients,
            block=_BLOCK,
            num_warps=_WARPS,
        )
    return losses
