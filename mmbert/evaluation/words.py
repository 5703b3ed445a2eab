"""Words of a text, and the seeded choice of those to mask. Neither depends on any tokenizer."""

from __future__ import annotations

import hashlib
import itertools

import regex

PIECE = 4
"""Characters (grapheme clusters) of a word in scripts that put no spaces between words."""
LONGEST = 24
"""Longest word in characters anywhere; what is longer is cut."""

_BOUNDARIES = regex.compile(r"(?V1w)\b")
_UNSPACED = regex.compile(r"^[\p{Line_Break=SA}\p{Han}\p{Hiragana}\p{Katakana}ー]+$")
_WORDLIKE = regex.compile(r"[\p{L}\p{N}]")
_CLUSTER = regex.compile(r"\X")


def words(text: str) -> list[tuple[int, int]]:
    """Start and end (in code points) of each word of a text.

    Boundaries are those of Unicode UAX #29. It leaves runs of Han, kana, Thai, Lao, Khmer, Burmese and the like (line
    break class SA) to a dictionary; here neighbouring pieces of such a run are joined and cut every four characters.
    Spaces and punctuation are no words.
    """
    found: list[tuple[int, int]] = []
    run: int | None = None
    position = 0
    for segment in _BOUNDARIES.split(text):
        start, position = position, position + len(segment)
        if not segment.isascii() and _UNSPACED.match(segment):
            run = start if run is None else run
            continue
        if run is not None:
            found += _cut(text, run, start, PIECE)
            run = None
        if segment.isalnum() or _WORDLIKE.search(segment):
            found += _cut(text, start, position, LONGEST)
    if run is not None:
        found += _cut(text, run, position, PIECE)
    return found


def _cut(text: str, start: int, end: int, longest: int) -> list[tuple[int, int]]:
    if end - start <= longest:
        return [(start, end)]
    ends = [cluster.end() for cluster in _CLUSTER.finditer(text, start, end)]
    cuts = [start, *ends[longest - 1 : -1 : longest], ends[-1]]
    return [(a, b) for a, b in itertools.pairwise(cuts) if b > a]


def chosen_words(text: str, document_id: str, seed: int, share: float) -> list[tuple[int, int]]:
    """The words to mask: each is chosen with probability `share` by a hash of (seed, document id, word index)."""
    document = hashlib.blake2b(f"{seed}\0{document_id}\0".encode(), digest_size=8)
    threshold = int(share * 2**64)
    chosen = []
    for index, span in enumerate(words(text)):
        word = document.copy()
        word.update(index.to_bytes(4, "big"))
        if int.from_bytes(word.digest(), "big") < threshold:
            chosen.append(span)
    return chosen
