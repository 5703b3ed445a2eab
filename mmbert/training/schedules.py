"""Learning rate and batch size as functions of the tokens trained in a phase. Plain arithmetic, no state."""

from __future__ import annotations

import math
from typing import Protocol

from mmbert.errors import UserError

# The original starts its warm-up here rather than at zero.
_WARMUP_START = 1e-10


class Schedule(Protocol):
    """The recipe's `schedule` section."""

    @property
    def warmup_tokens(self) -> int: ...

    @property
    def decay_tokens(self) -> int: ...

    @property
    def decay_shape(self) -> str: ...

    @property
    def final_fraction(self) -> float: ...


class Batch(Protocol):
    """The recipe's `batch` section, sizes in rows."""

    @property
    def global_batch_size(self) -> int: ...

    @property
    def warmup_from(self) -> int | None: ...

    @property
    def warmup_tokens(self) -> int: ...


def lr_multiplier(tokens: int, schedule: Schedule, phase_tokens: int) -> float:
    """Share of the peak learning rate after `tokens` of a phase of `phase_tokens`.

    Linear warm-up, then 1, then over the phase's last `decay_tokens` down to f = `final_fraction`: with x the share of
    the decay that is done, 1 - (1 - f) x (linear) or f + (1 - f) (1 - sqrt(x)) (one_minus_sqrt). Past the end it stays
    at f. Raises UserError where warm-up and decay do not both fit into the phase.
    """
    warmup, decay, final = schedule.warmup_tokens, schedule.decay_tokens, schedule.final_fraction
    if warmup + decay > phase_tokens:
        raise UserError(
            f"schedule: warmup_tokens {warmup:,} and decay_tokens {decay:,} do not fit into the phase's "
            f"{phase_tokens:,} tokens"
        )
    if tokens < warmup:
        return _WARMUP_START + (1 - _WARMUP_START) * tokens / warmup
    decay_start = phase_tokens - decay
    if not decay or tokens <= decay_start:
        return 1.0
    done = min(1.0, (tokens - decay_start) / decay)
    return 1 - (1 - final) * (math.sqrt(done) if schedule.decay_shape == "one_minus_sqrt" else done)


def global_batch_size_at(tokens: int, batch: Batch, lanes: int) -> int:
    """Rows of the global batch that starts after `tokens`.

    The warm-up goes from `warmup_from` to `global_batch_size` in steps of `lanes` rows. A size lasts tokens in
    proportion to itself, so each size makes the same number of optimiser steps; the thresholds are those of the
    original training code.
    """
    if batch.warmup_from is None or tokens >= batch.warmup_tokens:
        return batch.global_batch_size
    sizes = range(batch.warmup_from, batch.global_batch_size, lanes)
    total = sum(sizes)
    reached = 0
    for size in sizes:
        reached += size
        if tokens < -(-batch.warmup_tokens * reached // total):
            return size
    return batch.global_batch_size
