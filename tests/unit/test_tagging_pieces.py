"""Sentences cut for tagging, and what F1 over them is made of."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import f1_score
from transformers import PreTrainedTokenizerFast

from mmbert.evaluation.suites.tagging import entity_counts, pieces
from tests.suite_data import tiny_tokenizer

NER = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
POS = ("NOUN", "VERB", "INTJ", "SCONJ", "SYM", "X", "PROPN", "PRON")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer(["Lena lives in Asmara", "Paul saw Berlin", "አስመራ"])


@settings(max_examples=50)
@given(
    st.lists(
        st.lists(st.sampled_from(["Lena", "Asmara", "über", "", "東京", "x" * 40, "in"]), max_size=12), max_size=4
    ),
    st.integers(8, 30),
)
def test_every_word_has_a_token_and_its_tag(
    tokenizer: PreTrainedTokenizerFast, sentences: list[list[str]], max_length: int
) -> None:
    found = pieces(tokenizer, sentences, max_length)
    for number, sentence in enumerate(sentences):
        own = [piece for piece in found if piece.sentence == number]
        assert all(len(piece.input_ids) <= max_length for piece in own)
        assert all((piece.input_ids[0], piece.input_ids[-1]) == (2, 1) for piece in own)
        tags = list(range(len(sentence)))
        labels = [piece.labels(tags) for piece in own]
        assert [tag for row in labels for tag in row if tag != -100] == tags
        for piece, row in zip(own, labels, strict=True):
            for first, tag in zip(piece.firsts, [tag for tag in row if tag != -100], strict=True):
                ids = tokenizer(sentence[tag], add_special_tokens=False)["input_ids"]
                expected = ids[0] if 0 < len(ids) <= max_length - 2 else tokenizer.unk_token_id
                assert piece.input_ids[first] == expected


@given(st.data(), st.sampled_from([NER, POS]), st.lists(st.integers(1, 8), min_size=1, max_size=5))
def test_summed_counts_give_the_f1_of_seqeval(data: st.DataObject, tags: tuple[str, ...], lengths: list[int]) -> None:
    def drawn() -> list[list[str]]:
        drawn = [data.draw(st.lists(st.sampled_from(tags), min_size=n, max_size=n)) for n in lengths]
        # At a sentence's begin, seqeval confounds X with what parts sentences.
        return [["NOUN", *rest] if first == "X" else [first, *rest] for first, *rest in drawn]

    truth, predicted = drawn(), drawn()
    part, whole = np.sum([entity_counts(t, p) for t, p in zip(truth, predicted, strict=True)], axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = f1_score(truth, predicted, zero_division=0)
    assert (part / whole if whole else 0.0) == pytest.approx(expected)


def test_a_sentence_that_begins_with_x_counts_by_itself() -> None:
    assert entity_counts(["X", "NOUN"], ["X", "NOUN"]) == (4, 4)
    assert entity_counts(["X", "NOUN"], ["NOUN", "NOUN"]) == (0, 3)
