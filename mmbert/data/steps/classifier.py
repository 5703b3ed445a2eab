"""A hook for quality classifiers, as FineWeb2-HQ uses them (Messmer et al. 2025): a score a document, the best kept."""

from __future__ import annotations

import importlib
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from datatrove.data import Document as Record
from datatrove.pipeline.filters.base_filter import BaseFilter

from mmbert.data.steps.fasttext_model import FastTextModel
from mmbert.data.steps.verdict import Verdict
from mmbert.errors import UserError
from mmbert.recipe.schema import QualityClassifier

SCORE = "quality_score"
"""The score's name among a document's facts."""
DECIMALS = 4
"""Scores are rounded, so that counting them takes bounded memory."""
_FASTTEXT = "fasttext:"

Scorer = Callable[[Sequence[str], str], Sequence[float]]
"""Texts of one language, and its code -> their scores, the higher the better."""


class ScoreQuality(BaseFilter):
    """Puts a score into each document's facts; drops those below their language's minimum (`low_quality`).

    The scorer is loaded at the first document, once a process. Raises UserError for a scorer that cannot be imported or
    that does not give one finite number a text.
    """

    name = "quality classifier"

    def __init__(self, settings: QualityClassifier, exclusion_writer: Any = None) -> None:
        super().__init__(exclusion_writer, batch_size=settings.batch_size)
        self.settings = settings
        self._scorer: Scorer | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_scorer": None}

    def filter(self, doc: Record) -> Verdict:
        return self.filter_batch([doc])[0]

    def filter_batch(self, batch: list[Record]) -> list[Verdict]:
        languages: dict[str, list[Record]] = defaultdict(list)
        for record in batch:
            languages[record.metadata["language"]].append(record)
        for language, records in languages.items():
            scores = self._scores([record.text for record in records], language)
            for record, score in zip(records, scores, strict=True):
                record.metadata["facts"][SCORE] = round(score, DECIMALS)
        return [_verdict(record, min_score(self.settings, record.metadata["language"])) for record in batch]

    def _scores(self, texts: list[str], language: str) -> list[float]:
        if self._scorer is None:
            self._scorer = load_scorer(self.settings.scorer)
        scores = [float(score) for score in self._scorer(texts, language)]
        if len(scores) != len(texts) or not all(map(math.isfinite, scores)):
            raise UserError(
                f"curation.quality_classifier.scorer {self.settings.scorer}: {len(texts)} texts in {language} got "
                f"{len(scores)} scores, {sum(map(math.isfinite, scores))} of them finite; give each one finite number"
            )
        return scores


def _verdict(record: Record, least: float | None) -> Verdict:
    return least is None or record.metadata["facts"][SCORE] >= least or (False, "low_quality")


def min_score(settings: QualityClassifier, language: str) -> float | None:
    return settings.min_score_by_language.get(language, settings.min_score)


def keep_share(settings: QualityClassifier, language: str) -> float | None:
    return settings.keep_share_by_language.get(language, settings.keep_share)


def load_scorer(name: str) -> Scorer:
    """The scorer of a recipe: a function by `package.module:function`, or `fasttext:FILE#LABEL`."""
    if file := fasttext_file(name):
        return _fasttext_scorer(name, FastTextModel(file), name.rpartition("#")[2])
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(f"curation.quality_classifier.scorer {name}: cannot be imported: {error}") from error
    if not callable(found):
        raise UserError(f"curation.quality_classifier.scorer {name}: is no function")
    scorer: Scorer = found
    return scorer


def fasttext_file(name: str) -> str | None:
    """The model's name in `fasttext:FILE#LABEL`."""
    return name.removeprefix(_FASTTEXT).rpartition("#")[0] if name.startswith(_FASTTEXT) else None


def _fasttext_scorer(name: str, model: FastTextModel, label: str) -> Scorer:
    if label not in model.labels():
        shown = ", ".join(sorted(model.labels())[:10])
        raise UserError(f"curation.quality_classifier.scorer {name}: the model has no label '{label}'; it has {shown}")
    return lambda texts, language: [model.probabilities(text).get(label, 0.0) for text in texts]  # noqa: ARG005
