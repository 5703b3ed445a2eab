"""A model's scores with all that identifies them: one schema for `scores.json`, results store and MLflow."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from mmbert.errors import UserError
from mmbert.evaluation.metrics import is_share
from mmbert.evaluation.scores import Score

SCHEMA_VERSION = 2
"""Raised whenever a field changes its meaning. Version 1 named no model digest and is not read."""

PUBLISHED = "published"
"""The kind of a scorecard that was made of published tables."""


@dataclass(frozen=True)
class Scorecard:
    """The scores of one model. `model` is its label, `model_digest` the content digest of its files.

    `suite` is empty where the scores are of several. `when` is ISO 8601 in UTC, `commit` that of the code; both are
    empty where that is not known.
    """

    model: str
    model_digest: str
    kind: str
    suite: str
    scores: tuple[Score, ...] = field(repr=False)
    when: str = ""
    commit: str = ""

    def to_json(self) -> dict[str, Any]:
        scores = [score.to_json() for score in self.scores]
        known = {key: value for key, value in _header(self).items() if value or key not in {"when", "commit"}}
        return {"schema_version": SCHEMA_VERSION, **known, "scores": scores}

    def suites(self) -> list[str]:
        return list(dict.fromkeys(score.suite for score in self.scores))


def _header(card: Scorecard) -> dict[str, str]:
    return {f.name: str(getattr(card, f.name)) for f in fields(card) if f.name != "scores"}


def read_scorecard(data: bytes | Mapping[str, Any], where: str) -> Scorecard:
    """The scorecard of a `scores.json`, or of what it holds.

    Raises UserError where it is none, of another schema version, or a score is impossible; `where` is named.
    """
    content = _parsed(data, where)
    version = content.get("schema_version", 1)
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{where}: scores of schema version {version}; this version of mmbert reads version {SCHEMA_VERSION}. "
            + (
                "Evaluate the model again"
                if version == 1
                else "Use the version of mmbert that wrote it, or a later one"
            )
        )
    try:
        scores = tuple(Score.from_json(score) for score in content["scores"])
        card = Scorecard(
            model=content["model"],
            model_digest=content["model_digest"],
            kind=content.get("kind", ""),
            suite=content.get("suite", ""),
            scores=scores,
            when=content.get("when", ""),
            commit=content.get("commit", ""),
        )
    except KeyError as error:
        raise UserError(f"{where}: the key {error} is missing") from error
    except (TypeError, AttributeError) as error:
        raise UserError(f"{where}: a score does not have the fields of schema version 2: {error}") from error
    check(card, where)
    return card


def _parsed(data: bytes | Mapping[str, Any], where: str) -> Mapping[str, Any]:
    if isinstance(data, Mapping):
        return data
    try:
        content = json.loads(data)
    except ValueError as error:
        raise UserError(f"{where}: no scores file: {error}") from error
    if not isinstance(content, dict) or "scores" not in content:
        raise UserError(f"{where}: no scores file: it has no key 'scores'")
    return content


def check(card: Scorecard, where: str) -> None:
    """Raises UserError for a score that cannot be: not finite, percent, or there twice."""
    seen = set()
    for score in card.scores:
        if not all(math.isfinite(value) for value in (score.value, score.low, score.high)):
            raise UserError(f"{where}: {score.name} is {score.value} ({score.low} to {score.high}), no finite number")
        if is_share(score.metric) and not -1 <= score.value <= 1:
            raise UserError(f"{where}: {score.name} is {score.value}; shares are 0 to 1, correlations -1 to 1")
        if score.name in seen:
            raise UserError(f"{where}: {score.name} stands there twice")
        seen.add(score.name)


def merged(cards: Iterable[Scorecard], where: str) -> Scorecard:
    """One scorecard of several suites of one model. Raises UserError where they are of different models or overlap."""
    found = list(cards)
    if not found:
        raise UserError(f"{where}: no scores there")
    digests = {card.model_digest: card.model for card in found}
    if len(digests) > 1:
        named = ", ".join(f"{label} ({digest[:12]})" for digest, label in digests.items())
        raise UserError(f"{where}: scores of several models: {named}; give one model's")
    if len(found) == 1:
        return found[0]
    latest = max(found, key=lambda card: card.when)
    scores = tuple(score for card in found for score in card.scores)
    card = Scorecard(latest.model, latest.model_digest, latest.kind, "", scores, latest.when, latest.commit)
    check(card, where)
    return card
