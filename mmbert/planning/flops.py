"""Floating-point operations of a training step, counted by formula.

They are *model* FLOPs: what the mathematics of the step needs, whatever a kernel does to get it. Counted: all matrix
products, 2 for each multiplication and addition, once forward and twice backward (for the inputs' gradients and for the
weights'). Not counted: embedding look-ups, norms, activations, rotary turns, softmax, dropout, the optimiser,
recomputation, and whatever is computed for padding or for keys outside of a window. Past the attention of the last
layer only masked tokens are counted, since nothing else reaches the loss. The queries of its other tokens are counted,
though the loss needs them as little: the model computes them, and so does everybody's formula.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmbert.model.config import EncoderConfig

_PASSES = 3
"""Forward, and a backward of twice its size."""


@dataclass(frozen=True)
class StepFlops:
    """Model FLOPs of a training step (forward and backward) by part.

    body: matrix products of the layers. head: prediction head and decoder, at masked tokens. global_attention and
    local_attention: scores and weighted sums of the two kinds of layers.
    """

    body: int
    head: int
    global_attention: int
    local_attention: int

    @property
    def total(self) -> int:
        return self.body + self.head + self.global_attention + self.local_attention


def step_flops(config: EncoderConfig, tokens: int, masked: int, segment_lengths: ArrayLike) -> StepFlops:
    """Of a step over `tokens` real tokens, `masked` of them with a target, in segments of these lengths.

    With hidden size h and GLU width i, a token costs 8 h^2 + 6 h i a layer (Wqkv 6 h^2, Wo 2 h^2, Wi 4 h i, the MLP's
    Wo 2 h i), a masked one 2 h^2 + 2 h x vocabulary in the head, and a pair of query and key 4 h a layer, all forward.
    """
    width = config.hidden_size
    qkv, past_attention = 6 * width**2, 2 * width**2 + 6 * width * config.intermediate_size
    layers = config.num_hidden_layers
    global_layers = sum(config.is_global(layer) for layer in range(layers))
    lengths = np.asarray(segment_lengths, np.int64)
    body = layers * qkv * tokens + past_attention * ((layers - 1) * tokens + masked)
    head = masked * (2 * width**2 + 2 * width * config.vocab_size)
    pairs, near = attention_pairs(lengths, None), attention_pairs(lengths, config.sliding_window)
    return StepFlops(
        body=_PASSES * body,
        head=_PASSES * head,
        global_attention=_PASSES * global_layers * 4 * width * pairs,
        local_attention=_PASSES * (layers - global_layers) * 4 * width * near,
    )


def attention_pairs(segment_lengths: NDArray[np.int64], window: int | None) -> int:
    """Pairs of query and key within segments, int64 [segments]: all (None), or those at most half a window apart.

    A segment of l tokens has l (2 m + 1) - m (m + 1) pairs at most k apart, where m is the lesser of k and l - 1.
    """
    if window is None:
        return int((segment_lengths**2).sum())
    reach = np.minimum(window // 2, np.maximum(segment_lengths - 1, 0))
    return int((segment_lengths * (2 * reach + 1) - reach * (reach + 1)).sum())
