"""Texts to hashed shingles (runs of consecutive words), a batch of texts at a time.

Words are runs of letters, numbers, or single characters of scripts that write without spaces. Case, accents,
vocalisation, punctuation and the digits of numbers make no difference. Text is expected in Unicode's NFC.
"""

from __future__ import annotations

import functools
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import regex
from numpy.typing import NDArray

UInt64s = NDArray[np.uint64]
Ints = NDArray[np.int64]

# Letters and marks that say what an English word says, where no spaces stand between words. Measured on the parallel
# text of the Universal Declaration of Human Rights: Chinese 1.5, Yi 1.7, Japanese 2.2; Thai 5.2, Khmer 5.8, Burmese 7.9
CHARACTERS_PER_WORD_IDEOGRAPHIC = 1.6
CHARACTERS_PER_WORD_UNSPACED = 5.0

_IDEOGRAPHIC = ("Hani", "Hira", "Kana", "Bopo", "Yiii")
# Tibetan and Tai Viet divide syllables, which then count as words (as in Vietnamese).
_UNSPACED = ("Thai", "Laoo", "Khmr", "Mymr", "Lana", "Talu", "Tale", "Java", "Bali")

# Separators are 0, so that what is not zero is a word.
_SEPARATOR, _LETTER, _NUMBER, _IDEOGRAPH, _UNSPACED_CHARACTER, _DECIMAL_POINT, _DROPPED = range(7)
_DECIMAL_POINTS = ".,،٫٬"
_CODE_POINTS = sys.maxunicode + 1

# Of 2^13 to 2^19 this and twice as much are the fastest, within a tenth of each other; this takes half the memory.
_BATCH_CHARACTERS = 2**17
# A longer text is read in slices of this length, so that memory does not grow with it.
_SLICE_CHARACTERS = 2**20

_LETTER_BASE = 0x9E3779B97F4A7C15
_WORD_BASE = 0xD6E8FEB86659FD93


@dataclass(frozen=True)
class Shingles:
    """Hashed shingles of consecutive texts. `counts[i]` of `hashes` belong to text `first + i`.

    A long text comes in several of these, each with this one text.
    """

    first: int
    counts: Ints
    hashes: UInt64s


def shingles(texts: Sequence[str], words: int) -> Iterator[Shingles]:
    """Hashes of every `words` consecutive words of each text; their order and repetitions mean nothing.

    The hashes depend on the text alone: not on the batch, the machine or a seed. In scripts without spaces a shingle
    has as many characters as say `words` words (`CHARACTERS_PER_WORD_...`).
    """
    first, characters = 0, 0
    for index, text in enumerate(texts):
        if len(text) > _SLICE_CHARACTERS:
            if index > first:
                yield _batch(texts[first:index], first, words)
            yield from _long_text(text, index, words)
            first, characters = index + 1, 0
            continue
        characters += len(text)
        if characters > _BATCH_CHARACTERS:
            yield _batch(texts[first : index + 1], first, words)
            first, characters = index + 1, 0
    if first < len(texts):
        yield _batch(texts[first:], first, words)


def mix(values: UInt64s) -> UInt64s:
    """splitmix64's finaliser (Steele, Lea and Flood 2014): a bijection of 64-bit words, every bit on every bit."""
    values = values ^ (values >> np.uint64(30))
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


@dataclass(frozen=True)
class _Words:
    """Words of a string of code points: where each starts, its hash, and how many words its shingle spans."""

    starts: Ints
    hashes: UInt64s
    spans: Ints


def _batch(texts: Sequence[str], first: int, words: int) -> Shingles:
    found = _words("\n".join(texts), words)
    text_starts = np.cumsum([0, *(len(text) + 1 for text in texts)])
    word_bounds = np.searchsorted(found.starts, text_starts)
    per_text = np.diff(word_bounds)
    ends = np.arange(len(found.starts)) + found.spans
    whole = ends <= np.repeat(word_bounds[1:], per_text)
    begins = np.flatnonzero(whole)
    counts = np.diff(np.searchsorted(begins, word_bounds))
    return Shingles(first, counts, _shingle_hashes(found.hashes, begins, ends[begins]))


def _long_text(text: str, index: int, words: int) -> Iterator[Shingles]:
    """Slices overlap by the words whose shingle is not complete, so that the hashes are those of the whole text."""
    begin, length = 0, _SLICE_CHARACTERS
    while begin < len(text):
        last = begin + length >= len(text)
        found = _words(text[begin : begin + length], words)
        # The last word may go on after the slice.
        ends = np.arange(len(found.starts)) + found.spans
        begins = np.flatnonzero(ends <= len(ends) - (not last))
        yield Shingles(index, np.array([len(begins)]), _shingle_hashes(found.hashes, begins, ends[begins]))
        if last:
            return
        incomplete = np.flatnonzero(ends >= len(ends))
        advance = int(found.starts[incomplete[0]]) if len(incomplete) else length
        length = _SLICE_CHARACTERS if advance else 2 * length
        begin += advance


def _shingle_hashes(words: UInt64s, begins: Ints, ends: Ints) -> UInt64s:
    return mix(_polynomials(words, begins, ends, _WORD_BASE))


def _polynomials(values: UInt64s, begins: Ints, ends: Ints, base: int) -> UInt64s:
    """Sum of values[i] * base^(i - begin) mod 2^64 of each range [begin, end), as a difference of prefix sums."""
    # Few sizes, so that the tables are made seldom.
    powers, inverses = _powers(base, max(_BATCH_CHARACTERS, 2 ** len(values).bit_length()))
    sums = np.empty(len(values) + 1, np.uint64)
    sums[0] = 0
    np.multiply(values, powers[: len(values)], out=sums[1:])
    np.cumsum(sums, out=sums)
    found = sums.take(ends)
    found -= sums.take(begins)
    found *= inverses.take(begins)
    return found


@functools.lru_cache(maxsize=8)
def _powers(base: int, size: int) -> tuple[UInt64s, UInt64s]:
    """The first `size` powers of an odd base, and of its inverse, mod 2^64."""
    return _geometric(base, size), _geometric(pow(base, -1, 2**64), size)


def _geometric(base: int, size: int) -> UInt64s:
    factors = np.full(size, base, np.uint64)
    factors[0] = 1
    return np.cumprod(factors, dtype=np.uint64)


def _words(text: str, shingle_words: int) -> _Words:
    table = _letters()
    # Lone surrogates are somebody else's to report: here they are separators.
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.intp)
    kinds = table.kinds.take(codes)
    dropped = kinds == _DROPPED
    kept = None
    if dropped.any():
        kept = np.flatnonzero(~dropped)
        codes, kinds = codes[kept], kinds[kept]
    points = np.flatnonzero(kinds == _DECIMAL_POINT)
    before, after = (kinds.take(points + step, mode="clip") == _NUMBER for step in (-1, 1))
    kinds[points] = np.where(before & after, _NUMBER, _SEPARATOR)

    edge = np.ones(len(kinds) + 1, np.bool_)
    alone = kinds >= _IDEOGRAPH
    np.not_equal(kinds[1:], kinds[:-1], out=edge[1:-1])
    edge[:-1] |= alone
    edges = np.flatnonzero(edge)
    words = np.flatnonzero(kinds.take(edges[:-1]))
    begins, ends = edges.take(words), edges.take(words + 1)
    hashes = mix(_polynomials(table.values.take(codes), begins, ends, _LETTER_BASE) ^ np.uint64(_WORD_BASE))
    spans = _spans(shingle_words).take(kinds.take(begins))
    return _Words(begins if kept is None else kept[begins], hashes, spans)


def _spans(words: int) -> Ints:
    spans = np.full(_DROPPED + 1, words)
    spans[_IDEOGRAPH] = round(words * CHARACTERS_PER_WORD_IDEOGRAPHIC)
    spans[_UNSPACED_CHARACTER] = round(words * CHARACTERS_PER_WORD_UNSPACED)
    return spans


@dataclass(frozen=True)
class _Letters:
    """For each code point its kind (uint8) and the value (uint64) that it adds to its word's hash."""

    kinds: NDArray[np.uint8]
    values: UInt64s


@functools.cache
def _letters() -> _Letters:
    # Surrogates stay separators.
    everything = "".join(chr(c) if not 0xD800 <= c < 0xE000 else " " for c in range(_CODE_POINTS))
    kinds = np.full(_CODE_POINTS, _SEPARATOR, np.uint8)
    of_scripts = {
        kind: "[[\\p{L}\\p{M}]&&[" + "".join(rf"\p{{Script={script}}}" for script in scripts) + "]]+"
        for kind, scripts in ((_IDEOGRAPH, _IDEOGRAPHIC), (_UNSPACED_CHARACTER, _UNSPACED))
    }
    patterns = {_LETTER: r"[\p{L}\p{M}]+", _NUMBER: r"\p{N}+", **of_scripts, _DROPPED: r"[\p{Cf}\p{Me}\u0640]+"}
    for kind, pattern in patterns.items():
        for run in regex.finditer(pattern, everything, regex.V1):
            kinds[run.start() : run.end()] = kind
    for mark in regex.findall(r"\p{Mn}", everything):
        if _is_dropped(mark):
            kinds[ord(mark)] = _DROPPED
    kinds[[ord(c) for c in _DECIMAL_POINTS]] = _DECIMAL_POINT

    folded = np.arange(_CODE_POINTS, dtype=np.uint64)
    for letter in regex.findall(r"[\p{L}\p{M}--\p{Script=Hang}--\p{Unified_Ideograph}]", everything, regex.V1):
        folded[ord(letter)] = ord(_fold(letter))
    values = mix(folded + np.uint64(_LETTER_BASE))
    # Any two numbers are the same word.
    values[kinds == _NUMBER] = 0
    values[[ord(c) for c in _DECIMAL_POINTS]] = 0
    return _Letters(kinds, values)


def _is_dropped(mark: str) -> bool:
    """Accents, Hebrew and Arabic vocalisation, variation selectors; not the vowels of Brahmic scripts.

    By canonical combining class: 10 to 35 are the points of Hebrew, Arabic and Syriac, 200 and above accents.
    """
    combining = unicodedata.combining(mark)
    selector = 0xFE00 <= ord(mark) <= 0xFE0F or 0xE0100 <= ord(mark) <= 0xE01EF
    return 10 <= combining <= 35 or combining >= 200 or selector


def _fold(letter: str) -> str:
    """Without case, accents and presentation forms, where what is left is one letter."""
    for form in (letter.casefold(), letter.lower()):
        rest = [c for c in unicodedata.normalize("NFKD", form) if not (unicodedata.combining(c) and _is_dropped(c))]
        if len(rest) == 1:
            return rest[0]
    return letter
