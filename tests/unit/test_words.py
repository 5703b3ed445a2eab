"""Words of any language, as the web filters count them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmbert.data.steps.words import split_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Das Haus (1,5 km) steht.", ["Das", "Haus", "(", "1,5", "km", ")", "steht", "."]),
        ("l'été n'est-ce… pas...", ["l'été", "n'est", "-", "ce", "…", "pas", "..."]),
        ("हिन्दी में है।", ["हिन्दी", "में", "है", "।"]),
        # Zero-width joiners are parts of words.
        ("می‌خواهم بروم", ["می‌خواهم", "بروم"]),
        ("世界人权宣言。", ["世界", "人权", "宣言", "。"]),
        ("ABC中文", ["ABC", "中文"]),
        ("การศึกษา", ["การศึ", "กษา"]),
        # Ethiopic word space and Tibetan tsheg are spaces.
        ("ሰላም፡ለዓለም", ["ሰላም", "ለዓለም"]),
        ("བོད་ཡིག", ["བོད", "ཡིག"]),
        ("𞤀𞤁𞤂 𐐀𐐁", ["𞤀𞤁𞤂", "𐐀𐐁"]),
        (" \u200b\ufeff\n", []),
    ],
)
def test_words_of_a_text(text: str, words: list[str]) -> None:
    assert split_words(text) == words


@given(st.text())
def test_nothing_but_spaces_and_word_separators_is_lost(text: str) -> None:
    words = split_words(text)
    assert "".join(words) == re.sub(r"[\s\u0f0b\u0f0c\u1361\u200b\ufeff]", "", text)
    assert all(words)
