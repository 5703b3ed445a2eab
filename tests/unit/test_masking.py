"""Masked-language-model targets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmbert.loader.masking import Masker, MaskingRule
from mmbert.loader.randomness import random_bits

VOCAB, MASK, SPECIAL = 1_000, 4, (0, 1, 2, 4)


def _rule(probability: float, mask_special: bool = False) -> MaskingRule:
    return MaskingRule(probability, VOCAB, MASK, SPECIAL, mask_special)


def _mask(tokens: np.ndarray, bits: np.ndarray, rule: MaskingRule) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masked tokens, positions, targets."""
    masked = tokens.copy()
    return masked, *Masker(rule)(masked, bits)


def _tokens(count: int, low: int = 5) -> np.ndarray:
    return (random_bits(99, count) % np.uint64(VOCAB - low) + np.uint64(low)).astype(np.uint32)


@pytest.mark.parametrize("probability", [0.05, 0.15, 0.3])
def test_rates(probability: float) -> None:
    count = 400_000
    tokens = _tokens(count)
    masked, positions, targets = _mask(tokens, random_bits(1, count), _rule(probability))
    # Five standard deviations of a binomial rate.
    assert abs(len(positions) / count - probability) < 5 * (probability * (1 - probability) / count) ** 0.5
    replaced = masked[positions]
    error = 5 * (0.25 / len(positions)) ** 0.5
    assert abs((replaced == MASK).mean() - 0.8) < error
    assert abs((replaced == targets).mean() - 0.1) < error
    assert abs(((replaced != targets) & (replaced != MASK)).mean() - 0.1) < error


def test_random_replacements_come_from_the_whole_vocabulary_without_special_tokens() -> None:
    """The tokens are few and small, the replacements are not."""
    count = 400_000
    tokens = np.full(count, 7, np.uint32)
    masked, positions, _ = _mask(tokens, random_bits(2, count), _rule(0.9))
    found = set(np.unique(masked[positions]).tolist())
    assert found == set(range(VOCAB)) - {0, 1, 2}
    random_ids = masked[positions][(masked[positions] != MASK) & (masked[positions] != 7)]
    assert abs(random_ids.mean() - np.setdiff1d(np.arange(VOCAB), SPECIAL).mean()) < 10


@given(tokens=st.lists(st.integers(0, VOCAB - 1), max_size=300), key=st.integers(0, 2**64), special=st.booleans())
def test_targets_are_what_stood_there_and_nothing_else_changes(tokens: list[int], key: int, special: bool) -> None:
    original = np.array(tokens, np.uint32)
    masked, positions, targets = _mask(original, random_bits(key, len(original)), _rule(0.5, special))
    assert (np.diff(positions) > 0).all()
    assert np.array_equal(targets, original[positions])
    elsewhere = np.setdiff1d(np.arange(len(original)), positions)
    assert np.array_equal(masked[elsewhere], original[elsewhere])
    if not special:
        assert not np.isin(targets, SPECIAL).any()


def test_special_tokens_are_masked_only_when_asked() -> None:
    tokens = np.array(SPECIAL * 200, np.uint32)
    bits = random_bits(3, len(tokens))
    assert len(_mask(tokens, bits, _rule(0.5))[1]) == 0
    assert len(_mask(tokens, bits, _rule(0.5, mask_special=True))[1]) > 300


def test_special_tokens_outside_of_the_vocabulary_are_refused() -> None:
    with pytest.raises(ValueError, match="outside of the vocabulary"):
        Masker(MaskingRule(0.3, 10, 4, (0, 12)))
