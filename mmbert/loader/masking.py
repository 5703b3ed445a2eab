"""Masked-language-model targets (BERT's 80/10/10 rule), as a pure function of the tokens and their random bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_UNIT = 1 << 32


@dataclass(frozen=True)
class MaskingRule:
    """How tokens are masked. `special_token_ids` (pad, bos, eos, unk, mask) are never drawn as random replacements,
    and never masked unless `mask_special` is set."""

    probability: float
    vocab_size: int
    mask_token_id: int
    special_token_ids: tuple[int, ...]
    mask_special: bool = False


class Masker:
    """Applies a rule. Of the chosen tokens 80% become the mask token, 10% a random one, 10% stay."""

    def __init__(self, rule: MaskingRule) -> None:
        self._mask_id = rule.mask_token_id
        special = np.zeros(rule.vocab_size, dtype=bool)
        special[_inside(rule.special_token_ids, rule.vocab_size)] = True
        self._ordinary = np.flatnonzero(~special).astype(np.uint32)
        self._maskable = None if rule.mask_special else ~special
        # One uniform draw u a token: [0, .8p) mask id, [.8p, .9p) random, [.9p, p) unchanged, the rest not masked.
        self._to_mask, self._to_random, self._masked = (_bound(rule.probability * share) for share in (0.8, 0.9, 1))

    def __call__(
        self, tokens: NDArray[np.uint32], bits: NDArray[np.uint64]
    ) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
        """Mask tokens, uint32 [T], in place, by random bits, uint64 [T]: a word's upper half is the draw, its lower
        half chooses the random id. Returns the masked positions [M], rising, and their targets [M].

        A block of some 10,000 tokens at a time is fastest: what it looks at then stays in the processor's cache.
        """
        positions = (bits < self._masked).nonzero()[0]
        targets = tokens[positions]
        if self._maskable is not None:
            kept = self._maskable[targets]
            positions, targets = positions[kept], targets[kept]
        words = bits[positions]
        to_mask = words < self._to_mask
        tokens[positions[to_mask]] = self._mask_id
        to_random = (words < self._to_random) & ~to_mask
        low = words[to_random] & np.uint64(_UNIT - 1)
        tokens[positions[to_random]] = self._ordinary[(low * np.uint64(len(self._ordinary))) >> np.uint64(32)]
        return positions, targets


def _bound(share: float) -> np.uint64:
    """A word is below it where its upper half, as a fraction of 2^32, is below `share`: words are compared whole."""
    return np.uint64(min(round(share * _UNIT) << 32, (1 << 64) - 1))


def _inside(ids: Sequence[int], vocab_size: int) -> list[int]:
    outside = [i for i in ids if not 0 <= i < vocab_size]
    if outside:
        raise ValueError(f"special token ids {outside} are outside of the vocabulary of {vocab_size}")
    return list(ids)
