"""Scores and scorecards of made-up models for tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmbert.evaluation.results.scorecard import Scorecard
from mmbert.evaluation.scores import Score, Units


def score(
    task: str = "xnli", value: float = 0.7, width: float = 0.02, language: str | None = None, **rest: Any
) -> Score:
    """A score with an interval of `width` to both sides."""
    made = {"suite": "xtreme", "metric": "accuracy", "n": 500, "data_revision": "abc"}
    return Score(task=task, value=value, low=value - width, high=value + width, language=language, **{**made, **rest})


def card(*scores: Score, model: str = "one", **rest: Any) -> Scorecard:
    made = {"model_digest": f"digest-of-{model}", "kind": "release", "suite": scores[0].suite if scores else ""}
    return Scorecard(model, scores=tuple(scores), **{**made, **rest})


def measured(right: np.ndarray, **rest: Any) -> Score:
    """An accuracy with its units: [n] of 0 and 1."""
    value = float(right.mean())
    error = float(right.std()) / np.sqrt(len(right))
    return score(value=value, width=1.96 * error, n=len(right), units=Units(tuple(map(float, right))), **rest)
