"""Exact match and F1 against torchmetrics and against values worked out by hand from the official definitions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.text import squad

from mmbert.evaluation.suites.answers import Normalise, exact_match, f1, mlqa_words, squad_words, tiquad_words

WORDS = st.lists(st.sampled_from(["the", "The", "a", "cat", "Cat,", "sat.", "on", "mat", "(red)", "1,000"]), max_size=6)


@given(WORDS, st.lists(WORDS, min_size=1, max_size=3))
def test_squad_scores_are_those_of_torchmetrics(words: list[str], accepted: list[list[str]]) -> None:
    answer, references = " ".join(words), [" ".join(reference) for reference in accepted]
    found = squad_words(answer)
    theirs = squad(
        [{"prediction_text": answer, "id": "1"}],
        [{"answers": {"answer_start": [0] * len(references), "text": references}, "id": "1"}],
    )
    ours = [squad_words(reference) for reference in references]
    assert exact_match(found, ours) == theirs["exact_match"] / 100
    # torchmetrics has SQuAD 2's rule for two empty answers, v1.1 gives them 0.
    if found and all(ours):
        assert f1(found, ours) == pytest.approx(float(theirs["f1"]) / 100)


@pytest.mark.parametrize(
    ("normalise", "language", "answer", "words"),
    [
        (squad_words, "de", "Der Hund, der «the» bellt!", ["der", "hund", "der", "«", "»", "bellt"]),
        (mlqa_words, "de", "Der Hund, der «the» bellt!", ["hund", "the", "bellt"]),
        (mlqa_words, "en", "The end of an era", ["end", "of", "era"]),
        (mlqa_words, "es", "¿Las casas de la abuela?", ["casas", "de", "abuela"]),
        (mlqa_words, "vi", "những con mèo của tôi", ["con", "mèo", "tôi"]),
        # The official pattern takes the article out of the midst of a word, too.
        (mlqa_words, "ar", "السلام على العالم", ["سلام", "على", "ع", "م"]),
        (mlqa_words, "hi", "भारत, का।", ["भारत", "का"]),
        (mlqa_words, "zh", "在1998年，IBM 公司", ["在", "1998", "年", "ibm", "公", "司"]),
        (tiquad_words, "ti", "ኣብ ኣስመራ፡ ብ1991።", ["ኣስመራ", "ብ1991"]),
        (tiquad_words, "ti", "the well-known", ["well-known"]),
    ],
)
def test_words_are_those_of_the_official_evaluation(
    normalise: Normalise, language: str, answer: str, words: list[str]
) -> None:
    assert normalise(answer, language) == words


def test_f1_counts_repetitions_and_takes_the_best_reference() -> None:
    # "new new york" and "new york": 2 in common, precision 2/3, recall 1.
    assert f1(["new", "new", "york"], [["boston"], ["new", "york"]]) == pytest.approx(0.8)
    assert f1(["paris"], [["london"], ["rome", "italy"]]) == 0
    assert exact_match(["rome", "italy"], [["london"], ["rome", "italy"]]) == 1
    assert exact_match(["italy", "rome"], [["rome", "italy"]]) == 0
