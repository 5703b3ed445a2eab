"""The suites that go through mteb, on small files in the hub's schemas, after a fine-tuning of seconds."""

from __future__ import annotations

import io
import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from datasets import Dataset
from scipy.stats import spearmanr
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
from transformers import AutoModel, AutoTokenizer

from mmbert.errors import UserError
from mmbert.evaluation.published import published_tables, with_columns
from mmbert.evaluation.scores import Score
from mmbert.evaluation.suites import contrastive, make_mteb_tasks, mteb_tasks
from mmbert.evaluation.suites.base import ModelFolder, Setup
from mmbert.evaluation.suites.data import DataAccess
from mmbert.evaluation.suites.registry import get_suite
from mmbert.evaluation.suites.runner import Options, run_tasks
from tests.scores import card
from tests.suite_data import tiny_model, write_data_set

SUBJECTS = ("cats", "storms", "bread", "violins", "planets")
VERBS = ("sleep", "rise", "travel", "vanish", "change", "sing")
RNG = random.Random(3)
TUNING = {
    "tuning_triplets": 16,
    "tuning_held_out": 4,
    "tuning_batch_size": 4,
    "tuning_mini_batch_size": 2,
    "tuning_save_steps": 1,
    "learning_rates": [1e-3],
}


def sentence(subject: int) -> str:
    rest = " ".join(RNG.choices(VERBS, k=4))
    return f"{SUBJECTS[subject]} {rest} {RNG.randrange(1000)}"


def retrieval_data(documents: int, queries: int, *, ranked: bool) -> dict[str, dict[str, Dataset]]:
    """BEIR's layout in mteb's repositories: corpus, queries, relevance, and what there is to rerank."""
    corpus = [{"_id": f"d{i}", "title": "", "text": sentence(i % 5)} for i in range(documents)]
    asked = [{"_id": f"q{i}", "text": sentence(i % 5)} for i in range(queries)]
    relevant = [(q, d) for q in range(queries) for d in range(documents) if d % 5 == q % 5 and d % 3]
    qrels = [{"query-id": f"q{q}", "corpus-id": f"d{d}", "score": 1 + d % 2} for q, d in relevant]
    subsets = {
        "corpus": {"corpus": Dataset.from_list(corpus)},
        "queries": {"queries": Dataset.from_list(asked)},
        "default": {"test": Dataset.from_list(qrels)},
    }
    if ranked:
        rows = [{"query-id": f"q{q}", "corpus-ids": [f"d{d}" for d in range(documents)]} for q in range(queries)]
        subsets["top_ranked"] = {"test": Dataset.from_list(rows)}
    return subsets


def pairs(n: int) -> list[tuple[str, str, int]]:
    chosen = [(RNG.randrange(5), RNG.randrange(5)) for _ in range(n)]
    return [(sentence(a), sentence(b), int(a == b)) for a, b in chosen]


def labelled(n: int) -> Dataset:
    return Dataset.from_list(
        [{"text": sentence(i % 3), "label": i % 3, "label_text": SUBJECTS[i % 3]} for i in range(n)]
    )


def data_sets() -> dict[str, dict[str, dict[str, Dataset]]]:
    """By repository; the columns are those of the data sets' cards, which `Task.data` names."""
    compared = pairs(30)
    sts = [
        {"sentence1": a, "sentence2": b, "score": 5 * same - 0.01 * i * same} for i, (a, b, same) in enumerate(compared)
    ]
    in_one_row = {"sent1": [a for a, _, _ in compared], "sent2": [b for _, b, _ in compared]}
    bitext = [{"sentence1": sentence(i % 5), "sentence2": sentence(i % 5)} for i in range(12)]
    clusters = [{"sentences": [sentence(i % 4) for i in range(40)], "labels": [str(i % 4) for i in range(40)]}]
    summaries = [
        {
            "text": sentence(i % 5),
            "human_summaries": [sentence(i % 5) for _ in range(3)],
            "machine_summaries": [sentence(j) for j in range(4)],
            "relevance": [float(1 + (i + j) % 4) for j in range(4)],
        }
        for i in range(6)
    ]
    many = Dataset.from_list([{"text": sentence(i % 3), "label": [i % 3] if i % 4 else []} for i in range(90)])
    triplets = [
        {"query": sentence(i % 5), "positive": sentence(i % 5), "negative": sentence((i + 1) % 5)} for i in range(30)
    ]
    return {
        contrastive.REPO: {"triplet-hard": {"train": Dataset.from_list(triplets)}},
        "mteb/stsbenchmark-sts": {"default": {"test": Dataset.from_list(sts)}},
        "mteb/twittersemeval2015-pairclassification": {
            "default": {"test": Dataset.from_list([{**in_one_row, "labels": [same for _, _, same in compared]}])}
        },
        "mteb/banking77": {"default": {"train": labelled(60), "test": labelled(24)}},
        "mteb/twentynewsgroups-clustering": {"default": {"test": Dataset.from_list(clusters)}},
        "mteb/scidocs": retrieval_data(30, 8, ranked=False),
        "mteb/AskUbuntuDupQuestions": retrieval_data(12, 6, ranked=True),
        "mteb/summeval": {"default": {"test": Dataset.from_list(summaries)}},
        "mteb/DiaBlaBitextMining": {s: {"test": Dataset.from_list(bitext)} for s in ("fr-en", "en-fr")},
        "mteb/KorHateSpeechMLClassification": {"default": {"train": many, "test": many.select(range(30))}},
        "CoIR-Retrieval/cosqa": retrieval_data(20, 5, ranked=False),
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataAccess:
    root = tmp_path_factory.mktemp("mirror")
    for repo, subsets in data_sets().items():
        write_data_set(root, repo, subsets)
    return DataAccess(root)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return tiny_model(tmp_path_factory.mktemp("model"), [sentence(i % 5) for i in range(200)])


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def run(suite: str, tasks: tuple[str, ...], model: ModelFolder, data: DataAccess, cache: Path) -> list[Score]:
    options = Options(tasks=tasks, seeds=(17,), bootstrap_samples=50, changes=TUNING, device="cpu")
    return run_tasks(model, get_suite(suite), data=data, cache=cache, options=options, say=lambda _: None)


def overall(scores: list[Score]) -> dict[str, Score]:
    return {score.task: score for score in scores if score.language is None}


@pytest.fixture(scope="module")
def english(model: ModelFolder, data: DataAccess, cache: Path) -> dict[str, Score]:
    tasks = ("STSBenchmark", "TwitterSemEval2015", "Banking77Classification", "TwentyNewsgroupsClustering.v2")
    tasks += ("SCIDOCS", "AskUbuntuDupQuestions", "SummEvalSummarization.v2")
    return overall(run("mteb-english", tasks, model, data, cache))


def tuned_folder(cache: Path, model: ModelFolder) -> Path:
    (folder,) = (p for p in (cache / model.digest[:32] / "shared").iterdir() if p.is_dir())
    return folder


def embedded(folder: Path, texts: list[str]) -> npt.NDArray[np.float64]:
    """Mean-pooled by plain transformers, one text at a time: [texts, width], of unit length."""
    tokenizer, encoder = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    with torch.inference_mode():
        states = [encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state[0] for text in texts]
    found = np.stack([state.mean(0).double().numpy() for state in states])
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True))


def test_every_kind_of_task_is_scored(english: dict[str, Score]) -> None:
    kinds = {name: (score.metric, score.settings["resampled"]) for name, score in english.items()}
    assert kinds == {
        "STSBenchmark": ("cosine_spearman", "pairs"),
        "TwitterSemEval2015": ("max_ap", "pairs"),
        "Banking77Classification": ("accuracy", "experiments"),
        "TwentyNewsgroupsClustering.v2": ("v_measure", "clusterings"),
        "SCIDOCS": ("ndcg_at_10", "queries"),
        "AskUbuntuDupQuestions": ("map_at_1000", "queries"),
        "SummEvalSummarization.v2": ("cosine_spearman", "subsets"),
    }
    for score in english.values():
        assert -1 <= score.low <= score.value <= score.high <= 1
        assert (score.seeds, len(score.data_revision)) == ((17,), 64)
    assert english["SCIDOCS"].n == 8
    assert english["STSBenchmark"].n == 30
    assert english["SCIDOCS"].low < english["SCIDOCS"].high


def test_sts_equals_an_independent_computation(
    english: dict[str, Score], model: ModelFolder, data: DataAccess, cache: Path
) -> None:
    task = get_suite("mteb-english").task("STSBenchmark")
    rows = data.load(task.data[0], "default", "test")
    left, right = (embedded(tuned_folder(cache, model), list(rows[c])) for c in ("sentence1", "sentence2"))
    expected = spearmanr((left * right).sum(1), rows["score"])[0]
    assert english["STSBenchmark"].value == pytest.approx(expected, abs=1e-4)


def test_retrieval_equals_an_independent_computation(
    english: dict[str, Score], model: ModelFolder, data: DataAccess, cache: Path
) -> None:
    source = get_suite("mteb-english").task("SCIDOCS").data[0]
    corpus, queries = (data.load(source, name, name) for name in ("corpus", "queries"))
    gains: dict[tuple[str, str], int] = {
        (row["query-id"], row["corpus-id"]): row["score"] for row in data.load(source, "default", "test")
    }
    folder = tuned_folder(cache, model)
    similarity = embedded(folder, list(queries["text"])) @ embedded(folder, list(corpus["text"])).T
    found = []
    for query, row in zip(queries["_id"], similarity, strict=True):
        ranked = [gains.get((query, corpus["_id"][i]), 0) for i in np.argsort(-row)[:10]]
        ideal = sorted((gain for (q, _), gain in gains.items() if q == query), reverse=True)[:10]
        discounted, best = (sum(g / math.log2(i + 2) for i, g in enumerate(gained)) for gained in (ranked, ideal))
        found.append(discounted / best)
    assert english["SCIDOCS"].value == pytest.approx(np.mean(found), abs=1e-4)


def test_languages_and_columns_of_the_multilingual_suite(model: ModelFolder, data: DataAccess, cache: Path) -> None:
    tasks = ("DiaBlaBitextMining", "KorHateSpeechMLClassification")
    scores = run("mteb-multilingual", tasks, model, data, cache)
    bitext = {s.language: s for s in scores if s.task == "DiaBlaBitextMining"}
    assert set(bitext) == {None, "eng_Latn", "fra_Latn"}
    assert 0 <= bitext[None].low <= bitext[None].value <= bitext[None].high <= 1
    assert [s.language for s in scores if s.task == "KorHateSpeechMLClassification"] == [None]


def test_the_suites_share_one_fine_tuned_model(
    english: dict[str, Score], model: ModelFolder, data: DataAccess, cache: Path
) -> None:
    before = tuned_folder(cache, model).stat().st_mtime_ns
    code = overall(run("coir", ("CosQA",), model, data, cache))["CosQA"]
    assert tuned_folder(cache, model).stat().st_mtime_ns == before
    assert 0 < code.value <= 1
    assert code.settings["learning_rate"] == english["SCIDOCS"].settings["learning_rate"] == 1e-3


def test_data_that_are_missing_or_of_another_schema_are_told(model: ModelFolder, data: DataAccess, cache: Path) -> None:
    with pytest.raises(UserError, match=r"mteb/biosses-sts.*hf download mteb/biosses-sts"):
        run("mteb-english", ("BIOSSES",), model, data, cache)
    assert data.root is not None
    write_data_set(data.root, "mteb/sickr-sts", {"default": {"test": Dataset.from_dict({"first": ["a"], "b": ["c"]})}})
    with pytest.raises(UserError, match=r"SICK-R: mteb/sickr-sts: .*its files should be those of https"):
        run("mteb-english", ("SICK-R",), model, data, cache)


def setup_of(tmp_path: Path, data: DataAccess, **changes: Any) -> Setup:
    settings = {**mteb_tasks.SETTINGS, **TUNING, **changes}
    return Setup(data, settings, (17,), 50, tmp_path / "task", tmp_path / "scratch", "cpu")


def test_an_interrupted_fine_tuning_goes_on_to_the_same_weights(
    model: ModelFolder, data: DataAccess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = contrastive.fine_tuned(model, setup_of(tmp_path / "whole", data), 17)
    calls = 0
    forward = CachedMultipleNegativesRankingLoss.forward

    def killed_at_the_third_batch(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(CachedMultipleNegativesRankingLoss, "forward", killed_at_the_third_batch)
    again = setup_of(tmp_path / "again", data)
    with pytest.raises(KeyboardInterrupt):
        contrastive.fine_tuned(model, again, 17)
    assert not [p for p in again.shared.iterdir() if p.is_dir() and not p.name.startswith(".")]
    resumed, _ = contrastive.fine_tuned(model, again, 17)
    assert calls == 5  # two of the four batches were not run again
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert [p.name for p in again.shared.iterdir() if p.is_dir()] == [resumed.name]


def test_a_sweep_takes_the_rate_that_orders_most_held_out_triplets_right(
    model: ModelFolder, data: DataAccess, tmp_path: Path
) -> None:
    setup = setup_of(tmp_path, data, learning_rates=[1e-9, 2e-2], tuning_held_out=14, tuning_epochs=4)
    folder, rate = contrastive.fine_tuned(model, setup, 17)
    accuracies = {
        p.parent.name: json.loads(p.read_text("utf-8"))["accuracy"]
        for p in setup.shared.glob("*/held_out_triplets.json")
    }
    assert len(set(accuracies.values())) == 2
    assert accuracies[folder.name] == max(accuracies.values())
    assert f"rate-{rate:g}-" in folder.name


def test_the_table_of_tasks_is_mtebs() -> None:
    made = io.StringIO()
    make_mteb_tasks.write_table(made)
    assert made.getvalue() == mteb_tasks.TABLE.read_text("utf-8")


@pytest.mark.parametrize(("name", "tasks"), [("mteb-english", 41), ("mteb-multilingual", 131), ("coir", 10)])
def test_columns_are_the_published_ones(name: str, tasks: int) -> None:
    suite = get_suite(name)
    assert len(suite.tasks) == tasks
    columns = published_tables()[suite.published].columns
    assert {*suite.columns.values(), "Avg"} == set(columns)
    scores = [Score(name, task.name, task.metrics[0], 0.5, 0.5, 0.5, 1) for task in suite.tasks]

    def means(measured: Sequence[Score]) -> dict[str, float]:
        found = with_columns(card(*measured)).scores[len(measured) :]
        return {score.task: score.value for score in found}

    first = scores[0].task
    column = suite.columns[first]
    mates = sum(other == column for other in suite.columns.values())
    changed = means([replace(scores[0], value=1.0), *scores[1:]])
    several = {c for c in suite.columns.values() if [*suite.columns.values()].count(c) > 1}
    assert means(scores).keys() == changed.keys() == several
    assert changed.get(column, 1.0) == pytest.approx(0.5 + 0.5 / mates)
    assert column not in means(scores[1:])
