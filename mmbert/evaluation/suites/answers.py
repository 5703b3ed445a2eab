"""Exact match and F1 of answers, normalised as each data set's official evaluation does.

The definitions are those of SQuAD's evaluate-v1.1.py, MLQA's mlqa_evaluation_v1.py and TiQuAD's evaluate-tiquad.py. No
installed library has MLQA's or TiQuAD's; SQuAD's is held to torchmetrics by a test.
"""

from __future__ import annotations

import functools
import re
import string
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Normalise = Callable[[str, str], list[str]]
"""An answer and its language's code -> the words that are compared."""
Compare = Callable[[Sequence[str], Sequence[Sequence[str]]], float]
"""Words of an answer and of each reference -> a share from 0 to 1."""


@dataclass(frozen=True)
class AnswerMetric:
    """How words are compared, and what makes words of an answer."""

    compare: Compare
    normalise: Normalise


# MLQA gives its article lists for these languages; Hindi and Chinese have none.
_MLQA_ARTICLES = {
    "en": r"\b(?:a|an|the)\b",
    "es": r"\b(?:un|una|unos|unas|el|la|los|las)\b",
    "vi": r"\b(?:của|là|cái|chiếc|những)\b",
    "de": r"\b(?:ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b",
    "ar": "ال",  # wherever it stands, not only at a word's begin
}
_SQUAD_ARTICLES = _MLQA_ARTICLES["en"]
_HAN = re.compile("([\u4e00-\u9fa5])")
# Its pattern takes a hyphen out and escapes the bracket by the backslash, so neither counts as punctuation.
_TIQUAD_PUNCTUATION = str.maketrans(
    dict.fromkeys(set(string.punctuation) - {"-", "\\"} | set("፡፣፥፤፦።፧፨፠“”‘’‚‛„‟"), " ")
)
_TIQUAD_LEFT_OUT = frozenset({"a", "an", "the", "ብ", "ናይ", "ኣብ", "እዩ", "ናብ", "ካብ", "እቲ"})


def squad_words(text: str, language: str = "") -> list[str]:
    """SQuAD v1.1's normalisation, the same in every language: ASCII punctuation and English articles go."""
    del language
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(_SQUAD_ARTICLES, " ", kept).split()


def mlqa_words(text: str, language: str) -> list[str]:
    """MLQA's normalisation: all of Unicode's punctuation and the language's articles go; Han characters stand alone."""
    kept = "".join(c for c in text.lower() if c not in _unicode_punctuation())
    if language in _MLQA_ARTICLES:
        kept = re.sub(_MLQA_ARTICLES[language], " ", kept)
    return (_HAN.sub(r" \1 ", kept) if language == "zh" else kept).split()


def tiquad_words(text: str, language: str = "") -> list[str]:
    """TiQuAD's normalisation: punctuation (Ge'ez too) parts words, and some frequent Tigrinya words go."""
    del language
    words = text.lower().translate(_TIQUAD_PUNCTUATION).split()
    return [word for word in words if word not in _TIQUAD_LEFT_OUT]


def exact_match(words: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """1 where the normalised answer is one of the normalised references, else 0."""
    return float(any(list(words) == list(reference) for reference in references))


def f1(words: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """The best F1 over the references of the words in common, counted with repetition; 0 where there are none."""
    return max(_f1(Counter(words), Counter(reference)) for reference in references)


def _f1(words: Counter[str], reference: Counter[str]) -> float:
    common = (words & reference).total()
    return 2 * common / (words.total() + reference.total()) if common else 0.0


@functools.cache
def _unicode_punctuation() -> frozenset[str]:
    categories = (chr(code) for code in range(sys.maxunicode) if unicodedata.category(chr(code)).startswith("P"))
    return frozenset(categories) | frozenset(string.punctuation)
