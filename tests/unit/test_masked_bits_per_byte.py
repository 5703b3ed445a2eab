"""Masked bits per byte: which words are hidden, and what they cost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from mmbert.data.documents import Document
from mmbert.evaluation.masked_bits_per_byte import (
    LanguageBits,
    bits_interval,
    masked_bits_per_byte,
    total_bits_per_byte,
)
from mmbert.evaluation.words import LONGEST, PIECE, chosen_words, words
from mmbert.model.config import EncoderConfig
from mmbert.model.head import MaskedLanguageModel
from mmbert.model.initialization import new_model

TEXTS = {
    "eng_Latn": "Everyone has the right to take part in the government of his country, directly or freely. " * 3,
    "deu_Latn": "Jeder hat das Recht, an der Gestaltung der öffentlichen Angelegenheiten mitzuwirken. " * 3,
    "tha_Thai": "ทุกคนมีสิทธิที่จะมีส่วนร่วมในรัฐบาลแห่งประเทศของตน" * 3,
    "cmn_Hani": "人人有直接或通过自由选择的代表参与治理本国的权利。人民的意志是政府权力的基础。" * 3,
    "amh_Ethi": "እያንዳንዱ ሰው በአገሩ መንግሥት በቀጥታ ወይም በነጻ በተመረጡ ወኪሎች የመካፈል መብት አለው። " * 3,
}
MASK = 4


def documents(texts: Iterable[tuple[str, str]] = tuple(TEXTS.items()), copies: int = 4) -> dict[str, list[Document]]:
    return {code: [Document(f"{code}-{i}", text, code, "test") for i in range(copies)] for code, text in texts}


def trained_tokenizer(vocabulary: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS.values(), trainer)
    template = [("<bos>", 2), ("<eos>", 1)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=template)
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return trained_tokenizer(400)


@pytest.fixture(scope="module")
def model() -> MaskedLanguageModel:
    config = EncoderConfig(
        vocab_size=400, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=2,
        sliding_window=16,
    )  # fmt: skip
    return new_model(config, seed=1)


def measure(
    model: MaskedLanguageModel, tokenizer: Tokenizer, found: dict[str, list[Document]] | None = None, **changes: int
) -> dict[str, LanguageBits]:
    plan = {"mask_token_id": MASK, "seed": 17, "max_seq_len": 512, "max_bytes": 10**6, **changes}
    return masked_bits_per_byte(model, tokenizer, found or documents(), **plan)


def test_words_are_unicodes_without_spaces_and_punctuation() -> None:
    text = "It's 3.5 km, naïve – aujourd’hui!"
    assert [text[a:b] for a, b in words(text)] == ["It's", "3.5", "km", "naïve", "aujourd’hui"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("人人有直接或通過", ["人人有直", "接或通過"]),
        ("すべて人は、教育を", ["すべて人", "は", "教育を"]),
        ("ທຸກຄົນມີສິດ", ["ທຸກຄົນ", "ມີສິດ"]),
        ("모든 사람은", ["모든", "사람은"]),
        ("ཐམས་ཅད", ["ཐམས", "ཅད"]),
    ],
)
def test_scripts_without_spaces_are_cut_into_short_pieces(text: str, expected: list[str]) -> None:
    assert [text[a:b] for a, b in words(text)] == expected


@given(st.text(st.characters(codec="utf-8"), max_size=120) | st.sampled_from(sorted(TEXTS.values())))
@settings(max_examples=200)
def test_words_are_ordered_disjoint_and_never_a_whole_sentence(text: str) -> None:
    spans = words(text)
    assert all(a < b for a, b in spans)
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(spans))
    assert all(a >= 0 and b <= len(text) for a, b in spans)
    if text in TEXTS.values():
        longest = PIECE if text in (TEXTS["tha_Thai"], TEXTS["cmn_Hani"]) else LONGEST
        # A character may be several code points, a Thai one with its vowel and tone three.
        assert max(b - a for a, b in spans) <= 3 * longest


def test_fifteen_percent_of_the_words_are_chosen_by_document_and_seed_alone() -> None:
    text = " ".join(f"word{i}" for i in range(5000))
    chosen = chosen_words(text, "doc", 17, 0.15)
    assert len(chosen) == pytest.approx(750, abs=80)
    assert chosen == chosen_words(text, "doc", 17, 0.15)
    assert chosen != chosen_words(text, "other", 17, 0.15)
    assert chosen != chosen_words(text, "doc", 18, 0.15)
    # What follows a word does not change whether it is chosen.
    assert chosen_words(text[:599], "doc", 17, 0.15) == [span for span in chosen if span[1] <= 599]


def test_every_tokenizer_is_asked_for_the_same_words(model: MaskedLanguageModel, tokenizer: Tokenizer) -> None:
    other = trained_tokenizer(300)
    first, second = measure(model, tokenizer), measure(model, other)
    assert {c: [(d.id, d.bytes, d.words) for d in r.documents] for c, r in first.items()} == {
        c: [(d.id, d.bytes, d.words) for d in r.documents] for c, r in second.items()
    }


def test_a_model_that_knows_nothing_pays_the_whole_vocabulary_for_each_token(
    model: MaskedLanguageModel, tokenizer: Tokenizer
) -> None:
    ignorant = MaskedLanguageModel(model.config)
    for parameter in ignorant.parameters():
        torch.nn.init.zeros_(parameter)
    for row in measure(ignorant, tokenizer).values():
        for document, source in zip(row.documents, documents()[row.language], strict=False):
            assert document.id == source.id
            spans = chosen_words(source.text, source.id, 17, 0.15)
            offsets = tokenizer.encode(source.text, add_special_tokens=False).offsets
            tokens = sum(any(a < end and start < b for a, b in spans) for start, end in offsets)
            assert document.bits == pytest.approx(tokens * math.log2(400))
            assert document.bytes == sum(len(source.text[a:b].encode()) for a, b in spans)


def test_bits_are_those_of_a_plain_computation(model: MaskedLanguageModel, tokenizer: Tokenizer) -> None:
    """One document at a time, all logits, masks placed token by token."""
    source = documents()["deu_Latn"][1]
    spans = chosen_words(source.text, source.id, 17, 0.15)
    encoding = tokenizer.encode(source.text)
    truth = torch.tensor(encoding.ids)
    hidden = [
        i
        for i, ((start, end), special) in enumerate(zip(encoding.offsets, encoding.special_tokens_mask, strict=True))
        if not special and any(a < end and start < b for a, b in spans)
    ]
    masked = truth.clone()
    masked[hidden] = MASK
    model.eval()
    with torch.no_grad():
        states = model.encode(masked, torch.tensor([0, len(masked)], dtype=torch.int32), len(masked))
        log_p = model.masked_logits(states, torch.arange(len(masked))).log_softmax(-1)
    expected = -sum(float(log_p[i, truth[i]]) for i in hidden) / math.log(2)
    found = {d.id: d.bits for d in measure(model, tokenizer)["deu_Latn"].documents}
    assert found[source.id] == pytest.approx(expected, rel=1e-5)


def test_what_is_hidden_cannot_be_seen(model: MaskedLanguageModel, tokenizer: Tokenizer) -> None:
    """A model that predicts the token it is given knows no hidden token: all it is given there is the mask."""
    parrot = MaskedLanguageModel(model.config)
    parrot.load_state_dict(model.state_dict())
    with torch.no_grad():
        parrot.decoder.bias.zero_()
        parrot.decoder.bias[MASK] = 50.0
    for row in measure(parrot, tokenizer).values():
        assert all(d.bits > 40 for d in row.documents)
    with torch.no_grad():
        parrot.decoder.bias[MASK] = 0.0
        parrot.decoder.bias[5:] = 0.0
    assert total_bits_per_byte(measure(parrot, tokenizer).values()) > 2


def test_batches_do_not_matter(model: MaskedLanguageModel, tokenizer: Tokenizer) -> None:
    one, many = measure(model, tokenizer, batch_tokens=1), measure(model, tokenizer, batch_tokens=10**6)
    for code, row in one.items():
        assert [d.bits for d in row.documents] == pytest.approx([d.bits for d in many[code].documents], rel=1e-5)


def test_a_short_context_hides_the_same_words_of_a_long_document(
    model: MaskedLanguageModel, tokenizer: Tokenizer
) -> None:
    long, short = measure(model, tokenizer), measure(model, tokenizer, max_seq_len=16)
    assert {c: (r.bytes, r.words) for c, r in long.items()} == {c: (r.bytes, r.words) for c, r in short.items()}
    assert all(row.bits > 0 for row in short.values())


def test_the_budget_takes_whole_documents_and_at_least_one(model: MaskedLanguageModel, tokenizer: Tokenizer) -> None:
    size = len(TEXTS["eng_Latn"].encode())
    english = documents([("eng_Latn", TEXTS["eng_Latn"])])
    for budget, expected in ((1, 1), (2 * size, 2), (2 * size + 1, 2), (10**6, 4)):
        assert len(measure(model, tokenizer, english, max_bytes=budget)["eng_Latn"].documents) == expected


def test_the_interval_holds_the_value_and_the_models_mode_stays(
    model: MaskedLanguageModel, tokenizer: Tokenizer
) -> None:
    model.train()
    found = measure(model, tokenizer)
    assert model.training
    low, high = bits_interval(found.values(), 500, 0)
    assert low <= total_bits_per_byte(found.values()) <= high
    assert total_bits_per_byte(found.values()) == pytest.approx(
        np.sum([r.bits for r in found.values()]) / np.sum([r.bytes for r in found.values()])
    )
    again = measure(model, tokenizer)
    assert {c: r.bits for c, r in again.items()} == {c: r.bits for c, r in found.items()}
