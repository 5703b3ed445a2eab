"""The texts that each suite evaluates on, for decontamination. A suite registers itself here; no model is loaded.

Text that a recipe's own sources hold out is not among them: curation knows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from mmbert.data.steps.decontamination import EvaluationText
from mmbert.errors import UserError
from mmbert.evaluation.suites.intents import suite_sentences
from mmbert.evaluation.suites.names import DEMO, INTENTS
from mmbert.recipe.schema import Evaluation

SuiteTexts = Callable[[Evaluation, int], Iterator[EvaluationText]]
"""The texts of a suite with a recipe's settings and seed."""

_SUITES: dict[str, SuiteTexts] = {}


def register(suite: str) -> Callable[[SuiteTexts], SuiteTexts]:
    """Make a function the source of a suite's texts."""

    def add(texts: SuiteTexts) -> SuiteTexts:
        _SUITES[suite] = texts
        return texts

    return add


def evaluation_texts(suites: Iterable[str], settings: Evaluation, seed: int) -> Iterator[EvaluationText]:
    """The texts of some suites. Raises UserError for a suite that did not register itself."""
    for suite in suites:
        if suite not in _SUITES:
            raise UserError(
                f"curation.decontamination.suites: no suite '{suite}'; there are {', '.join(sorted(_SUITES))}"
            )
        yield from _SUITES[suite](settings, seed)


@register(DEMO)
def _demo(settings: Evaluation, seed: int) -> Iterator[EvaluationText]:
    for sentences in suite_sentences(settings, seed).values():
        for sentence in sentences:
            yield EvaluationText(f"{DEMO}/{INTENTS}", sentence.text)
