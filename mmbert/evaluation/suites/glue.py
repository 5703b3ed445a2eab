"""The suite `glue`: eight tasks of the General Language Understanding Evaluation (arXiv 1804.07461), in English.

As mmBERT's scores were made (izhx/nlu-evals, scripts/run_glue_one.sh and entry_glue.sh): scored on the validation sets,
since the test sets have no public labels; texts of 128 tokens; three epochs, warm-up over 6% of the steps; RTE, MRPC
and STS-B start from the model that was trained on MNLI; WNLI is left out. Its table holds F1 of MRPC and QQP,
Spearman's correlation of STS-B and the matched accuracy of MNLI, so these are the first metrics here.

With several `learning_rates` the best on the validation set counts, as published: it is then a choice made on the very
examples that are scored.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmbert.artifacts import digest_json
from mmbert.evaluation.scores import Score
from mmbert.evaluation.suites.base import DataSet, ModelFolder, Setup, Suite, Task
from mmbert.evaluation.suites.finetuning import (
    FineTuning,
    encode,
    fine_tune,
    load_head,
    load_tokenizer,
    predict,
    save_head,
)
from mmbert.evaluation.suites.keeping import kept_folder
from mmbert.evaluation.suites.measuring import Measured, Rows, scores_of
from mmbert.evaluation.suites.sweeping import Outputs, best_runs

NAME = "glue"
REPO = "nyu-mll/glue"
CARD = "https://huggingface.co/datasets/nyu-mll/glue"
LEARNING_RATES = (2e-5,)
SETTINGS: Mapping[str, Any] = {
    "learning_rates": LEARNING_RATES,
    "epochs": 3,
    "batch_size": 32,
    "warmup": 0.06,
    "weight_decay": 0.0,
    "max_length": 128,
}
START: Mapping[str, Any] = {"start_learning_rate": 2e-5, "start_epochs": 3}
"""Of the training on MNLI that RTE, MRPC and STS-B start from; without epochs they start from the model itself."""
_VERSION = 1
Array = npt.NDArray[Any]
Metric = Callable[[Array, Array], float]
"""Of true labels [examples] and a model's outputs [examples, labels]."""


def _right(labels: Array, outputs: Array) -> Array:
    """1 where a prediction is right; the accuracy is the mean."""
    right: Array = outputs.argmax(axis=1) == labels
    return right.astype(np.float64)


def _accuracy(labels: Array, outputs: Array) -> float:
    return float(_right(labels, outputs).mean())


def _f1(labels: Array, outputs: Array) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, outputs.argmax(axis=1), zero_division=0))


def _matthews(labels: Array, outputs: Array) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, outputs.argmax(axis=1)))


def _correlation(name: str, labels: Array, outputs: Array) -> float:
    from scipy import stats  # type: ignore[import-untyped]

    predicted = outputs[:, 0]
    if np.ptp(predicted) == 0 or np.ptp(labels) == 0:
        return 0.0  # undefined; a model that answers the same to everything has learnt nothing
    return float(getattr(stats, name)(labels, predicted).statistic)


_METRICS: Mapping[str, Metric] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews": _matthews,
    "pearson": functools.partial(_correlation, "pearsonr"),
    "spearman": functools.partial(_correlation, "spearmanr"),
}


@dataclass(frozen=True)
class _Glue:
    """One task: its columns with text, its classes (1: a number), its metrics as (name, metric, split)."""

    name: str
    title: str
    columns: tuple[str, ...]
    labels: int
    metrics: tuple[tuple[str, str, str], ...]
    from_mnli: bool = False

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(split for _, _, split in self.metrics))


def _on_validation(*metrics: str) -> tuple[tuple[str, str, str], ...]:
    return tuple((metric, metric, "validation") for metric in metrics)


_MNLI_METRICS = (
    ("accuracy", "accuracy", "validation_matched"),
    ("accuracy_mismatched", "accuracy", "validation_mismatched"),
)
_TASKS = (
    _Glue("cola", "CoLA", ("sentence",), 2, _on_validation("matthews")),
    _Glue("sst2", "SST-2", ("sentence",), 2, _on_validation("accuracy")),
    _Glue("mrpc", "MRPC", ("sentence1", "sentence2"), 2, _on_validation("f1", "accuracy"), from_mnli=True),
    _Glue("stsb", "STS-B", ("sentence1", "sentence2"), 1, _on_validation("spearman", "pearson"), from_mnli=True),
    _Glue("qqp", "QQP", ("question1", "question2"), 2, _on_validation("f1", "accuracy")),
    _Glue("mnli", "MNLI", ("premise", "hypothesis"), 3, _MNLI_METRICS),
    _Glue("qnli", "QNLI", ("question", "sentence"), 2, _on_validation("accuracy")),
    _Glue("rte", "RTE", ("sentence1", "sentence2"), 2, _on_validation("accuracy"), from_mnli=True),
)
_MNLI = next(task for task in _TASKS if task.name == "mnli")


@dataclass(frozen=True)
class _Split:
    inputs: list[dict[str, Any]]
    labels: Array


def _read(task: _Glue, setup: Setup, tokenizer: Any, split: str) -> _Split:
    rows = setup.data.load(_data(task), task.name, split, (*task.columns, "label"))
    first, second = rows[task.columns[0]], rows[task.columns[1]] if len(task.columns) > 1 else None
    ids = encode(tokenizer, first, second, setup.settings["max_length"])
    number = float if task.labels == 1 else int
    inputs = [{"input_ids": i, "labels": number(label)} for i, label in zip(ids, rows["label"], strict=True)]
    return _Split(inputs, np.asarray([row["labels"] for row in inputs]))


def _run(task: _Glue, model: ModelFolder, setup: Setup) -> list[Score]:
    tokenizer = load_tokenizer(model.path)
    tested = {split: _read(task, setup, tokenizer, split) for split in task.splits}

    def run(rate: float, seed: int) -> Outputs:
        network = _trained(task, model, setup, rate, seed)
        return {
            split: np.stack(predict(network, "sequence", found.inputs, device=setup.device))
            for split, found in tested.items()
        }

    def value(metric: str, split: str, outputs: Outputs, rows: Rows) -> float:
        return _METRICS[metric](tested[split].labels[rows], outputs[split][rows])

    _, first_metric, first_split = task.metrics[0]
    everything = np.arange(len(tested[first_split].labels))
    rate, runs = best_runs(setup, run, lambda outputs: value(first_metric, first_split, outputs, everything))
    scores: list[Score] = []
    for name, metric, split in task.metrics:
        labels = tested[split].labels
        if metric == "accuracy":
            measured = Measured.mean([_right(labels, outputs[split]) for outputs in runs], _chance(metric, labels))
        else:
            measures = [functools.partial(value, metric, split, outputs) for outputs in runs]
            measured = Measured(len(labels), measures, _chance(metric, labels))
        scores += scores_of(
            NAME,
            task.name,
            name,
            {None: measured},
            seeds=setup.seeds,
            bootstrap_samples=setup.bootstrap_samples,
            settings={**setup.settings, "learning_rate": rate, "split": split},
        )
    return scores


def _trained(task: _Glue, model: ModelFolder, setup: Setup, rate: float, seed: int) -> Any:
    settings = FineTuning.of(setup.settings, learning_rate=rate)
    if task is _MNLI and seed == setup.seeds[0]:
        # What RTE, MRPC and STS-B start from, where their settings are the same.
        return load_head(_mnli(model, setup, settings, seed), "sequence", task.labels).to(setup.device).eval()
    start = model.path
    if task.from_mnli and setup.settings["start_epochs"]:
        changes = {"learning_rate": setup.settings["start_learning_rate"], "epochs": setup.settings["start_epochs"]}
        before = FineTuning.of({**SETTINGS, "max_length": setup.settings["max_length"]}, **changes)
        start = _mnli(model, setup, before, setup.seeds[0])
    return _fine_tune(task, model, setup, start, settings, seed)


def _mnli(model: ModelFolder, setup: Setup, settings: FineTuning, seed: int) -> Path:
    """The folder of the model trained on MNLI, which the tasks share."""
    named = digest_json([_VERSION, asdict(settings), seed, setup.data.revision(_data(_MNLI)), setup.device])[:16]

    def make(folder: Path) -> None:
        network = _fine_tune(_MNLI, model, setup, model.path, settings, seed)
        save_head(network, load_tokenizer(model.path), folder)

    return kept_folder(setup.shared / f"glue-mnli-{named}", make)


def _fine_tune(task: _Glue, model: ModelFolder, setup: Setup, start: Path, settings: FineTuning, seed: int) -> Any:
    train = _read(task, setup, load_tokenizer(model.path), "train")
    return fine_tune(start, "sequence", train.inputs, settings, seed=seed, device=setup.device, labels=task.labels)


def _chance(metric: str, labels: Array) -> float | None:
    """Of always naming the commonest class; no correlation."""
    if metric == "accuracy":
        return float(np.unique(labels, return_counts=True)[1].max() / len(labels))
    return None if metric == "f1" else 0.0


def _data(task: _Glue) -> DataSet:
    return DataSet(REPO, (task.name, "mnli") if task.from_mnli else (task.name,), card=CARD)


def _task(task: _Glue) -> Task:
    return Task(
        name=task.name,
        version=_VERSION,
        data=(_data(task),),
        languages=("en",),
        metrics=tuple(name for name, _, _ in task.metrics),
        settings={**SETTINGS, **(START if task.from_mnli else {})},
        run=functools.partial(_run, task),
    )


def _names(tasks: Sequence[_Glue]) -> dict[str, str]:
    return {task.name: task.title for task in tasks}


SUITE = Suite(NAME, "GLUE", tuple(_task(task) for task in _TASKS), published="glue", columns=_names(_TASKS))
