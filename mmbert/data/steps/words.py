"""Words of any language without dictionaries or models, for datatrove's filters.

A word is a run of letters, marks and digits, with apostrophes and full stops inside it and commas inside numbers
(Unicode's UAX #29, rules WB6, WB7, WB11 and WB12, simplified). Any other visible character is a word of its own, as in
spaCy's tokenizers, which most of FineWeb2's thresholds were computed with. Scripts that put no space between words are
cut into pieces of a word's usual length: two Chinese or Japanese characters, four letters of South-East Asian scripts.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable

from datatrove.utils.word_tokenizers import WordTokenizer

UNSPACED_SCRIPTS = frozenset({"Hani", "Jpan", "Khmr", "Lana", "Laoo", "Mymr", "Tale", "Talu", "Tavt", "Thai"})
"""Scripts that put no space between words."""

# Blocks of Unicode: Chinese characters, kana, bopomofo.
CHINESE = "\u3005-\u3007\u3031-\u312f\u31a0-\u31bf\u31f0-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
# Thai, Lao, Myanmar with its extensions, Khmer, Tai Le, New Tai Lue, Tai Tham, Tai Viet.
SOUTH_EAST_ASIAN = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17dd\u1950-\u19df\u1a20-\u1aad\ua9e0-\ua9fe\uaa60-\uaadf"
# Beyond the Basic Multilingual Plane whole blocks are taken, for `re` tries such ranges one by one.
_FAR = "\U00010000-\U000100ff\U00010280-\U0001cfff\U0001d400-\U0001d7ff\U0001e000-\U0001ecff"
# Inside words: soft hyphen, zero-width non-joiner and joiner.
_JOINERS = "\u00ad\u200c\u200d"
# Between words: Tibetan tsheg, Ethiopic word space, zero-width space, byte-order mark.
_SEPARATORS = "\u0f0b\u0f0c\u1361\u200b\ufeff"


@functools.cache
def word_pattern() -> re.Pattern[str]:
    """Matches one word after another; made of plain ranges, with which `re` is 2 to 4 times faster than `regex`."""
    unspaced, south_east_asian = re.compile(f"[{CHINESE}{SOUTH_EAST_ASIAN}]"), re.compile(f"[{SOUTH_EAST_ASIAN}]")
    letter = _characters(lambda c: unicodedata.category(c)[0] in "LMN" and not unspaced.match(c))
    digit = _characters(lambda c: unicodedata.category(c) == "Nd")
    base = _characters(lambda c: unicodedata.category(c)[0] in "LN" and bool(south_east_asian.match(c)))
    mark = _characters(lambda c: unicodedata.category(c)[0] == "M" and bool(south_east_asian.match(c)))
    spaced = f"[{letter}{_FAR}{_JOINERS}]+"
    return re.compile(
        rf"{spaced}(?:['’.]{spaced}|,[{digit}]+)*|[{CHINESE}]{{1,2}}|(?:[{base}][{mark}{_JOINERS}]*){{1,4}}"
        rf"|\.+|[^\s{_SEPARATORS}]"
    )


def _characters(wanted: Callable[[str], bool]) -> str:
    """The body of a character class: the wanted characters of the Basic Multilingual Plane, as ranges."""
    ranges: list[tuple[int, int]] = []
    for point in range(0x10000):
        if not wanted(chr(point)):
            continue
        if ranges and ranges[-1][1] == point - 1:
            ranges[-1] = (ranges[-1][0], point)
        else:
            ranges.append((point, point))
    return "".join(f"\\u{first:04x}-\\u{last:04x}" for first, last in ranges)


def split_words(text: str) -> list[str]:
    return word_pattern().findall(text)


class Words(WordTokenizer):
    """`split_words` where datatrove takes a tokenizer, which it does in place of a language's name."""

    def word_tokenize(self, text: str) -> list[str]:
        return split_words(text)

    def sent_tokenize(self, text: str) -> list[str]:
        raise NotImplementedError("no filter used here asks for sentences")

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        raise NotImplementedError("no filter used here asks for sentences")
