"""XTREME's sentence tasks, zero-shot from English: XNLI, PAWS-X and XCOPA.

As mmBERT's scores were made (izhx/nlu-evals, scripts/run_glue_one.sh, run_pawsx.sh, train_siqa.sh, run_copa.sh):
batches of 32, texts of 128 tokens, learning rate 2e-5; XNLI three epochs with warm-up, PAWS-X two, XCOPA five on SIQA
and then five on COPA. With several `learning_rates` the best on the English validation set counts, never a test set.
The score over all languages is their mean, as XTREME's (arXiv 2003.11080) and XTREME-R's (arXiv 2104.07412).
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
from mmbert.errors import UserError
from mmbert.evaluation.scores import Score
from mmbert.evaluation.suites.base import DataSet, ModelFolder, Setup, Task
from mmbert.evaluation.suites.data import PARQUET_EXPORT
from mmbert.evaluation.suites.finetuning import (
    FineTuning,
    Head,
    encode,
    fine_tune,
    load_tokenizer,
    predict,
    save_head,
)
from mmbert.evaluation.suites.keeping import kept_folder
from mmbert.evaluation.suites.measuring import Measured, scores_of
from mmbert.evaluation.suites.sweeping import Outputs, best_runs

SUITE = "xtreme"
CARDS = "https://huggingface.co/datasets/"
XNLI_LANGUAGES = ("ar", "bg", "de", "el", "en", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh")
PAWSX_LANGUAGES = ("de", "en", "es", "fr", "ja", "ko", "zh")
XCOPA_LANGUAGES = ("et", "ht", "id", "it", "qu", "sw", "ta", "th", "tr", "vi", "zh")
XNLI = DataSet("facebook/xnli", XNLI_LANGUAGES, card=f"{CARDS}facebook/xnli")
PAWSX = DataSet("google-research-datasets/paws-x", PAWSX_LANGUAGES, card=f"{CARDS}google-research-datasets/paws-x")
XCOPA = DataSet("cambridgeltl/xcopa", XCOPA_LANGUAGES, card=f"{CARDS}cambridgeltl/xcopa")
SIQA = DataSet("allenai/social_i_qa", ("default",), PARQUET_EXPORT, card=f"{CARDS}allenai/social_i_qa")
COPA = DataSet("aps/super_glue", ("copa",), PARQUET_EXPORT, card=f"{CARDS}aps/super_glue")
SETTINGS: Mapping[str, Any] = {
    "learning_rates": (2e-5,),
    "batch_size": 32,
    "warmup": 0.0,
    "weight_decay": 0.0,
    "max_length": 128,
}
_VERSION = 1
_VALIDATION = "validation"
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class _Set:
    """Encoded examples; `labels` [examples]."""

    inputs: list[dict[str, Any]]
    labels: Array


@dataclass(frozen=True)
class _Sentences:
    """One task: how a split of a language is read, and what the fine-tuning starts from."""

    name: str
    head: Head
    labels: int
    languages: tuple[str, ...]
    read: Callable[[Setup, Any, str, str], _Set]
    """Of the setup, the tokenizer, a language and a split."""
    start: Callable[[ModelFolder, Setup], Path]


def _run(task: _Sentences, model: ModelFolder, setup: Setup) -> list[Score]:
    tokenizer = load_tokenizer(model.path)
    tested = {code: task.read(setup, tokenizer, code, "test") for code in task.languages}
    chosen_on = task.read(setup, tokenizer, "en", _VALIDATION)

    def run(rate: float, seed: int) -> Outputs:
        train = task.read(setup, tokenizer, "en", "train")
        settings = FineTuning.of(setup.settings, learning_rate=rate)
        start = task.start(model, setup)
        network = fine_tune(
            start, task.head, train.inputs, settings, seed=seed, device=setup.device, labels=task.labels
        )
        sets = {**tested, _VALIDATION: chosen_on}
        return {
            name: np.stack(predict(network, task.head, found.inputs, device=setup.device))
            for name, found in sets.items()
        }

    def quality(outputs: Outputs) -> float:
        return float(_right(chosen_on.labels, outputs[_VALIDATION]).mean())

    rate, runs = best_runs(setup, run, quality)
    measured = {
        code: Measured.mean(
            [_right(found.labels, outputs[code]) for outputs in runs],
            float(np.unique(found.labels, return_counts=True)[1].max() / len(found.labels)),
        )
        for code, found in tested.items()
    }
    return scores_of(
        SUITE,
        task.name,
        "accuracy",
        measured,
        seeds=setup.seeds,
        bootstrap_samples=setup.bootstrap_samples,
        settings={**setup.settings, "learning_rate": rate, "trained_on": "en"},
    )


def _right(labels: Array, outputs: Array) -> Array:
    """1 where a prediction is right; the accuracy is the mean."""
    right: Array = outputs.argmax(axis=1) == labels
    return right.astype(np.float64)


def _pairs(data: DataSet, columns: tuple[str, str], setup: Setup, tokenizer: Any, language: str, split: str) -> _Set:
    rows = setup.data.load(data, language, split, (*columns, "label"))
    ids = encode(tokenizer, rows[columns[0]], rows[columns[1]], setup.settings["max_length"])
    labels = [int(label) for label in rows["label"]]
    inputs = [{"input_ids": i, "labels": label} for i, label in zip(ids, labels, strict=True)]
    return _Set(inputs, np.asarray(labels))


def _choices(
    tokenizer: Any, asked: Sequence[str], answers: Sequence[Sequence[str]], labels: Sequence[int], max_length: int
) -> _Set:
    """Each question with each of its answers; `answers` [choices][questions]."""
    encoded = [encode(tokenizer, asked, column, max_length) for column in answers]
    inputs = [{"input_ids": list(ids), "labels": label} for *ids, label in zip(*encoded, labels, strict=True)]
    return _Set(inputs, np.asarray(labels))


def _copa(setup: Setup, tokenizer: Any, language: str, split: str) -> _Set:
    """English is SuperGLUE's COPA, the other languages XCOPA's; of one schema."""
    data, config = (COPA, "copa") if language == "en" else (XCOPA, language)
    rows = setup.data.load(data, config, split, ("premise", "question", "choice1", "choice2", "label"))
    asked = [
        f"{premise} What was the {question}?"
        for premise, question in zip(rows["premise"], rows["question"], strict=True)
    ]
    labels = [int(label) for label in rows["label"]]
    return _choices(tokenizer, asked, [rows["choice1"], rows["choice2"]], labels, setup.settings["max_length"])


def _siqa(setup: Setup, tokenizer: Any) -> _Set:
    columns = ("context", "question", "answerA", "answerB", "answerC", "label")
    rows = setup.data.load(SIQA, "default", "train", columns)
    asked = [f"{context} {question}" for context, question in zip(rows["context"], rows["question"], strict=True)]
    unknown = sorted({str(label) for label in rows["label"]} - {"1", "2", "3"})
    if unknown:
        raise UserError(f"{SIQA.repo}: a label is '{unknown[0]}'; it should be 1, 2 or 3, see {SIQA.card}")
    labels = [int(label) - 1 for label in rows["label"]]
    return _choices(tokenizer, asked, [rows[name] for name in columns[2:5]], labels, setup.settings["max_length"])


def _from_siqa(model: ModelFolder, setup: Setup) -> Path:
    """The folder of the model trained on SIQA, with the first seed and the settings `siqa_...`; kept."""
    if not setup.settings["siqa_epochs"]:
        return model.path
    changes = {"learning_rate": setup.settings["siqa_learning_rate"], "epochs": setup.settings["siqa_epochs"]}
    settings, seed = FineTuning.of(setup.settings, **changes), setup.seeds[0]
    named = digest_json([_VERSION, asdict(settings), seed, setup.data.revision(SIQA), setup.device])[:16]

    def make(folder: Path) -> None:
        tokenizer = load_tokenizer(model.path)
        inputs = _siqa(setup, tokenizer).inputs
        save_head(fine_tune(model.path, "choice", inputs, settings, seed=seed, device=setup.device), tokenizer, folder)

    return kept_folder(setup.shared / f"siqa-{named}", make)


def _itself(model: ModelFolder, _: Setup) -> Path:
    return model.path


_XNLI = _Sentences(
    "xnli", "sequence", 3, XNLI_LANGUAGES, functools.partial(_pairs, XNLI, ("premise", "hypothesis")), _itself
)
_PAWSX = _Sentences(
    "paws-x", "sequence", 2, PAWSX_LANGUAGES, functools.partial(_pairs, PAWSX, ("sentence1", "sentence2")), _itself
)
_XCOPA = _Sentences("xcopa", "choice", 2, XCOPA_LANGUAGES, _copa, _from_siqa)


def _task(task: _Sentences, data: tuple[DataSet, ...], **settings: Any) -> Task:
    return Task(
        name=task.name,
        version=_VERSION,
        data=data,
        languages=task.languages,
        metrics=("accuracy",),
        settings={**SETTINGS, **settings},
        run=functools.partial(_run, task),
    )


TASKS = (
    _task(_XNLI, (XNLI,), epochs=3, warmup=0.06),
    _task(_PAWSX, (PAWSX,), epochs=2),
    _task(_XCOPA, (XCOPA, SIQA, COPA), epochs=5, siqa_learning_rate=2e-5, siqa_epochs=5),
)
