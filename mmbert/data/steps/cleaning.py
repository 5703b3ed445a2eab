"""The steps that a recipe's `curation` asks for, in order, and what of it decides about one language."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep

from mmbert.data.steps import classifier, language
from mmbert.data.steps.fasttext_model import is_on_hub, model_file
from mmbert.data.steps.light import Quality
from mmbert.data.steps.personal_data import MaskPersonalData
from mmbert.data.steps.repair import Repair
from mmbert.data.steps.web_quality import WebFilters, limits_of
from mmbert.recipe.languages import CODE
from mmbert.recipe.schema import Curation, QualityClassifier

VERSION = 1
"""Raised by hand when the steps give other results for the same settings."""


def cleaning_steps(curation: Curation, exclusion_writer: Any = None) -> list[PipelineStep]:
    """The steps in order, the cheap ones first; what they drop goes to `exclusion_writer` with `filter_reason`.

    Addresses are masked before any filter, so that no dropped document shows one.
    """
    steps: list[PipelineStep] = [Repair()]
    if curation.personal_data:
        steps.append(MaskPersonalData(curation.personal_data))
    steps.append(Quality(curation, exclusion_writer))
    if curation.language_identification:
        steps.append(language.LanguageAgreement(curation.language_identification, exclusion_writer))
    if curation.quality:
        steps.append(WebFilters(curation.quality, exclusion_writer))
    if curation.quality_classifier:
        steps.append(classifier.ScoreQuality(curation.quality_classifier, exclusion_writer))
    return steps


def language_settings(curation: Curation, code: str) -> dict[str, Any]:
    """All that decides what happens to the documents of one language, thresholds resolved, as JSON.

    Files of models count by their content, files of the hub by their name: pin a revision. Raises UserError for a model
    file that is missing.
    """
    settings: dict[str, Any] = {"version": VERSION, "max_characters": curation.max_characters}
    settings["light"] = {"min_characters": curation.min_characters}
    if code != CODE:
        settings["light"] |= {
            "min_letter_share": curation.min_letter_share,
            "max_repeated_line_share": curation.max_repeated_line_share,
        }
    if curation.personal_data:
        personal_data = curation.personal_data
        settings["personal_data"] = personal_data.model_dump(mode="json") | {
            "ip_addresses": personal_data.ip_addresses and code != CODE
        }
    if curation.language_identification and code != CODE:
        identification = curation.language_identification
        settings["language_identification"] = {
            "model": _model_identity(identification.model),
            "min_score": language.min_score(identification, code),
            "min_characters": identification.min_characters,
            "max_characters": identification.max_characters,
        }
    if curation.quality and code != CODE:
        settings["quality"] = {"filters": sorted(curation.quality.filters)}
        settings["quality"] |= _as_json(asdict(limits_of(curation.quality, code)))
    if curation.quality_classifier:
        settings["quality_classifier"] = _classifier_settings(curation.quality_classifier, code)
    return settings


def _classifier_settings(settings: QualityClassifier, code: str) -> dict[str, Any]:
    file = classifier.fasttext_file(settings.scorer)
    return {
        "scorer": settings.scorer,
        "model": _model_identity(file) if file else None,
        "min_score": classifier.min_score(settings, code),
    }


def _model_identity(name: str) -> str:
    return name if is_on_hub(name) else _sha256(model_file(name))


@functools.cache
def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _as_json(value: Any) -> Any:
    """Tuples as lists, as they come back from JSON."""
    if isinstance(value, dict):
        return {key: _as_json(item) for key, item in value.items()}
    return [_as_json(item) for item in value] if isinstance(value, tuple) else value
