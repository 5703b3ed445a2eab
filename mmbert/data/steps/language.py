"""Language identification: the language that a source gives must be found in the text, and its script be the text's."""

from __future__ import annotations

from typing import Any

from datatrove.data import Document as Record
from datatrove.pipeline.filters.base_filter import BaseFilter

from mmbert.data.scripts import script_of
from mmbert.data.steps import lid176
from mmbert.data.steps.fasttext_model import LID176, FastTextModel
from mmbert.data.steps.verdict import Verdict
from mmbert.recipe.languages import CODE
from mmbert.recipe.schema import LanguageIdentification
from mmbert.recipe.thresholds import published_thresholds

_SAMPLES = 4
# Less is taken for 0.
_LEAST_PROBABILITY = 0.01


class LanguageAgreement(BaseFilter):
    """Drops documents in another script (`wrong_script`) or language (`wrong_language`) than their source gives.

    The facts of a judged document get `identified`, the most probable language, and `language_score`, the probability
    of its own. Languages that the model does not know, or lid.176 too badly, have only their script checked, and so do
    texts of less than `min_characters`. Source code passes. Raises what FastTextModel does.
    """

    name = "language agreement"

    def __init__(self, settings: LanguageIdentification, exclusion_writer: Any = None) -> None:
        super().__init__(exclusion_writer)
        self.settings = settings
        self.model = FastTextModel(settings.model)

    def filter(self, doc: Record) -> Verdict:
        language = doc.metadata["language"]
        if language == CODE:
            return True
        text = sample(doc.text, self.settings.max_characters)
        if not script_fits(text, language):
            return False, "wrong_script"
        labels = labels_of(self.model, language)
        if not labels or len(doc.text) < self.settings.min_characters:
            return True
        found = self.model.probabilities(text, _LEAST_PROBABILITY)
        score = min(sum(found.get(label, 0.0) for label in labels), 1.0)
        identified = language_of(self.model, next(iter(found), ""))
        doc.metadata["facts"] |= {"identified": identified, "language_score": round(score, 3)}
        return score >= min_score(self.settings, language) or (False, "wrong_language")


def min_score(settings: LanguageIdentification, language: str) -> float:
    """The score that a document of a language must reach: the recipe's for it, the recipe's for all, the model's.

    The published thresholds are of GlotLID's scores and do not fit lid.176 (they would drop 90% of Nepali).
    """
    if language in settings.min_score_by_language:
        return settings.min_score_by_language[language]
    if settings.min_score is not None:
        return settings.min_score
    if settings.model == LID176:
        return lid176.MIN_SCORE
    return float(published_thresholds(language)["language_score"])


def labels_of(model: FastTextModel, language: str) -> tuple[str, ...]:
    """The model's labels whose scores count for a language; none where the model cannot judge it."""
    if model.name == LID176:
        return tuple(lid176.LABELS.get(language, "").split())
    return (language,) if language in model.labels() else ()


def language_of(model: FastTextModel, label: str) -> str:
    """The code of a model's label; the label itself where it has none."""
    return lid176.LANGUAGES.get(label, label) if model.name == LID176 else label


def script_fits(text: str, language: str) -> bool:
    """Whether most letters are of the language's script; a text without letters shows no other."""
    script = language.rpartition("_")[2]
    found = script_of(text)
    # Japanese without kana (a title, a list of names) does not differ from Chinese by its script.
    return found in {None, script} or (script == "Jpan" and found == "Hani")


def sample(text: str, max_characters: int) -> str:
    """A text's pieces, evenly spread, of `max_characters` together; all of a text that is not longer."""
    if len(text) <= max_characters:
        return text
    length = max(1, max_characters // _SAMPLES)
    last = len(text) - length
    return "\n".join(text[start : start + length] for start in (last * i // (_SAMPLES - 1) for i in range(_SAMPLES)))
