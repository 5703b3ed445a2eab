"""MinHash signatures (Broder 1997) cut into bands for locality-sensitive hashing.

Two documents whose sets of shingles have the Jaccard similarity J agree on a band with probability J^rows, and on at
least one with 1 - (1 - J^rows)^bands; that is a half near J = (1/bands)^(1/rows).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmbert.data.dedup.shingles import Shingles, UInt64s, mix, shingles

NO_SHINGLE = 0
"""Stands in every band of a document that is shorter than a shingle; such a document has no near duplicate."""

_LARGEST = np.iinfo(np.uint32).max


@dataclass(frozen=True)
class MinHashSettings:
    """Defaults are FineWeb2's: 14 bands of 8 rows over 5-word shingles, a threshold near 0.72.

    Raises ValueError for a number below 1.
    """

    num_bands: int = 14
    rows_per_band: int = 8
    shingle_words: int = 5
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("num_bands", "rows_per_band", "shingle_words"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more")

    @property
    def threshold(self) -> float:
        """The Jaccard similarity at which the probability of being found rises steepest: (1/bands)^(1/rows)."""
        return float((1 / self.num_bands) ** (1 / self.rows_per_band))

    def probability(self, jaccard: float) -> float:
        """That two documents of this Jaccard similarity agree on at least one band."""
        return float(1 - (1 - jaccard**self.rows_per_band) ** self.num_bands)


def band_hashes(texts: Sequence[str], settings: MinHashSettings) -> UInt64s:
    """uint64 [documents, bands]: documents with an equal hash in any column are near duplicates.

    Rows of documents without a shingle hold `NO_SHINGLE`, which no other document has. The same text and settings give
    the same row on any machine and in any batch.
    """
    rows = minimums(texts, settings)
    short = rows.present == 0
    pairs = rows.values.reshape(settings.num_bands, settings.rows_per_band, len(texts))
    weights = _random(settings.seed, 1, settings.rows_per_band) | np.uint64(1)
    bands = np.zeros((settings.num_bands, len(texts)), np.uint64)
    for row, weight in enumerate(weights):
        bands += pairs[:, row].astype(np.uint64) * weight
    bands = np.maximum(mix(bands), np.uint64(NO_SHINGLE + 1))
    bands[:, short] = NO_SHINGLE
    return np.ascontiguousarray(bands.T)


@dataclass(frozen=True)
class Minimums:
    """uint32 [rows, documents] of minimal hashes, and whether each document has a shingle."""

    values: NDArray[np.uint32]
    present: NDArray[np.bool_]


def minimums(texts: Sequence[str], settings: MinHashSettings) -> Minimums:
    """The smallest hash of each document's shingles under each of bands x rows permutations.

    A permutation multiplies one half of the shingle's 64-bit hash by an odd number mod 2^32. Rows take the two halves
    in turn, so that a band has 64 bits even where a document has a single shingle, at the speed of 32-bit vectors.
    """
    factors = (_random(settings.seed, 0, settings.num_bands * settings.rows_per_band) >> np.uint64(32)).astype(
        np.uint32
    ) | np.uint32(1)
    found = Minimums(np.full((len(factors), len(texts)), _LARGEST, np.uint32), np.zeros(len(texts), np.bool_))
    for batch in shingles(texts, settings.shingle_words):
        _lower(found, batch, factors)
    return found


def _lower(found: Minimums, batch: Shingles, factors: NDArray[np.uint32]) -> None:
    some = np.flatnonzero(batch.counts)
    if not len(some):
        return
    documents = batch.first + some
    starts = np.cumsum(batch.counts)[some] - batch.counts[some]
    # Alternate rows take the low and the high half.
    halves = np.ascontiguousarray(batch.hashes.view("<u4").reshape(-1, 2).T.astype(np.uint32))
    product = np.empty(len(batch.hashes), np.uint32)
    smallest = np.empty(len(documents), np.uint32)
    for row, factor in enumerate(factors):
        np.multiply(halves[row % 2], factor, out=product)
        np.minimum.reduceat(product, starts, out=smallest)
        found.values[row, documents] = np.minimum(found.values[row, documents], smallest)
    found.present[documents] = True


def _random(seed: int, stream: int, count: int) -> UInt64s:
    """Raw Philox output, whose bits numpy guarantees over its versions."""
    return np.random.Philox(key=[seed, stream]).random_raw(count)
