"""Repair gives what ftfy gives, which it asks only where that might change something."""

from __future__ import annotations

import pytest
from datatrove.pipeline.formatters import FTFYFormatter
from hypothesis import given, settings
from hypothesis import strategies as st

from mmbert.data import eld
from mmbert.data.steps.repair import Repair, ftfy_may_change

FTFY = FTFYFormatter(normalization="NFC")
CODECS = ("windows-1252", "latin-1", "mac_roman", "cp1251", "cp1253", "cp1257", "cp437")
# Characters of every kind that ftfy's patterns know, combining marks, and what other kinds of repair look for.
SUSPICIOUS = "aZ éÉßœŒÃÂà°²³€™”“«»–’ÙØВГРСЂвў\u0300\u0301μµ¶╔‚ó√≈\n\t\xa0\x80&;#1<\x1b[m\u200b\ufeff\ud800"
MOJIBAKE = st.builds(
    lambda text, codec: text.encode("utf-8", "replace").decode(codec, "replace"),
    st.text("äéß’“€中д", min_size=1, max_size=4),
    st.sampled_from(CODECS),
)


@settings(max_examples=500)
@given(st.lists(st.text(SUSPICIOUS, max_size=5) | MOJIBAKE | st.text(max_size=3), max_size=6).map("".join))
def test_any_text_is_fixed_as_ftfy_fixes_it(text: str) -> None:
    assert Repair()._fixed(text) == FTFY.format(text)


def test_real_sentences_whole_and_with_a_wrong_encoding() -> None:
    asked = 0
    for number, _, text in eld.read_sentences(eld.sentence_file()):
        if number % 40:
            continue
        asked += ftfy_may_change(text)
        middle = len(text) // 2
        wrong = text[:middle] + text[middle : middle + 9].encode().decode(CODECS[number // 40 % 7], "replace")
        for each in (text, wrong):
            assert Repair()._fixed(each) == FTFY.format(each)
    # What makes it fast.
    assert 0 < asked < 60


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("schÃ¶n", "schön"),
        ("a\u0308", "ä"),
        ("a  b\t c\u3000d", "a b c d"),
        (" a \n b\n \n\n\nc ", "a\nb\n\nc"),
        ("Tom &amp; Jerry", "Tom & Jerry"),
    ],
)
def test_repaired_text(before: str, after: str) -> None:
    assert Repair().format(before) == after
