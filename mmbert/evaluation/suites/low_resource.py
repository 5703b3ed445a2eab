"""The suite `low-resource`: questions in Tigrinya (TiQuAD) and Faroese (FoQA), languages new to mmBERT's last phase.

The paper (arXiv 2509.06888) gives F1 by decay variant; what its models were fine-tuned on could not be established. The
default is zero-shot from English, with the SQuAD model that XQuAD and MLQA take; `train_on: own` trains on the
language's own questions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mmbert.errors import UserError
from mmbert.evaluation.scores import Score
from mmbert.evaluation.suites.answers import AnswerMetric, exact_match, f1, tiquad_words
from mmbert.evaluation.suites.base import DataSet, ModelFolder, Setup, Suite, Task
from mmbert.evaluation.suites.question_answering import (
    ON_SQUAD,
    SETTINGS,
    SQUAD,
    SQUAD_METRICS,
    Trained,
    answer_scores,
    questions,
)

NAME = "low-resource"
_HUB = "https://huggingface.co/datasets/"
TIQUAD = DataSet("fgaim/tiquad", card=_HUB + "fgaim/tiquad")
FOQA = DataSet("alexandrainst/foqa", card=_HUB + "alexandrainst/foqa")
_TIQUAD_METRICS: Mapping[str, AnswerMetric] = {
    "f1": AnswerMetric(f1, tiquad_words),
    "exact_match": AnswerMetric(exact_match, tiquad_words),
}


@dataclass(frozen=True)
class _Language:
    """A task in one language. TiQuAD's test set is not public; its validation set stands for it."""

    name: str
    code: str
    data: DataSet
    test_split: str
    metrics: Mapping[str, AnswerMetric]

    def run(self, model: ModelFolder, setup: Setup) -> list[Score]:
        own = Trained(self.name, self.data, lambda setup: questions(setup, self.data, "default", "train"))
        choices = {"squad": ON_SQUAD, "own": own}
        chosen = setup.settings["train_on"]
        if chosen not in choices:
            raise UserError(f"{self.name}: train_on is '{chosen}'; it must be one of {', '.join(choices)}")
        return answer_scores(
            model,
            setup,
            suite=NAME,
            task=self.name,
            languages=(self.code,),
            trained=choices[chosen],
            test=lambda setup, _: questions(setup, self.data, "default", self.test_split),
            metrics=self.metrics,
        )


def _task(language: _Language) -> Task:
    settings = {**SETTINGS, "train_on": "squad"}
    data = (SQUAD, language.data)
    return Task(language.name, 1, data, (language.code,), tuple(language.metrics), settings, language.run)


SUITE = Suite(
    NAME,
    "Question answering in languages new to the last phase",
    (
        _task(_Language("tiquad", "ti", TIQUAD, "validation", _TIQUAD_METRICS)),
        _task(_Language("foqa", "fo", FOQA, "test", SQUAD_METRICS)),
    ),
    published="low-resource-qa",
)
