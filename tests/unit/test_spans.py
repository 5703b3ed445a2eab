"""Windows over long contexts, and answers found across them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from mmbert.errors import UserError
from mmbert.evaluation.suites.spans import QUESTION_TOKENS, Question, Span, Window, best_spans, windows
from tests.suite_data import tiny_tokenizer

VOCABULARY = ("river", "stone", "Asmara", "ኣስመራ", "1991", "東京", "über", "a", "ጋንታ", "blue")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer([" ".join(words) for words in itertools.permutations(VOCABULARY[:9], 3)])


def question(context: str, answer: str, start: int, asked: str = "where is it?") -> Question:
    return Question("q", asked, context, (answer,), (start,))


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=60),
    st.data(),
    st.integers(24, 60),
    st.integers(0, 8),
)
def test_logits_that_know_the_answer_give_the_answer(
    tokenizer: PreTrainedTokenizerFast, words: list[str], data: st.DataObject, max_length: int, stride: int
) -> None:
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first, min(first + 2, len(words) - 1)))
    answer = " ".join(words[first : last + 1])
    start = len(" ".join(words[:first])) + bool(first)
    asked = question(" ".join(words), answer, start)
    found = windows(tokenizer, [asked], max_length, stride)
    assert all(len(window.input_ids) <= max_length for window in found)
    covered = {n for window in found for begin, end in window.offsets.tolist() for n in range(max(begin, 0), end)}
    assert covered == set(range(len(asked.context)))
    logits = []
    for window in found:
        begin, end = np.full((2, len(window.input_ids)), -5.0, np.float32)
        if window.end:
            begin[window.start], end[window.end] = 5, 5
        logits.append((begin, end))
    whole = [window for window in found if window.end]
    if len(found) == 1:
        assert whole
    if whole:
        ((best, *_),) = best_spans([asked], found, logits, n_best=5, max_answer_tokens=60)
        assert best.text == answer


def test_the_best_spans_are_those_of_an_exhaustive_search(tokenizer: PreTrainedTokenizerFast) -> None:
    rng = np.random.default_rng(3)
    asked = question(" ".join(rng.choice(VOCABULARY, 50)), "river", 0)
    found = windows(tokenizer, [asked], 40, 6)
    assert len(found) > 2
    logits = [
        (rng.normal(size=len(w.input_ids)).astype(np.float32), rng.normal(size=len(w.input_ids)).astype(np.float32))
        for w in found
    ]
    expected: dict[str, float] = {}
    for window, (start, end) in zip(found, logits, strict=True):
        inside = [n for n, (begin, _) in enumerate(window.offsets) if begin >= 0]
        for i, j in itertools.product(inside, inside):
            text = asked.context[window.offsets[i, 0] : window.offsets[j, 1]].strip()
            if i <= j < i + 4 and text:
                expected[text] = max(expected.get(text, -99.0), float(start[i] + end[j]))
    (best,) = best_spans([asked], found, logits, n_best=20, max_answer_tokens=4)
    ranked = sorted(expected.items(), key=lambda item: (-item[1], item[0]))[:10]
    assert [span.text for span in best[:10]] == [text for text, _ in ranked]
    assert [span.score for span in best[:10]] == pytest.approx([score for _, score in ranked])


def test_no_answer_is_never_predicted() -> None:
    context = Question("q", "?", "  x", ("x",), (2,))
    window = Window(0, (2, 9, 1, 7, 7, 8, 1), np.array([[-1, -1]] * 3 + [[0, 1], [1, 2], [2, 3], [-1, -1]]))
    # The first token, where training puts what has no answer, and white space have the highest logits.
    high = np.array([9, 0, 0, 5, 4, 1, 0], np.float32)
    (spans,) = best_spans([context], [window], [(high, high)], n_best=1, max_answer_tokens=1)
    assert spans == [Span("", 0.0)]  # white space filled the one place
    (spans,) = best_spans([context], [window], [(high, high)], n_best=3, max_answer_tokens=1)
    assert spans == [Span("x", 2.0)]


def test_long_questions_are_cut_and_wrong_offsets_are_not_learnt(tokenizer: PreTrainedTokenizerFast) -> None:
    asked = question("blue river stone", "river", 5, asked="stone " * 200)
    (window,) = windows(tokenizer, [asked], QUESTION_TOKENS + 40, 4)
    before = int(np.flatnonzero(window.offsets[:, 0] >= 0)[0])
    assert before == QUESTION_TOKENS + 2
    assert tokenizer.decode(window.input_ids[window.start : window.end + 1]).strip() == "river"
    wrong = question("blue river stone", "river", 4)
    assert not wrong.aligned
    assert windows(tokenizer, [wrong], 60, 4)[0].end == 0


@pytest.mark.parametrize(("max_length", "stride"), [(20, 40), (8, 1)])
def test_windows_without_room_are_the_users_error(
    tokenizer: PreTrainedTokenizerFast, max_length: int, stride: int
) -> None:
    asked = question("blue river stone " * 20, "river", 5, asked="blue stone " * 3)
    with pytest.raises(UserError, match=rf"max_length {max_length}, stride {stride}: .*set max_length to more than"):
        windows(tokenizer, [asked], max_length, stride)
