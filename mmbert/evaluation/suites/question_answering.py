"""Span question answering of XTREME, zero-shot from English: XQuAD, MLQA and TyDiQA-GoldP.

Languages, splits and scoring are XTREME's (arXiv 2003.11080, its repository's evaluate.py); fine-tuning is that of the
code which mmBERT's scores come from (izhx/nlu-evals, scripts/run_squad.sh and run_tydiqa.sh). XQuAD and MLQA take the
same model, trained on SQuAD v1.1; TyDiQA trains on its own English part.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmbert.artifacts import digest_json
from mmbert.errors import UserError
from mmbert.evaluation.scores import Score
from mmbert.evaluation.suites.answers import AnswerMetric, exact_match, f1, mlqa_words, squad_words
from mmbert.evaluation.suites.base import DataSet, ModelFolder, Setup, Task
from mmbert.evaluation.suites.finetuning import FineTuning, fine_tune, load_head, load_tokenizer, predict, save_head
from mmbert.evaluation.suites.keeping import kept_folder, kept_json
from mmbert.evaluation.suites.measuring import Measure, Measured, scores_of
from mmbert.evaluation.suites.spans import Question, best_spans, windows

Prediction = Mapping[str, Any]
"""A question's `id`, the predicted `text`, its `score` (sum of two logits)."""

SETTINGS: Mapping[str, Any] = {
    "learning_rate": 3e-5,
    "epochs": 3,
    "batch_size": 32,
    "warmup": 0.0,
    "weight_decay": 1e-4,
    "max_length": 384,
    "stride": 128,
    "n_best": 20,
    "max_answer_tokens": 30,
}
_HUB = "https://huggingface.co/datasets/"
XQUAD_LANGUAGES = ("ar", "de", "el", "en", "es", "hi", "ru", "th", "tr", "vi", "zh")
MLQA_LANGUAGES = ("ar", "de", "en", "es", "hi", "vi", "zh")
TYDIQA_NAMES = {
    "ar": "arabic",
    "bn": "bengali",
    "en": "english",
    "fi": "finnish",
    "id": "indonesian",
    "ko": "korean",
    "ru": "russian",
    "sw": "swahili",
    "te": "telugu",
}
"""TyDiQA's languages and the names that its questions' ids begin with."""

SQUAD = DataSet("rajpurkar/squad", ("plain_text",), card=_HUB + "rajpurkar/squad")
XQUAD = DataSet("google/xquad", tuple(f"xquad.{code}" for code in XQUAD_LANGUAGES), card=_HUB + "google/xquad")
MLQA = DataSet("google/xtreme", tuple(f"MLQA.{code}.{code}" for code in MLQA_LANGUAGES), card=_HUB + "google/xtreme")
TYDIQA = DataSet("google-research-datasets/tydiqa", ("secondary_task",), card=_HUB + "google-research-datasets/tydiqa")


@dataclass(frozen=True)
class Trained:
    """What a model learns from: a data set and the questions read from it. `name` tells it apart among a model's."""

    name: str
    data: DataSet
    read: Callable[[Setup], list[Question]]


def questions(setup: Setup, data: DataSet, config: str, split: str) -> list[Question]:
    """One split in SQuAD's schema. Raises UserError where it has another one or is empty."""
    rows = setup.data.load(data, config, split, ("question", "context", "answers"))
    if not len(rows):
        raise UserError(f"{data.repo}, subset {config}, split {split}: no rows; fetch it again")
    return [Question.of({"id": number, **row}) for number, row in enumerate(rows)]


def _squad(setup: Setup) -> list[Question]:
    return questions(setup, SQUAD, "plain_text", "train")


def _xquad(setup: Setup, language: str) -> list[Question]:
    return questions(setup, XQUAD, f"xquad.{language}", "validation")


def _mlqa(setup: Setup, language: str) -> list[Question]:
    return questions(setup, MLQA, f"MLQA.{language}.{language}", "test")


def _tydiqa(setup: Setup, language: str, split: str = "validation") -> list[Question]:
    everything = questions(setup, TYDIQA, "secondary_task", split)
    own = [question for question in everything if question.id.startswith(f"{TYDIQA_NAMES[language]}-")]
    if not own:
        raise UserError(f"{TYDIQA.repo}, split {split}: no id begins with '{TYDIQA_NAMES[language]}-'")
    return own


ON_SQUAD = Trained("squad", SQUAD, _squad)
_ON_TYDIQA = Trained("tydiqa-en", TYDIQA, lambda setup: _tydiqa(setup, "en", "train"))


def answer_scores(
    model: ModelFolder,
    setup: Setup,
    *,
    suite: str,
    task: str,
    languages: Sequence[str],
    trained: Trained,
    test: Callable[[Setup, str], list[Question]],
    metrics: Mapping[str, AnswerMetric],
) -> list[Score]:
    """Train one model a seed, answer every language's questions with it, and score the answers.

    Predictions are kept by seed and language and the trained models with the model's shared work, so another attempt
    goes on where this one ended and other tasks find the models. `metrics` by the names they have in scores.
    """
    tests = {code: test(setup, code) for code in languages}
    answers: dict[str, list[list[Prediction]]] = {code: [] for code in languages}
    for seed in setup.seeds:
        reader = functools.cache(functools.partial(_trained, model, setup, trained, seed))
        for code, asked in tests.items():
            path = setup.kept / f"seed-{seed}" / f"{code}.json"
            answers[code].append(kept_json(path, functools.partial(_answer, reader, setup, asked)))
    scores: list[Score] = []
    for name, metric in metrics.items():
        measured = {code: _measured(metric, code, asked, answers[code]) for code, asked in tests.items()}
        scores += scores_of(
            suite,
            task,
            name,
            measured,
            seeds=setup.seeds,
            bootstrap_samples=setup.bootstrap_samples,
            settings={**setup.settings, "trained_on": trained.name},
        )
    return scores


@dataclass(frozen=True)
class _Reader:
    """A trained model with its tokenizer."""

    tokenizer: Any
    network: Any


def _trained(model: ModelFolder, setup: Setup, trained: Trained, seed: int) -> _Reader:
    """The fine-tuned model of a seed: trained and kept, unless it is there already."""
    settings = FineTuning.of(setup.settings)
    tokenizer = load_tokenizer(model.path)
    covered = [trained.name, setup.data.revision(trained.data), setup.settings["stride"], repr(settings), seed]

    def make(folder: Path) -> None:
        learnt = [question for question in trained.read(setup) if question.aligned]
        if not learnt:
            raise UserError(f"{trained.data.repo}: no answer stands in its context where answer_start says")
        features = [
            {"input_ids": w.input_ids, "start_positions": w.start, "end_positions": w.end}
            for w in windows(tokenizer, learnt, settings.max_length, setup.settings["stride"])
        ]
        network = fine_tune(model.path, "span", features, settings, seed=seed, device=setup.device)
        save_head(network, tokenizer, folder)

    folder = kept_folder(setup.shared / f"span-{trained.name}-{digest_json(covered)[:16]}", make)
    return _Reader(tokenizer, load_head(folder, "span", 2).to(setup.device).eval())


def _answer(reader: Callable[[], _Reader], setup: Setup, asked: Sequence[Question]) -> list[Prediction]:
    settings = setup.settings
    found = windows(reader().tokenizer, asked, settings["max_length"], settings["stride"])
    features = [{"input_ids": window.input_ids} for window in found]
    logits = predict(reader().network, "span", features, device=setup.device)
    best = best_spans(
        asked,
        found,
        [(row[:, 0], row[:, 1]) for row in logits],
        n_best=settings["n_best"],
        max_answer_tokens=settings["max_answer_tokens"],
    )
    return [
        {"id": question.id, "text": spans[0].text, "score": spans[0].score}
        for question, spans in zip(asked, best, strict=True)
    ]


def _measured(
    metric: AnswerMetric, language: str, asked: Sequence[Question], by_seed: Sequence[Sequence[Prediction]]
) -> Measured:
    references = [[metric.normalise(answer, language) for answer in question.answers] for question in asked]

    def measure(predicted: Sequence[Prediction]) -> Measure:
        words = [metric.normalise(prediction["text"], language) for prediction in predicted]
        values = np.array([metric.compare(own, accepted) for own, accepted in zip(words, references, strict=True)])
        return lambda rows: float(values[rows].mean())

    return Measured(len(asked), [measure(predicted) for predicted in by_seed])


SQUAD_METRICS: Mapping[str, AnswerMetric] = {
    "f1": AnswerMetric(f1, squad_words),
    "exact_match": AnswerMetric(exact_match, squad_words),
}
_MLQA_METRICS: Mapping[str, AnswerMetric] = {
    "f1": AnswerMetric(f1, mlqa_words),
    "exact_match": AnswerMetric(exact_match, mlqa_words),
    "squad_f1": AnswerMetric(f1, squad_words),
}
"""`squad_f1`: the code of the published scores normalises MLQA as SQuAD, in every language."""


def _task(
    name: str,
    data: tuple[DataSet, ...],
    trained: Trained,
    test: Callable[[Setup, str], list[Question]],
    languages: tuple[str, ...],
    metrics: Mapping[str, AnswerMetric],
) -> Task:
    run = functools.partial(
        answer_scores, suite="xtreme", task=name, languages=languages, trained=trained, test=test, metrics=metrics
    )
    return Task(name, 1, data, languages, tuple(metrics), SETTINGS, run)


TASKS: tuple[Task, ...] = (
    _task("xquad", (SQUAD, XQUAD), ON_SQUAD, _xquad, XQUAD_LANGUAGES, SQUAD_METRICS),
    _task("mlqa", (SQUAD, MLQA), ON_SQUAD, _mlqa, MLQA_LANGUAGES, _MLQA_METRICS),
    _task("tydiqa", (TYDIQA,), _ON_TYDIQA, _tydiqa, tuple(TYDIQA_NAMES), SQUAD_METRICS),
)
