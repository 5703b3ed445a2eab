"""GLUE and XTREME's sentence tasks, end to end on small data sets in the hub's schemas (see tests/sentence_data.py).

Scores are compared with ones computed here, from the predictions that the tasks keep and the labels in the files.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForMultipleChoice, AutoTokenizer

from mmbert.errors import UserError
from mmbert.evaluation.scores import Score
from mmbert.evaluation.suites.base import ModelFolder, Suite
from mmbert.evaluation.suites.data import DataAccess
from mmbert.evaluation.suites.glue import SUITE as GLUE_SUITE
from mmbert.evaluation.suites.runner import Options, run_tasks
from mmbert.evaluation.suites.sentences import PAWSX_LANGUAGES, XCOPA_LANGUAGES, XNLI_LANGUAGES
from mmbert.evaluation.suites.xtreme import SUITE as XTREME
from tests.sentence_data import GLUE, classified, texts, write_choices, write_glue, write_pairs
from tests.suite_data import tiny_model, write_data_set

Array = npt.NDArray[Any]
SEEDS = (3, 4)
RATE = 5e-3
LEARNING = {"learning_rates": RATE, "epochs": 6, "batch_size": 8, "max_length": 32}
PAWSX = "google-research-datasets/paws-x"


def accuracy(labels: Array, outputs: Array) -> float:
    return float(sum(int(row.argmax()) == label for row, label in zip(outputs, labels, strict=True)) / len(labels))


def table(labels: Array, outputs: Array) -> tuple[int, int, int, int]:
    """True positives, false positives, false negatives, true negatives."""
    said, true = outputs.argmax(axis=1) == 1, labels == 1
    hits, wrong = int((said & true).sum()), int((said & ~true).sum())
    return hits, wrong, int((~said & true).sum()), int((~said & ~true).sum())


def f1(labels: Array, outputs: Array) -> float:
    tp, fp, fn, _ = table(labels, outputs)
    return 2 * tp / (2 * tp + fp + fn)


def matthews(labels: Array, outputs: Array) -> float:
    tp, fp, fn, tn = table(labels, outputs)
    whole = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return float((tp * tn - fp * fn) / whole**0.5) if whole else 0.0


def pearson(labels: Array, outputs: Array) -> float:
    return float(np.corrcoef(labels, outputs[:, 0])[0, 1])


def spearman(labels: Array, outputs: Array) -> float:
    return float(np.corrcoef(labels.argsort().argsort(), outputs[:, 0].argsort().argsort())[0, 1])


METRICS: dict[str, dict[str, tuple[Callable[[Array, Array], float], str]]] = {
    "cola": {"matthews": (matthews, "validation")},
    "sst2": {"accuracy": (accuracy, "validation")},
    "mrpc": {"f1": (f1, "validation"), "accuracy": (accuracy, "validation")},
    "stsb": {"spearman": (spearman, "validation"), "pearson": (pearson, "validation")},
    "qqp": {"f1": (f1, "validation"), "accuracy": (accuracy, "validation")},
    "mnli": {
        "accuracy": (accuracy, "validation_matched"),
        "accuracy_mismatched": (accuracy, "validation_mismatched"),
    },
    "qnli": {"accuracy": (accuracy, "validation")},
    "rte": {"accuracy": (accuracy, "validation")},
}


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mirror")
    write_glue(root)
    write_pairs(root, "facebook/xnli", ("premise", "hypothesis"), 3, XNLI_LANGUAGES)
    write_pairs(root, PAWSX, ("sentence1", "sentence2"), 2, PAWSX_LANGUAGES)
    write_choices(root, XCOPA_LANGUAGES)
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return tiny_model(tmp_path_factory.mktemp("model"), texts())


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


Run = Callable[..., list[Score]]


@pytest.fixture(scope="module")
def run(model: ModelFolder, mirror: Path, cache: Path) -> Run:
    def evaluate(suite: Suite, task: str, root: Path = mirror, cache: Path = cache, **changes: Any) -> list[Score]:
        starting = {key: 1 for key in ("start_epochs", "siqa_epochs") if key in suite.task(task).settings}
        options = Options(
            tasks=(task,),
            seeds=SEEDS,
            bootstrap_samples=50,
            changes={**LEARNING, **starting, **changes},
            device="cpu",
        )
        return run_tasks(model, suite, data=DataAccess(root), cache=cache, options=options, say=lambda _: None)

    return evaluate


def labels_of(root: Path, repo: str, subset: str, split: str) -> Array:
    """The labels in a mirror's file, read without the suite's code."""
    (path,) = [*root.glob(f"{repo}/{subset}/{split}-*.parquet"), *root.glob(f"{repo}/{subset}/{split}/*.parquet")]
    return np.asarray(Dataset.from_parquet(str(path))["label"])


def kept(cache: Path, name: str) -> list[dict[str, Array]]:
    """The outputs that each seed's run has kept, by test set."""
    found = []
    for seed in SEEDS:
        (path,) = cache.glob(f"*/{name}-*/rate-{RATE:g}-seed-{seed}.npz")
        with np.load(path) as arrays:
            found.append(dict(arrays))
    return found


@pytest.mark.parametrize("task", GLUE)
def test_glue_scores_are_those_of_the_kept_predictions(task: str, run: Run, mirror: Path, cache: Path) -> None:
    scores = {score.metric: score for score in run(GLUE_SUITE, task)}
    assert set(scores) == set(METRICS[task])
    for metric, (compute, split) in METRICS[task].items():
        labels, score = labels_of(mirror, "nyu-mll/glue", task, split), scores[metric]
        by_seed = [compute(labels, outputs[split]) for outputs in kept(cache, f"glue.{task}")]
        assert score.value == pytest.approx(statistics.fmean(by_seed), abs=1e-5)
        assert score.deviation == pytest.approx(statistics.stdev(by_seed), abs=1e-5)
        assert score.low <= score.value <= score.high
        assert (score.n, score.seeds, score.language, score.settings["split"]) == (len(labels), SEEDS, None, split)
        if metric.startswith("accuracy"):
            assert score.chance == np.bincount(labels).max() / len(labels)


def test_what_can_be_learnt_is_learnt(run: Run) -> None:
    values = {score.metric: score.value for task in ("cola", "mrpc", "stsb") for score in run(GLUE_SUITE, task)}
    assert min(values[metric] for metric in ("matthews", "f1", "pearson")) > 0.6


def test_three_glue_tasks_start_from_one_model_trained_on_mnli(run: Run, cache: Path, tmp_path: Path) -> None:
    run(GLUE_SUITE, "rte")
    starts = {path: path.stat().st_mtime_ns for path in cache.glob("*/shared/glue-mnli-*/model.safetensors")}
    assert starts
    run(GLUE_SUITE, "mrpc")
    run(GLUE_SUITE, "stsb")
    again = {path: path.stat().st_mtime_ns for path in cache.glob("*/shared/glue-mnli-*/model.safetensors")}
    assert {path: again[path] for path in starts} == starts
    run(GLUE_SUITE, "rte", cache=tmp_path, start_epochs=0)
    assert not list(tmp_path.glob("*/shared/glue-mnli-*"))


@pytest.mark.parametrize(
    ("task", "repo", "languages"),
    [
        ("xnli", "facebook/xnli", XNLI_LANGUAGES),
        ("paws-x", PAWSX, PAWSX_LANGUAGES),
        ("xcopa", "cambridgeltl/xcopa", XCOPA_LANGUAGES),
    ],
)
def test_accuracy_by_language_is_that_of_the_kept_predictions(
    task: str, repo: str, languages: tuple[str, ...], run: Run, mirror: Path, cache: Path
) -> None:
    scores = {score.language: score for score in run(XTREME, task)}
    assert set(scores) == {None, *languages}
    outputs = kept(cache, f"xtreme.{task}")
    for code in languages:
        labels = labels_of(mirror, repo, code, "test")
        expected = statistics.fmean(accuracy(labels, found[code]) for found in outputs)
        assert scores[code].value == pytest.approx(expected)
        assert scores[code].n == len(labels)
    overall = scores[None]
    assert overall.value == pytest.approx(statistics.fmean(scores[code].value for code in languages))
    # Parts carry the weight of their language: the mean over languages can be paired between two models.
    assert overall.units is not None
    assert sum(overall.units.parts) / sum(overall.units.wholes) == pytest.approx(overall.value)
    assert overall.low <= overall.value <= overall.high
    assert (overall.seeds, overall.settings["trained_on"]) == (SEEDS, "en")


def test_xnli_is_learnt_from_english_for_all_languages(run: Run) -> None:
    (overall,) = [score for score in run(XTREME, "xnli") if score.language is None]
    assert overall.chance is not None
    # Texts of all "languages" are of the same words here.
    assert overall.value > overall.chance + 0.2


def test_the_rate_is_chosen_on_english_validation(run: Run, mirror: Path, tmp_path: Path) -> None:
    rates = [1e-6, RATE]
    scores = run(XTREME, "paws-x", cache=tmp_path, learning_rates=rates)
    labels = labels_of(mirror, PAWSX, "en", "validation")
    quality = {}
    for rate in rates:
        (path,) = tmp_path.glob(f"*/xtreme.paws-x-*/rate-{rate:g}-seed-{SEEDS[0]}.npz")
        with np.load(path) as outputs:
            quality[rate] = accuracy(labels, outputs["validation"])
    best = max(quality, key=quality.__getitem__)
    assert quality[1e-6] != quality[RATE]
    assert {score.settings["learning_rate"] for score in scores} == {best}
    # Seeds after the first are run at the chosen rate alone.
    assert len(list(tmp_path.glob(f"*/xtreme.paws-x-*/rate-*-seed-{SEEDS[1]}.npz"))) == 1


def test_xcopa_starts_from_a_model_trained_on_siqa(run: Run, mirror: Path, tmp_path: Path) -> None:
    run(XTREME, "xcopa", cache=tmp_path / "with", siqa_epochs=8, siqa_learning_rate=RATE, epochs=1)
    (start,) = tmp_path.glob("with/*/shared/siqa-*")
    network, tokenizer = (
        AutoModelForMultipleChoice.from_pretrained(str(start)),
        AutoTokenizer.from_pretrained(str(start)),
    )
    right = 0
    rows = Dataset.from_parquet(str(mirror / "allenai/social_i_qa/default/train/0000.parquet"))
    for row in rows:
        asked = [f"{row['context']} {row['question']}"] * 3
        inputs = tokenizer(asked, [row[f"answer{letter}"] for letter in "ABC"], padding=True, return_tensors="pt")
        with torch.inference_mode():
            (logits,) = network(**{name: values[None] for name, values in inputs.items()}).logits
        right += int(logits.argmax()) + 1 == int(row["label"])
    # It answers the questions that it was trained on: labels 1 to 3 are answers A to C.
    assert right / len(rows) > 0.7
    run(XTREME, "xcopa", cache=tmp_path / "without", siqa_epochs=0, epochs=1)
    assert not list(tmp_path.glob("without/*/shared/siqa-*"))


def test_a_label_that_siqa_does_not_have_is_named(run: Run, mirror: Path, tmp_path: Path) -> None:
    for repo in ("cambridgeltl/xcopa", "aps/super_glue"):
        (tmp_path / repo).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / repo).symlink_to(mirror / repo)
    row = {"context": "a", "question": "b", "answerA": "c", "answerB": "d", "answerC": "e", "label": "4"}
    path = tmp_path / "allenai/social_i_qa/default/train/0000.parquet"
    path.parent.mkdir(parents=True)
    Dataset.from_list([row]).to_parquet(str(path))
    with pytest.raises(UserError, match=r"allenai/social_i_qa: a label is '4'; it should be 1, 2 or 3"):
        run(XTREME, "xcopa", root=tmp_path, cache=tmp_path / "cache")


def test_a_missing_column_is_named_with_those_there_are(run: Run, tmp_path: Path) -> None:
    wrong = classified(("text",), 2, 4, 0)
    write_data_set(tmp_path, "nyu-mll/glue", {"cola": {"train": wrong, "validation": wrong}})
    with pytest.raises(UserError, match=r"subset cola, split validation: no column sentence; it has text, label"):
        run(GLUE_SUITE, "cola", root=tmp_path, cache=tmp_path / "cache")
