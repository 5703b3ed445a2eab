"""The planner against mmBERT's published token counts: do the counts of later phases follow from those of phase 1?

Phase 1 drew with p ~ size^0.7, so its counts tell sizes up to a factor: size ~ count^(1/0.7). Planned from these at a
later phase's temperature, the common languages' shares are compared with that phase's counts. docs/mixture.md reads the
result.
"""

from __future__ import annotations

import csv
import functools
import math
import statistics
from dataclasses import dataclass
from importlib import resources

from mmbert.data.mixture import plan_mixture
from mmbert.recipe.languages import CODE, language_table
from mmbert.recipe.schema import Mixture

FIRST, FIRST_TEMPERATURE = "pretrain", 0.7
LATER = {"ext": 0.5, "decay-eng": 0.3, "decay-mid": 0.3, "decay-all": 0.3}
"""Columns of the published counts and the temperatures of their phases."""
CLOSE = 1.1
"""A share is close where it is off by at most this factor."""

_ENGLISH = "eng_Latn"


@dataclass(frozen=True)
class Comparison:
    """`ratios`: published over planned share of each non-English language that phase 1 and this phase have."""

    column: str
    temperature: float
    ratios: dict[str, float]

    @property
    def close(self) -> int:
        return len(self.ratios) - len(self.outliers())

    @property
    def median_ratio(self) -> float:
        return statistics.median(self.ratios.values())

    @property
    def median_error(self) -> float:
        """Of |ratio - 1|."""
        return statistics.median(abs(ratio - 1) for ratio in self.ratios.values())

    def outliers(self) -> dict[str, float]:
        """Languages that are not close, the lowest ratio first."""
        far = {code: ratio for code, ratio in self.ratios.items() if abs(math.log(ratio)) > math.log(CLOSE)}
        return dict(sorted(far.items(), key=lambda item: item[1]))


def compare_with_published(column: str, temperature: float) -> Comparison:
    """A later phase's published shares against those planned from phase 1's counts."""
    counts = {code: entry.tokens for code, entry in language_table().items() if code not in {CODE, _ENGLISH}}
    common = [code for code, tokens in counts.items() if tokens[FIRST] and tokens[column]]
    sizes = {("phase 1", code): round(counts[code][FIRST] ** (1 / FIRST_TEMPERATURE)) for code in common}
    total = sum(counts[code][column] for code in common)
    plan = plan_mixture(sizes, Mixture(languages="all", temperature=temperature), common, total)
    planned = plan.languages()
    return Comparison(
        column, temperature, {code: counts[code][column] / total / planned[code].share for code in common}
    )


@functools.cache
def scripts_by_code() -> dict[str, tuple[str, ...]]:
    """ISO 639-3 code -> the scripts in which FineWeb2 has it, from the table of its languages in datatrove."""
    text = resources.files("datatrove").joinpath("assets", "tokenizer_assignment.csv").read_text("utf-8")
    found: dict[str, set[str]] = {}
    for row in csv.DictReader(text.splitlines()):
        found.setdefault(row["code_3"], set()).add(row["script"])
    return {code: tuple(sorted(scripts)) for code, scripts in found.items()}
