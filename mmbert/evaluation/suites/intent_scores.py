"""Accuracy and macro-F1 of intent predictions, with intervals that resample templates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmbert.evaluation.scores import interval, resampling_counts

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Predictions:
    """One language's test sentences: the template each came from, its intent and the predicted one."""

    language: str
    templates: Sequence[str]
    truth: Sequence[str]
    predicted: Sequence[str]

    @property
    def majority(self) -> float:
        """Accuracy of always guessing the commonest intent of the test sentences."""
        return float(max(np.unique(np.asarray(self.truth), return_counts=True)[1]) / len(self.truth))


@dataclass(frozen=True)
class Estimate:
    value: float
    low: float
    high: float


def accuracy(languages: Sequence[Predictions], samples: int, seed: int) -> Estimate:
    """Share of right predictions over all sentences of the given languages."""
    tables = [_by_template(p) for p in languages]
    right = np.concatenate([t.true_positives.sum(axis=1) for t in tables])
    total = np.concatenate([t.support.sum(axis=1) for t in tables])
    counts = resampling_counts(len(right), samples, seed)
    return Estimate(float(right.sum() / total.sum()), *interval((counts @ right) / (counts @ total)))


def macro_f1(languages: Sequence[Predictions], samples: int, seed: int) -> Estimate:
    """F1 averaged over a language's intents, then over languages. Templates are resampled within a language."""
    tables = [_by_template(p) for p in languages]
    value = np.mean([_f1(t, np.ones((1, len(t.support))))[0] for t in tables])
    drawn = [_f1(t, resampling_counts(len(t.support), samples, seed + index)) for index, t in enumerate(tables)]
    return Estimate(float(value), *interval(np.mean(drawn, axis=0)))


@dataclass(frozen=True)
class _Counts:
    """By template and intent, [T, C]: right predictions, predictions, and true sentences."""

    true_positives: FloatArray
    predictions: FloatArray
    support: FloatArray


def _by_template(predictions: Predictions) -> _Counts:
    truth, predicted = np.asarray(predictions.truth), np.asarray(predictions.predicted)
    intents = np.unique(np.concatenate([truth, predicted]))
    templates, rows = np.unique(np.asarray(predictions.templates), return_inverse=True)
    is_true, is_predicted = truth[:, None] == intents, predicted[:, None] == intents

    def summed(marks: npt.NDArray[np.bool_]) -> FloatArray:
        table = np.zeros((len(templates), len(intents)))
        np.add.at(table, rows, marks)
        return table

    return _Counts(summed(is_true & is_predicted), summed(is_predicted), summed(is_true))


def _f1(table: _Counts, counts: FloatArray) -> FloatArray:
    """Mean F1 over the intents that occur in a sample, for each row of counts [B, T]: [B]."""
    positives = counts @ table.true_positives
    support = counts @ table.support
    either = counts @ table.predictions + support
    scores = np.where(support > 0, 2 * positives / np.maximum(either, 1), np.nan)
    means: FloatArray = np.nanmean(scores, axis=1)
    return means
