"""Cross-entropy through a linear decoder, without ever holding all logits."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

# Logits alive at once. They should stay in a CPU's cache: with 8,192 words, 2 to 4 MiB (64 to 128 rows) was up to twice
# as fast as 8 MiB and more.
_CHUNK_BYTES = 4 * 2**20
_FEWEST_ROWS = 32


# A target that is no word: its row counts nothing. Rows that only fill up a constant shape have it.
IGNORED = -100


class MaskedLoss(NamedTuple):
    """`total`: a scalar in fp32, the sum of `rows`. `rows` [rows] fp32: -ln p of each target, 0 where it is IGNORED;
    gradients flow through `total` alone."""

    total: Tensor
    rows: Tensor


def linear_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> MaskedLoss:
    """-ln softmax(hidden @ weight.T + bias)[target] of every row, and their sum.

    `hidden` [rows, width], `weight` [words, width], `bias` [words], `targets` [rows] int64, IGNORED where a row counts
    nothing. The forward pass works out the gradients too, a chunk of rows at a time, so memory does not grow with rows
    and no logit is computed twice. Under autocast the matrix products run in its type, the rest in fp32.
    """
    return MaskedLoss(*_LinearCrossEntropy.apply(hidden, weight, bias, targets))  # type: ignore[no-untyped-call]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        with torch.autocast(device, enabled=False):
            if any(ctx.needs_input_grad):
                losses, grads = _loss_and_gradients(hidden.to(dtype), weight.to(dtype), bias, targets)
                ctx.save_for_backward(*grads)
                ctx.dtypes = hidden.dtype, weight.dtype, bias.dtype
            else:
                losses = _loss(hidden.to(dtype), weight.to(dtype), bias, targets)
            ctx.mark_non_differentiable(losses)
            return losses.sum(), losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scaled = ((grad * grads[0]).to(dtype) for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True))
        return (*scaled, None)


def _chunk_rows(rows: int, words: int) -> int:
    return max(1, min(rows, max(_FEWEST_ROWS, _CHUNK_BYTES // (4 * words))))


def _probabilities(
    hidden: Tensor, weight: Tensor, bias: Tensor, answers: Tensor, buffer: Tensor
) -> tuple[Tensor, Tensor]:
    """-ln p of a chunk's answers [rows, 1], and the softmax [rows, words], written over the logits.

    logsumexp comes from the largest logit and its probability (1 / the softmax's denominator), which cannot underflow.
    """
    logits = torch.mm(hidden, weight.T, out=buffer[: len(hidden)]).float().add_(bias)
    answered, peak = logits.gather(1, answers), logits.amax(dim=1, keepdim=True)
    probabilities = torch.softmax(logits, dim=1, out=logits)
    return peak - probabilities.amax(dim=1, keepdim=True).log() - answered, probabilities


def _loss(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    rows, words = len(targets), len(weight)
    chunk = _chunk_rows(rows, words)
    buffer = hidden.new_empty((chunk, words))
    losses = torch.empty(rows, dtype=torch.float32, device=hidden.device)
    counted = (targets != IGNORED)[:, None]
    answers = torch.where(counted, targets[:, None], 0)
    for start in range(0, rows, chunk):
        part = slice(start, start + chunk)
        chunk_losses, _ = _probabilities(hidden[part], weight, bias, answers[part], buffer)
        losses[part] = (chunk_losses * counted[part]).squeeze(1)
    return losses


def _loss_and_gradients(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    (rows, width), words = hidden.shape, len(weight)
    chunk = _chunk_rows(rows, words)
    buffer = hidden.new_empty((chunk, words))
    losses = torch.empty(rows, dtype=torch.float32, device=hidden.device)
    counted = (targets != IGNORED)[:, None]
    every_answer = torch.where(counted, targets[:, None], 0)
    grad_hidden = torch.empty_like(hidden)
    # Transposed, because this product with few rows is a quarter faster that way.
    grad_weight = torch.zeros((width, words), dtype=torch.float32, device=hidden.device)
    grad_bias = torch.zeros(words, dtype=torch.float32, device=hidden.device)
    for start in range(0, rows, chunk):
        part = slice(start, start + chunk)
        some, answers = hidden[part], every_answer[part]
        chunk_losses, grad_logits = _probabilities(some, weight, bias, answers, buffer)
        losses[part] = (chunk_losses * counted[part]).squeeze(1)
        grad_logits.scatter_add_(1, answers, grad_logits.new_full(answers.shape, -1.0)).mul_(counted[part])
        grad_bias += grad_logits.sum(dim=0)
        grad_logits = grad_logits.to(hidden.dtype)
        torch.mm(grad_logits, weight, out=grad_hidden[part])
        if hidden.dtype == torch.float32:
            grad_weight.addmm_(some.T, grad_logits)
        else:
            grad_weight += some.T @ grad_logits
    return losses, (grad_hidden, grad_weight.T, grad_bias)
