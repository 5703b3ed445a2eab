"""What lies in a GPU's memory while it trains, by part, and how many rows fit into it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mmbert.model.config import EncoderConfig

# Rows of logits alive at once on a GPU (mmbert.model.loss.chunked).
_CHUNK_ROWS = 4096
# Assumed: driver, library handles, the communicator's buffers.
_CONTEXT_BYTES = 2e9
# Assumed: of what comes and goes, the share that the allocator cannot use again.
_FRAGMENTATION = 0.1
# Bytes a token by hidden size, up to the attention and past it, and by GLU width.
_BYTES = {"compiled": (14.0, 11.0, 6.0), "eager": (14.0, 12.0, 6.0), "sdpa": (27.0, 13.0, 12.0)}
# Embedding, final norm and head.
_ENDS = {"compiled": 6.0, "eager": 6.5, "sdpa": 3.0}


def parameter_count(config: EncoderConfig) -> int:
    """Weights of the encoder and its head; the decoder's are the token embedding's."""
    h, i, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    # The first layer has no attention norm; the embedding, the encoder's end and the head have one each.
    norms = (2 * layers - 1 + 3) * h
    return config.vocab_size * (h + 1) + layers * (4 * h**2 + 3 * h * i) + h**2 + norms


def activation_bytes_a_token(config: EncoderConfig, way: str, mask_probability: float) -> float:
    """Bytes that encoder and head keep for the backward pass, a token of a microbatch.

    `way`: `compiled` or `eager` in bf16 with a kernel for packed rows, or `sdpa` in fp32, as a CPU computes. Past the
    attention of the last layer there are masked tokens only. Fitted to what benchmarks/plan_memory.py counts.
    """
    attended, after, glu = _BYTES[way]
    h, i, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    full, last = layers - 1, mask_probability
    kept = layers * attended * h + (full + last) * (after * h + glu * i) + _ENDS[way] * h
    if way == "sdpa":
        # The windows of long documents as a mask of fp32.
        local = sum(not config.is_global(layer) for layer in range(layers))
        kept += 4 * config.sliding_window * local
    return kept


@dataclass(frozen=True)
class Memory:
    """Bytes in one GPU, by part, while a microbatch of `rows` rows is computed.

    weights, gradients, optimizer: fp32, StableAdamW's two moments. half_weights: their copies in bf16.
    gradient_buckets: what is summed over processes. activations: kept for the backward pass, and a layer's gradients.
    loss: a chunk of logits, the decoder's gradient on its way and its copy. step: what the optimiser's step takes
    instead of the two before. reserve: driver, communicator, and what the allocator cannot use again.
    """

    rows: int
    weights: float
    half_weights: float
    gradients: float
    gradient_buckets: float
    optimizer: float
    activations: float
    loss: float
    step: float
    reserve: float

    @property
    def total(self) -> float:
        """The most at any time: activations and loss are gone when the optimiser's step begins."""
        lasting = self.weights + self.half_weights + self.gradients + self.gradient_buckets + self.optimizer
        return lasting + max(self.activations + self.loss, self.step) + self.reserve


def memory_of(
    config: EncoderConfig, max_seq_len: int, mask_probability: float, rows: int, way: str, processes: int
) -> Memory:
    """Of a training process on a GPU in bf16; `way` as `activation_bytes_a_token` takes it."""
    weights = parameter_count(config)
    table = config.vocab_size * config.hidden_size
    tokens = rows * max_seq_len
    layer = activation_bytes_a_token(config, way, mask_probability) / config.num_hidden_layers
    activations = tokens * (activation_bytes_a_token(config, way, mask_probability) + layer)
    # The decoder in bf16, its gradient summed in fp32, then cast to bf16 and back (mmbert.model.loss).
    logits = min(_CHUNK_ROWS, math.ceil(mask_probability * tokens)) * config.vocab_size * 2
    loss = logits + (2 + 4 + 2 + 4) * table
    step = 4 * weights
    return Memory(
        rows=rows,
        weights=4 * weights,
        half_weights=2 * weights,
        gradients=4 * weights,
        gradient_buckets=4 * weights if processes > 1 else 0,
        optimizer=8 * weights,
        activations=activations,
        loss=loss,
        step=step,
        reserve=_CONTEXT_BYTES + _FRAGMENTATION * max(activations + loss, step),
    )


def largest_rows(
    config: EncoderConfig, max_seq_len: int, mask_probability: float, way: str, processes: int, capacity: float
) -> int:
    """The most rows of a microbatch whose memory fits into `capacity` bytes; 0 where not even one does."""

    def fits(rows: int) -> bool:
        return memory_of(config, max_seq_len, mask_probability, rows, way, processes).total <= capacity

    fitting, above = 0, 1
    while fits(above):
        fitting, above = above, 2 * above
    while above - fitting > 1:
        middle = (fitting + above) // 2
        fitting, above = (middle, above) if fits(middle) else (fitting, middle)
    return fitting
