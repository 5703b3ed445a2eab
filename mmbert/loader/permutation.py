"""A keyed permutation of 0..size-1 without memory: a Feistel network with cycle walking (Black and Rogaway, 2002)."""

from __future__ import annotations

_ROUNDS = 6
_MASK = (1 << 64) - 1


def permute(index: int, size: int, key: int) -> int:
    """Where `index` goes in the permutation of range(size) that `key` (128 bits) chooses.

    The network permutes the smallest even-bit domain that holds `size`, less than four times as large; a value that
    falls outside of range(size) is permuted again until it is inside, which keeps it a bijection.
    """
    if not 0 <= index < size:
        raise ValueError(f"index {index} is outside of range({size})")
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    while True:
        index = _feistel(index, half, key)
        if index < size:
            return index


def _feistel(value: int, half: int, key: int) -> int:
    mask = (1 << half) - 1
    left, right = value >> half, value & mask
    for number in range(_ROUNDS):
        left, right = right, left ^ (_mix(right, key, number) & mask)
    return left << half | right


def _mix(value: int, key: int, number: int) -> int:
    # The multipliers are those of splitmix64's finaliser (Steele, Lea and Flood, 2014).
    x = (value + (key >> 64) + (number + 1) * 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 + key) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
