"""For the CPU, in fp32: blocks of rows x words that stay in the cache while everything is done to them.

Softmax runs online over the blocks of a row, as in FlashAttention: what is kept of a block are its exponentials over
the highest logit so far. They are turned into probabilities by a factor a row, which goes to the small matrix of a
product rather than to the large one, and the target's -1 is added to the gradients and not to the logits. So logits
are written once and read once outside the cache.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from mmbert.model.loss.rows import IGNORED

# A block of 256 x 2,048 takes 2 MiB. docs/performance-cpu.md has the sizes tried. Wide models spend more on products
# than on what is done to a block in the cache, so half as many passes over the weight count for more.
_ROWS, _ROWS_WIDE, _WIDE = 256, 512, 256
_WORDS = 2048
# exp2 takes half the time of exp.
_LOG2_E = 1 / math.log(2)


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, gradients: bool
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None]:
    counted = (targets != IGNORED).nonzero().squeeze(1)
    if len(counted) == len(targets):
        return _all_rows(hidden, weight, bias, targets, gradients)
    losses, grads = _all_rows(hidden[counted], weight, bias, targets[counted], gradients)
    losses = losses.new_zeros(len(targets)).index_copy_(0, counted, losses)
    if grads is not None:
        grads = torch.zeros_like(hidden).index_copy_(0, counted, grads[0]), *grads[1:]
    return losses, grads


def _all_rows(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, gradients: bool
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None]:
    rows, words = len(hidden), len(weight)
    losses = hidden.new_empty(rows)
    if not rows:
        return losses, (torch.zeros_like(hidden), torch.zeros_like(weight), torch.zeros_like(bias))
    most_rows = _ROWS_WIDE if hidden.shape[1] >= _WIDE else _ROWS
    chunk, block = _even_size(rows, most_rows), _even_size(words, _WORDS)
    scaled_bias = bias * _LOG2_E
    weights, biases = torch.split(weight, block), torch.split(scaled_bias, block)
    space = _pages(len(weights) if gradients else 1, chunk * block)
    if gradients:
        grad_hidden, grad_weight, grad_bias = torch.zeros_like(hidden), _pages(*weight.shape), torch.empty_like(bias)
        weight_grads, bias_grads = torch.split(grad_weight, block), torch.split(grad_bias, block)
    for start in range(0, rows, chunk):
        part = slice(start, start + chunk)
        some, answers = hidden[part], targets[part]
        blocks = [
            space[number % len(space), : len(some) * len(words_of)].view(len(some), len(words_of))
            for number, words_of in enumerate(weights)
        ]
        scaled = some * _LOG2_E
        mixed = grad_hidden[part] if gradients else None
        answered, peaks, total = _exponentials(scaled, weights, biases, answers, blocks, mixed)
        log_total = total.log2()
        losses[part] = (peaks[-1] - answered).add_(log_total).div_(_LOG2_E).squeeze(1)
        if mixed is None:
            continue
        mixed.div_(total).sub_(weight[answers])
        log_total += peaks[-1]
        first = not start
        for exponentials, peak, weight_grad, bias_grad in zip(blocks, peaks, weight_grads, bias_grads, strict=True):
            factor = (peak - log_total).exp2_()
            weight_grad.addmm_(exponentials.T, some * factor, beta=0 if first else 1)
            bias_grad.addmv_(exponentials.T, factor.squeeze(1), beta=0 if first else 1)
    if not gradients:
        return losses, None
    grad_weight.index_add_(0, targets, hidden, alpha=-1)
    grad_bias.index_add_(0, targets, bias.new_ones(rows), alpha=-1)
    return losses, (grad_hidden, grad_weight, grad_bias)


def _exponentials(
    hidden: Tensor,
    weights: tuple[Tensor, ...],
    biases: tuple[Tensor, ...],
    answers: Tensor,
    blocks: list[Tensor],
    mixed: Tensor | None,
) -> tuple[Tensor, list[Tensor], Tensor]:
    """2^(logits - peak), written to `blocks`, a block [rows, some words] for every part of the weight.

    Returns the answers' logits [rows, 1], each block's peak [rows, 1], the highest logit up to it, and the sum of all
    exponentials over the last peak. `mixed` [rows, width], given as zeros, becomes the sum of exponentials x weight
    over the last peak.
    """
    peak, total = hidden.new_full((len(hidden), 1), -math.inf), hidden.new_zeros(len(hidden), 1)
    answered, peaks = torch.empty_like(peak), []
    number, place = answers // len(weights[0]), answers % len(weights[0])
    answered_in = torch.split(number.argsort(), number.bincount(minlength=len(weights)).tolist())
    for weight, bias, block, rows in zip(weights, biases, blocks, answered_in, strict=True):
        torch.mm(hidden, weight.T, out=block)
        block.add_(bias)
        if len(rows):
            answered[rows, 0] = block[rows, place[rows]]
        highest = torch.maximum(peak, block.amax(dim=1, keepdim=True))
        block.sub_(highest).exp2_()
        shrink = (peak - highest).exp2_()
        total.mul_(shrink).add_(block.sum(dim=1, keepdim=True))
        if mixed is not None:
            mixed.mul_(shrink).addmm_(block, weight)
        peaks.append(highest)
        peak = highest
    return answered, peaks, total


def _even_size(total: int, most: int) -> int:
    """The size of equal parts that are no larger than `most`; the last part may be smaller."""
    return -(-total // -(-total // most))


def _pages(*shape: int) -> Tensor:
    """Uninitialised fp32. numpy asks the system for huge pages, torch does not: a first write is four times faster."""
    return torch.from_numpy(np.empty(shape, dtype=np.float32))
