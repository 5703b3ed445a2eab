"""The web filters give the verdicts of datatrove's own filters, reasons included."""

from __future__ import annotations

import dataclasses
import random
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator

import pytest
from datatrove.data import Document as Record
from datatrove.pipeline.filters import FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mmbert.data import eld
from mmbert.data.steps.web_quality import (
    WORDS,
    Limits,
    WebFilters,
    gopher_quality,
    gopher_repetition,
    limits_of,
    segmented,
)
from mmbert.data.steps.words import split_words
from mmbert.recipe.schema import WebQuality


@pytest.fixture(scope="module")
def pages() -> list[tuple[str, str]]:
    """Pages of 12 sentences, four a line, in all of eld's languages."""
    found: dict[str, list[str]] = defaultdict(list)
    for _, code, text in eld.read_sentences(eld.sentence_file()):
        found[code].append(text)
    return [
        (code, "\n".join(" ".join(texts[j : j + 4]) for j in range(i, i + 12, 4)))
        for code, texts in found.items()
        for i in range(0, 36, 12)
    ]


def spoilt(pages: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Each page, and as lists, with repeated words, repeated lines, symbols and few words."""
    rng = random.Random(7)
    for code, page in pages:
        words, lines = page.split(), page.split("\n")
        start, length = rng.randrange(len(words)), rng.randrange(1, 14)
        repeated = words[start : start + length] * rng.randrange(2, 30)
        yield code, page
        yield code, " ".join(words[: start + length] + repeated + words[start + length :])
        yield code, "\n".join(lines + [rng.choice(lines)] * rng.randrange(1, 9))
        yield code, "\n".join(rng.choice(("- ", "")) + word for word in words)
        yield code, " ".join(rng.choice(words[:9]) for _ in range(99))
        yield code, page.replace(" ", rng.choice((" # ", "... ", "-", " 1 ")), rng.randrange(100))


def of_datatrove(text: str, limits: Limits) -> list[str | None]:
    """The reasons of GopherRepetitionFilter, FineWebQualityFilter and GopherQualityFilter with these limits."""
    filters = (
        GopherRepetitionFilter(
            dup_line_frac=limits.dup_line_frac,
            dup_para_frac=limits.dup_para_frac,
            dup_line_char_frac=limits.dup_line_char_frac,
            dup_para_char_frac=limits.dup_para_char_frac,
            top_n_grams=limits.top_n_grams,  # type: ignore[arg-type]
            dup_n_grams=limits.dup_n_grams,  # type: ignore[arg-type]
            language=WORDS,
        ),
        FineWebQualityFilter(
            line_punct_thr=limits.line_punct_thr,
            short_line_thr=limits.short_line_thr,
            short_line_length=limits.short_line_length,
            char_duplicates_ratio=limits.char_duplicates_ratio,
            new_line_ratio=limits.new_line_ratio,
            language=WORDS,
        ),
        GopherQualityFilter(
            min_doc_words=limits.min_doc_words,
            max_doc_words=limits.max_doc_words,
            min_avg_word_length=limits.min_avg_word_length,
            max_avg_word_length=limits.max_avg_word_length,
            max_symbol_word_ratio=limits.max_symbol_word_ratio,
            max_bullet_lines_ratio=limits.max_bullet_lines_ratio,
            max_ellipsis_lines_ratio=limits.max_ellipsis_lines_ratio,
            max_non_alpha_words_ratio=limits.max_non_alpha_words_ratio,
            min_stop_words=limits.min_stop_words,
            stop_words=list(limits.stop_words),
            language=WORDS,
        ),
    )
    verdicts = []
    for step in filters:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            verdict = step.filter(Record(text=text, id=""))
        verdicts.append(None if verdict is True else verdict[1])
    return verdicts


def test_verdicts_and_reasons_are_datatroves_in_every_language(pages: list[tuple[str, str]]) -> None:
    step = WebFilters(WebQuality())
    reasons: Counter[str | None] = Counter()
    for code, text in spoilt(pages):
        if segmented(code):
            continue
        theirs = next((reason for reason in of_datatrove(text, limits_of(WebQuality(), code)) if reason), None)
        verdict = step.filter(Record(text=text, id="", metadata={"language": code}))
        assert (None if verdict is True else verdict[1]) == theirs, (code, text)
        reasons[theirs] += 1
    assert len(reasons) >= 12, reasons


def test_german_is_filtered_as_fineweb2_filters_it(pages: list[tuple[str, str]]) -> None:
    # configs/deu_Latn.yml and fineweb-2-pipeline.py of FineWeb2, by hand.
    german = GopherRepetitionFilter(
        dup_para_frac=0,
        dup_line_char_frac=0,
        dup_para_char_frac=0,
        dup_line_frac=0.263,
        top_n_grams=((2, 0.169), (3, 0.153), (4, 0.137)),  # type: ignore[arg-type]
        dup_n_grams=((5, 0.141), (6, 0.134), (7, 0.126), (8, 0.117), (9, 0.108), (10, 0.098)),  # type: ignore[arg-type]
        language=WORDS,
    )
    fineweb = FineWebQualityFilter(
        short_line_thr=999, char_duplicates_ratio=0.1, line_punct_thr=0.0, new_line_ratio=0.152, language=WORDS
    )
    gopher = GopherQualityFilter(
        max_avg_word_length=15,
        min_avg_word_length=0,
        stop_words=[
            "der",
            "und",
            "die",
            "in",
            "von",
            "im",
            "den",
            "des",
            "mit",
            "das",
            "er",
            "dem",
            "als",
            "wurde",
            "für",
        ],
        max_non_alpha_words_ratio=0.774,
        min_stop_words=2,
        language=WORDS,
    )
    step = WebFilters(WebQuality())
    reasons = set()
    for text in (text for code, text in spoilt(pages * 9) if code == "deu_Latn"):
        document = Record(text=text, id="", metadata={"language": "deu_Latn"})
        verdicts = (each.filter(document) for each in (german, fineweb, gopher))
        expected = next((verdict for verdict in verdicts if verdict is not True), True)
        assert step.filter(document) == expected, text
        reasons.add(expected if expected is True else expected[1])
    assert len(reasons) >= 6, reasons


# Few letters and short words make n-grams repeat, and different ones have equal letters.
TEXTS = st.lists(
    st.sampled_from(["a", "b", "aa", "ab", "ba", "\n", "\n\n", ".", "...", "#", "- ", "1", "der"]), min_size=1
)
FRACTIONS = st.floats(0, 0.6)


@settings(max_examples=300)
@given(
    parts=TEXTS,
    joint=st.sampled_from([" ", ""]),
    fractions=st.lists(FRACTIONS, min_size=4, max_size=4),
    top=st.lists(st.tuples(st.integers(2, 5), FRACTIONS), max_size=3),
    dup=st.lists(st.tuples(st.integers(2, 9), FRACTIONS), max_size=4),
    quality=st.lists(FRACTIONS, min_size=4, max_size=4),
    sizes=st.tuples(st.integers(0, 9), st.integers(0, 60), st.integers(0, 2), st.integers(0, 3), st.integers(0, 2)),
)
def test_any_text_with_any_limits_is_judged_as_datatrove_does(
    parts: list[str],
    joint: str,
    fractions: list[float],
    top: list[tuple[int, float]],
    dup: list[tuple[int, float]],
    quality: list[float],
    sizes: tuple[int, int, int, int, int],
) -> None:
    text = joint.join(parts)
    words = split_words(text)
    assume(words)
    min_words, max_words, min_length, max_length, min_stop_words = sizes
    limits = dataclasses.replace(
        limits_of(WebQuality(), "deu_Latn"),
        dup_line_frac=fractions[0],
        dup_para_frac=fractions[1],
        dup_line_char_frac=fractions[2],
        dup_para_char_frac=fractions[3],
        top_n_grams=tuple(top),
        dup_n_grams=tuple(dup),
        min_doc_words=min_words,
        max_doc_words=max_words,
        min_avg_word_length=min_length,
        max_avg_word_length=max_length,
        min_stop_words=min_stop_words,
        max_symbol_word_ratio=quality[0],
        max_bullet_lines_ratio=quality[1],
        max_ellipsis_lines_ratio=quality[2],
        max_non_alpha_words_ratio=quality[3],
    )
    repetition, _, gopher = of_datatrove(text, limits)
    assert gopher_repetition(text, words, limits) == repetition
    assert gopher_quality(text, words, limits, unspaced=False) == gopher


def test_stop_words_of_unspaced_languages_are_found_inside_the_text() -> None:
    limits = dataclasses.replace(limits_of(WebQuality(), "cmn_Hani"), min_doc_words=0)
    text = "这句话我没说出口，因为我觉得承诺是有重量的。"
    assert gopher_quality(text, split_words(text), limits, unspaced=True) is None
    assert gopher_quality(text, split_words(text), limits, unspaced=False) == "gopher_enough_stop_words"
