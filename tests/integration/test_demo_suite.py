"""The suite `demo` on the demo sources' real held-out text, with small untrained and briefly trained models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from mmbert.data.documents import TRAIN, Document, document_files, read_documents, write_documents
from mmbert.data.readers import language_group
from mmbert.data.tokenizer import TOKENIZER_FILE, train_bpe
from mmbert.errors import UserError
from mmbert.evaluation.embedding import embed
from mmbert.evaluation.heldout import by_language, read_held_out
from mmbert.evaluation.scores import Score
from mmbert.evaluation.suites.demo import evaluate_demo
from mmbert.model.config import EncoderConfig
from mmbert.model.head import MaskedLanguageModel
from mmbert.model.initialization import new_model
from mmbert.recipe.schema import Curation, EldSource, Evaluation, Model, UdhrSource
from tests.curating import curate

# A twentieth of the languages keeps these tests short; the code is the same.
GROUPS = 20
SETTINGS = Evaluation(
    bits_per_byte_bytes_per_language=600,
    bootstrap_samples=300,
    retrieval_languages=12,
    language_id_sentences=20,
    intent_languages=2,
    intent_sentences=60,
)
SHAPE = {"vocab_size": 1024, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4}
SHAPE |= {"num_attention_heads": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("documents")
    curate(
        {"eld": EldSource(kind="eld"), "udhr": UdhrSource(kind="udhr")},
        Curation(groups=GROUPS),
        [],
        language_group("eng_Latn", GROUPS),
        out,
    )
    return out


@pytest.fixture(scope="module")
def tokenizer(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    out = tmp_path_factory.mktemp("tokenizer")
    train_bpe([folder], Model(**SHAPE), 30_000, out)
    return Tokenizer.from_file(str(out / TOKENIZER_FILE))


@pytest.fixture(scope="module")
def untrained() -> MaskedLanguageModel:
    return new_model(EncoderConfig(**SHAPE), seed=3)


def evaluate(model: MaskedLanguageModel, tokenizer: Tokenizer, folder: Path, new: tuple[str, ...] = ()) -> list[Score]:
    plan = {"seed": 17, "mask_token_id": 4, "max_seq_len": 128}
    return evaluate_demo(model, tokenizer, [folder], SETTINGS, new_languages=new, **plan)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def scores(untrained: MaskedLanguageModel, tokenizer: Tokenizer, folder: Path) -> list[Score]:
    new = tuple(by_language(read_held_out([folder])))[:3]
    return evaluate(untrained, tokenizer, folder, new)


def find(scores: list[Score], task: str, metric: str, language: str | None = None) -> Score:
    (score,) = [s for s in scores if (s.task, s.metric, s.language) == (task, metric, language)]
    return score


def test_every_task_is_scored_with_an_interval(scores: list[Score]) -> None:
    overall = {(s.task, s.metric) for s in scores if s.language is None}
    assert overall == {
        ("masked_bits_per_byte", "bits_per_byte"),
        ("masked_bits_per_byte_new_languages", "bits_per_byte"),
        ("article_retrieval", "accuracy"),
        ("language_identification", "accuracy"),
        ("intent_classification", "accuracy"),
        ("intent_classification", "macro_f1"),
    }
    for score in scores:
        assert np.isfinite([score.value, score.low, score.high]).all()
        assert score.low <= score.high
        assert score.n > 0
    assert json.loads(json.dumps([s.to_json() for s in scores]))


def test_bits_per_byte_stand_for_every_held_out_language(scores: list[Score], folder: Path) -> None:
    languages = set(by_language(read_held_out([folder])))
    assert {s.language for s in scores if s.task == "masked_bits_per_byte" and s.language} == languages
    assert sum(bool(s.settings.get("new")) for s in scores) == 3


def test_an_untrained_model_is_near_chance_where_the_task_gives_nothing_away(scores: list[Score]) -> None:
    retrieval = find(scores, "article_retrieval", "accuracy")
    assert retrieval.chance == pytest.approx(0.1)
    assert retrieval.low < 0.25
    # Ten bits a token; hardly any token is as long as four bytes.
    assert 2 < find(scores, "masked_bits_per_byte", "bits_per_byte").value < 10


def test_scores_depend_on_nothing_but_model_text_and_settings(
    scores: list[Score], untrained: MaskedLanguageModel, tokenizer: Tokenizer, folder: Path
) -> None:
    again = evaluate(untrained, tokenizer, folder)
    kept = {(s.task, s.metric, s.language): s.value for s in scores if "new_languages" not in s.task}
    assert {(s.task, s.metric, s.language): s.value for s in again} == kept


def test_units_give_the_value_that_they_are_the_units_of(scores: list[Score]) -> None:
    with_units = [s for s in scores if s.units is not None]
    assert {s.task for s in with_units} >= {"masked_bits_per_byte", "language_identification"}
    for score in with_units:
        assert score.units is not None
        parts, wholes = score.units.parts, score.units.wholes or (1.0,) * len(score.units.parts)
        assert (len(parts), sum(parts) / sum(wholes)) == (score.n, pytest.approx(score.value))


def test_training_lowers_the_bits_per_byte(scores: list[Score], tokenizer: Tokenizer, folder: Path) -> None:
    model = new_model(EncoderConfig(**SHAPE), seed=3)
    texts = [d.text for f in document_files([folder], TRAIN) for d in list(read_documents(f.path))[:30]]
    rows = [torch.tensor(e.ids[:48]) for e in tokenizer.encode_batch(texts)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for start in range(0, 30 * 16, 16):
        batch = [rows[37 * i % len(rows)] for i in range(start, start + 16)]
        ids = torch.cat(batch)
        bounds = torch.tensor([0, *np.cumsum([len(r) for r in batch])], dtype=torch.int32)
        hidden = torch.nonzero((torch.rand(len(ids), generator=generator) < 0.3) & (ids > 4))[:, 0]
        masked = ids.index_fill(0, hidden, 4)
        loss = model(masked, bounds, 48, hidden, ids[hidden]).total / len(hidden)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    before = {s.language: s.value for s in scores if s.task == "masked_bits_per_byte"}
    after = {s.language: s.value for s in evaluate(model, tokenizer, folder) if s.task == "masked_bits_per_byte"}
    assert after[None] < before[None] - 0.2
    assert np.mean([after[code] < before[code] for code in before]) > 0.9


def test_embeddings_do_not_depend_on_batches_nor_on_other_texts(
    untrained: MaskedLanguageModel, tokenizer: Tokenizer
) -> None:
    texts = ["All human beings are born free.", "", "Alle Menschen sind frei und gleich an Würde " * 9]
    together = embed(untrained, tokenizer, texts, 64)
    apart = np.concatenate([embed(untrained, tokenizer, [t], 64, batch_tokens=1) for t in texts])
    assert together.shape == (3, 64)
    np.testing.assert_allclose(together, apart, atol=1e-5)
    assert not together[1].any()


def test_embedding_leaves_the_model_as_it_was(untrained: MaskedLanguageModel, tokenizer: Tokenizer) -> None:
    before = list(untrained.state_dict())
    untrained.train()
    embed(untrained, tokenizer, ["one text"], 64)
    assert untrained.training
    assert list(untrained.state_dict()) == before
    assert len(untrained.bert.encoder.layers) == 4


def test_a_run_on_other_text_goes_without_the_demos_own_tasks(
    untrained: MaskedLanguageModel, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    document = Document("a", "Some text of one language, long enough. " * 20, "eng_Latn", "mine")
    write_documents(tmp_path / "heldout" / "mine" / "eng_Latn" / "00000.jsonl.zst", [document])
    tasks = {score.task for score in evaluate(untrained, tokenizer, tmp_path)}
    assert tasks == {"masked_bits_per_byte", "intent_classification"}


def test_a_folder_without_held_out_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no held-out documents"):
        read_held_out([tmp_path])
