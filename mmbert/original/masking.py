"""The original's masking, with its faults: special tokens are masked like others, and random replacements come from
the ids below the batch's largest, not from the vocabulary."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
IGNORED = -100


def mask_generator(seed: int, epoch: int) -> np.random.Generator:
    """The generator of one pass over the data; the first is epoch 0. Nothing of it is in the original's checkpoints."""
    return np.random.default_rng(seed + epoch)


def mask(
    tokens: Ids, probability: float, mask_token_id: int, pad_token_id: int, generator: np.random.Generator
) -> tuple[Ids, Ids]:
    """Masked tokens and labels, both of the shape of `tokens`; labels are IGNORED where nothing is to be predicted.

    One uniform draw u a place, padding included: u < .8p gives the mask id, u < .9p a random id, u < p no change.
    Padding is replaced too, but never has a label.
    """
    draws = generator.random(tokens.shape)
    labels = np.where((draws < probability) & (tokens != pad_token_id), tokens, IGNORED)
    masked = np.where(draws < 0.8 * probability, mask_token_id, tokens)
    random_ids = generator.integers(0, masked.max() + 1, tokens.shape)
    to_random = (draws >= 0.8 * probability) & (draws < 0.9 * probability)
    return np.where(to_random, random_ids, masked), labels
