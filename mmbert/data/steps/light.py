"""The light filter, which suits any text, single sentences included."""

from __future__ import annotations

from typing import Any

import regex
from datatrove.data import Document as Record
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.filters.gopher_repetition_filter import find_duplicates

from mmbert.data.steps.verdict import Verdict
from mmbert.recipe.languages import CODE
from mmbert.recipe.schema import Curation

# Vowel signs and other marks carry as much of a word as letters do.
_LETTERS = regex.compile(r"[\p{L}\p{M}]")


class Quality(BaseFilter):
    """Drops texts that are too short, have few letters, or repeat their lines; source code only has to be long enough.

    One step for the three, since a datatrove step costs more than these checks do. Repeated lines are Gopher's
    duplicate line fraction (Rae et al. 2021, table A1).
    """

    name = "quality"

    def __init__(self, curation: Curation, exclusion_writer: Any) -> None:
        super().__init__(exclusion_writer)
        self.curation = curation

    def filter(self, doc: Record) -> Verdict:
        if len(doc.text) < max(self.curation.min_characters, 1):
            return False, "too_short"
        if doc.metadata["language"] == CODE:
            return True
        if letter_share(doc.text, self.curation.min_letter_share) < self.curation.min_letter_share:
            return False, "few_letters"
        lines = [line for line in doc.text.split("\n") if line]
        repeated, _ = find_duplicates(lines)
        return repeated <= self.curation.max_repeated_line_share * len(lines) or (False, "repeated_lines")


def letter_share(text: str, enough: float = 1.0) -> float:
    """Letters and marks among the characters that are not white space; a lower bound suffices once it is `enough`."""
    visible = max(1, len("".join(text.split())))
    # Counting letters alone is much faster and settles nearly all texts.
    letters = sum(map(str.isalpha, text)) / visible
    return letters if letters >= enough else len(_LETTERS.findall(text)) / visible
