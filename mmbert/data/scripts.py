"""The script that a text is written in, by its letters."""

from __future__ import annotations

import functools
import unicodedata
from collections import Counter

import regex

# ISO 15924 codes of the scripts that FineWeb2's languages and the declarations use; `regex` knows each by this alias.
SCRIPTS = (  # noqa: SIM905
    "Adlm Arab Armn Bali Bamu Beng Bopo Bugi Cakm Cans Cham Cher Copt Cyrl Deva Egyp Ethi Geor Goth Gran Grek Gujr "
    "Guru Hang Hani Hebr Hira Hmng Java Kali Kana Khmr Knda Lana Laoo Latn Limb Lisu Mand Medf Mlym Mong Mtei Mymr "
    "Nkoo Ogam Olck Orya Osge Phag Rohg Runr Samr Saur Sinh Sund Sylo Syrc Tagb Tale Talu Taml Tavt Telu Tfng Tglg "
    "Thaa Thai Tibt Vaii Wara Yiii"
).split()

# Unified codes as FineWeb2 uses them: Japanese mixes three scripts; bopomofo only annotates Chinese.
_UNIFIED = {"Hira": "Jpan", "Kana": "Jpan", "Bopo": "Hani"}


@functools.cache
def _patterns() -> tuple[tuple[str, regex.Pattern[str]], ...]:
    return tuple((code, regex.compile(rf"\p{{Script={code}}}")) for code in SCRIPTS)


@functools.cache
def script_of_letter(letter: str) -> str | None:
    """ISO 15924 code of one letter; None for other characters and letters of no script in `SCRIPTS`."""
    if unicodedata.category(letter)[0] != "L":
        return None
    return next((code for code, pattern in _patterns() if pattern.match(letter)), None)


def script_of(text: str) -> str | None:
    """ISO 15924 code of most of a text's letters; None where it has no letters.

    Kana make it `Jpan` even where most letters are Chinese characters.
    """
    counts: Counter[str] = Counter()
    for letter, n in Counter(text).items():
        code = script_of_letter(letter)
        if code:
            counts[_UNIFIED.get(code, code)] += n
    if not counts:
        return None
    most = max(sorted(counts), key=lambda code: counts[code])
    kana = counts["Jpan"] / counts.total()
    # A kana among a hundred characters is a quotation, not Japanese.
    return "Jpan" if most == "Hani" and kana > 0.05 else most
