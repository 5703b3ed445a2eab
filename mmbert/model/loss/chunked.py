"""A chunk of rows at a time: its logits in library matrix products, then their gradient written over them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmbert.model.loss.rows import IGNORED

# Logits alive at once. A GPU's matrix products want thousands of rows; 4,096 rows x 256,000 words in bf16 take 2.1 GB.
# On a CPU this path serves bf16 only.
_CHUNK_ROWS = {"cuda": 4096}
_CHUNK_ROWS_ELSEWHERE = 256

# Whether a product of half-precision factors can be added to fp32 on a GPU; earlier releases refuse a sum in fp32.
_ADDS_IN_FP32 = torch.__version__ >= "2.13"

# Logits without bias [rows, words], bias, targets [rows], and whether gradients are wanted -> the losses [rows] fp32.
# With gradients the logits are overwritten by those of the losses' sum.
SoftmaxGradient = Callable[[Tensor, Tensor, Tensor, bool], Tensor]


def softmax_gradient_(logits: Tensor, bias: Tensor, targets: Tensor, gradients: bool) -> Tensor:
    """In torch's own operations; holds a copy in fp32 of logits of another type."""
    counted = (targets != IGNORED)[:, None]
    answers = torch.where(counted, targets[:, None], 0)
    values = logits.float().add_(bias)
    losses = (values.logsumexp(dim=1, keepdim=True) - values.gather(1, answers)).mul_(counted).squeeze(1)
    if gradients:
        torch.softmax(values, dim=1, out=values)
        values.scatter_add_(1, answers, values.new_full(answers.shape, -1.0)).mul_(counted)
        logits.copy_(values)
    return losses


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    gradients: bool,
    softmax_gradient: SoftmaxGradient = softmax_gradient_,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None]:
    rows, words = len(hidden), len(weight)
    chunk = min(rows, _CHUNK_ROWS.get(hidden.device.type, _CHUNK_ROWS_ELSEWHERE))
    buffer = hidden.new_empty((chunk, words))
    losses = torch.empty(rows, dtype=torch.float32, device=hidden.device)
    grad_hidden = torch.empty_like(hidden) if gradients else None
    # The first chunk writes it, where there is one.
    new_weight = torch.empty_like if rows else torch.zeros_like
    grad_weight = new_weight(weight, dtype=torch.float32) if gradients else None
    grad_bias = torch.zeros_like(bias, dtype=torch.float32) if gradients else None
    for start in range(0, rows, max(1, chunk)):
        part = slice(start, start + chunk)
        some = hidden[part]
        logits = torch.mm(some, weight.T, out=buffer[: len(some)])
        losses[part] = softmax_gradient(logits, bias, targets[part], gradients)
        if grad_hidden is not None and grad_weight is not None and grad_bias is not None:
            torch.mm(logits, weight, out=grad_hidden[part])
            _product(grad_weight, logits.T, some, add=start > 0)
            grad_bias += logits.sum(dim=0, dtype=torch.float32)
    if grad_hidden is None or grad_weight is None or grad_bias is None:
        return losses, None
    return losses, (grad_hidden, grad_weight, grad_bias)


def _product(total: Tensor, left: Tensor, right: Tensor, add: bool) -> None:
    """total = left @ right, added to what it was with `add`; fp32 whatever the factors' type."""
    if left.dtype == torch.float32:
        total.addmm_(left, right, beta=1 if add else 0)
    elif left.is_cuda and not add:
        torch.mm(left, right, out_dtype=torch.float32, out=total)
    elif left.is_cuda and _ADDS_IN_FP32:
        # In place: a product by itself is one more matrix of the weight's size, written and read.
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    elif left.is_cuda:
        total.add_(torch.mm(left, right, out_dtype=torch.float32))
    elif add:
        total.add_(left @ right)
    else:
        total.copy_(left @ right)
