"""WikiANN and UDPOS, end to end on small data sets in the schemas of unimelb-nlp/wikiann and google/xtreme."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from seqeval.metrics import f1_score
from sklearn.metrics import accuracy_score

from mmbert.errors import UserError
from mmbert.evaluation.scores import Score
from mmbert.evaluation.suites.base import ModelFolder, Suite
from mmbert.evaluation.suites.data import DataAccess
from mmbert.evaluation.suites.runner import Options, run_tasks
from mmbert.evaluation.suites.tagging import TASKS, UDPOS_NAMES, WIKIANN_LANGUAGES
from tests.suite_data import tiny_model, write_data_set

XTREME = Suite("xtreme", "Tagging of XTREME", TASKS)
NER = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]
POS = [
    *("ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM"),
    *("PART", "PRON", "PROPN", "PUNCT", "SCONJ", "SYM", "VERB", "X"),
]
ENTITIES = {"Lena": ["B-PER"], "Asmara": ["B-LOC"], "Red Cross": ["B-ORG", "I-ORG"]}
PARTS = {"sees": "VERB", "sings": "VERB", "river": "NOUN", "stone": "NOUN", "blue": "ADJ", "the": "DET", ".": "PUNCT"}
CHANGES = {"learning_rate": 5e-3, "epochs": 8, "batch_size": 16, "max_length": 24}


def entities(count: int, seed: str) -> Dataset:
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        tokens, tags = [], []
        for _ in range(rng.randint(2, 6)):
            name = rng.choice([*ENTITIES, "sees", "river", "blue"])
            tokens += name.split()
            tags += ENTITIES.get(name, ["O"])
        made.append({"tokens": tokens, "ner_tags": [NER.index(t) for t in tags], "langs": ["en"] * len(tokens)})
    features = {
        "tokens": List(Value("string")),
        "ner_tags": List(ClassLabel(names=NER)),
        "langs": List(Value("string")),
    }
    return Dataset.from_list(made, features=Features(features))


def parts(count: int, seed: str, length: int = 6) -> Dataset:
    rng = random.Random(seed)
    sentences = [rng.choices(list(PARTS), k=rng.randint(1, length)) for _ in range(count)]
    made = [{"tokens": words, "pos_tags": [POS.index(PARTS[w]) for w in words]} for words in sentences]
    features = {"tokens": List(Value("string")), "pos_tags": List(ClassLabel(names=POS))}
    return Dataset.from_list(made, features=Features(features))


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mirror")
    wikiann = {code: {"test": entities(3, code)} for code in WIKIANN_LANGUAGES}
    wikiann["en"] |= {"train": entities(80, "train"), "validation": entities(3, "v")}
    write_data_set(root, "unimelb-nlp/wikiann", wikiann)
    # German sentences are longer than the model's window.
    udpos = {f"udpos.{name}": {"test": parts(3, code, 6)} for code, name in UDPOS_NAMES.items()}
    udpos["udpos.German"] = {"test": parts(3, "de", 40)}
    udpos["udpos.English"] |= {"train": parts(80, "train"), "validation": parts(3, "v")}
    write_data_set(root, "google/xtreme", udpos)
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    texts = [" ".join(row["tokens"]) for rows in (entities(60, "m"), parts(60, "m")) for row in rows]
    return tiny_model(tmp_path_factory.mktemp("model"), texts)


def evaluate(model: ModelFolder, mirror: Path, cache: Path, task: str, **changes: Any) -> list[Score]:
    options = Options(tasks=(task,), seeds=(3, 4), bootstrap_samples=50, changes={**CHANGES, **changes}, device="cpu")
    return run_tasks(model, XTREME, data=DataAccess(mirror), cache=cache, options=options, say=lambda _: None)


def kept(cache: Path, language: str) -> list[list[list[str]]]:
    return [json.loads(path.read_text("utf-8")) for path in sorted(cache.glob(f"*/*/seed-*/{language}.json"))]


def truth(mirror: Path, place: str, column: str, names: Sequence[str]) -> list[list[str]]:
    rows = Dataset.from_parquet(str(mirror / place / "test-00000-of-00001.parquet"))
    return [[names[n] for n in row[column]] for row in rows]


def check_f1(scores: list[Score], language: str, true: list[list[str]], predicted: list[list[list[str]]]) -> None:
    (score,) = [s for s in scores if (s.metric, s.language) == ("f1", language)]
    assert [len(tags) for tags in true] == [len(tags) for tags in predicted[0]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = [f1_score(true, one) for one in predicted]
    assert len(values) == 2
    assert score.value == pytest.approx(sum(values) / 2)
    assert score.low <= score.value <= score.high


def test_entities_in_every_language_of_xtreme(model: ModelFolder, mirror: Path, tmp_path: Path) -> None:
    scores = evaluate(model, mirror, tmp_path, "wikiann")
    assert len(WIKIANN_LANGUAGES) == 40
    assert {s.language for s in scores} == {None, *WIKIANN_LANGUAGES}
    (overall,) = [s for s in scores if s.language is None]
    assert overall.value > 0.9
    assert overall.n == 120
    check_f1(scores, "sw", truth(mirror, "unimelb-nlp/wikiann/sw", "ner_tags", NER), kept(tmp_path, "sw"))
    # Models are as large as the one under evaluation: none stays.
    assert not list(tmp_path.rglob("model.safetensors"))


def test_parts_of_speech_of_long_sentences_too(model: ModelFolder, mirror: Path, tmp_path: Path) -> None:
    scores = evaluate(model, mirror, tmp_path, "udpos")
    assert len(UDPOS_NAMES) == 33
    assert {(s.metric, s.language) for s in scores} == {
        (m, c) for m in ("f1", "accuracy") for c in (None, *UDPOS_NAMES)
    }
    assert all(s.value > 0.9 for s in scores if s.language is None)
    true = truth(mirror, "google/xtreme/udpos.German", "pos_tags", POS)
    assert max(map(len, true)) > 24
    predicted = kept(tmp_path, "de")
    check_f1(scores, "de", true, predicted)
    (accuracy,) = [s for s in scores if (s.metric, s.language) == ("accuracy", "de")]
    flat = [tag for tags in true for tag in tags]
    values = [accuracy_score(flat, [tag for tags in one for tag in tags]) for one in predicted]
    assert accuracy.value == pytest.approx(sum(values) / 2)


def test_tags_without_names_are_the_users_error(model: ModelFolder, tmp_path: Path) -> None:
    rows = Dataset.from_list([{"tokens": ["a"], "ner_tags": [0]}])
    write_data_set(tmp_path, "unimelb-nlp/wikiann", {code: {"test": rows} for code in WIKIANN_LANGUAGES})
    with pytest.raises(UserError, match=r"unimelb-nlp/wikiann, subset af, split test: .*named tags are needed"):
        evaluate(model, tmp_path, tmp_path / "cache", "wikiann")
