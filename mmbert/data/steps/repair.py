"""Repair and normalisation of text, and the splitting of long documents."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Any

from datatrove.data import Document as Record
from datatrove.pipeline.formatters import FTFYFormatter
from ftfy.badness import BADNESS_RE, MOJIBAKE_CATEGORIES

from mmbert.recipe.languages import CODE

_LINE_ENDS = re.compile(r"\r\n?|[\u0085\u2028\u2029\v\f]")
# Patterns match only what they change: nearly all spaces and line ends are right.
_SPACES = re.compile(r"[^\S\n ][^\S\n]*| [^\S\n]+")
_AROUND_NEWLINES = re.compile(r" \n ?|\n ")
_MANY_NEWLINES = re.compile(r"\n{3,}")
_SURROGATES = re.compile(r"[\ud800-\udfff]")

# What ftfy changes whatever stands around it, or may: HTML entities, control characters, surrogates, two letters.
_CHANGED_ALONE = re.compile(r"[&\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\u206a-\u206f\ufeff\ufff9-\ufffc\ud800-\udfffÃÂ]")
# Every other sequence that ftfy takes for a sign of a wrong encoding holds one of these beside another non-ASCII
# character, or one of the last two.
_CATEGORIES = "bad law currency start_punctuation end_punctuation numeric upper_accented lower_accented box".split()  # noqa: SIM905
_SUSPECT = f"[{''.join(MOJIBAKE_CATEGORIES[name] for name in _CATEGORIES)}Ù°Ђ]"
_SUSPECTS = re.compile(rf"{_SUSPECT}(?:(?=[^\x00-\x7f])|(?<=[^\x00-\x7f].))|[Œœ]", re.DOTALL)
_LONGEST_SUSPICION = 6


class Repair(FTFYFormatter):
    """Mojibake and stray control characters repaired, NFC, one space between words, at most one empty line.

    Source code keeps its spaces and characters. ftfy itself is asked only where it might change something.
    """

    name = "repair"

    def __init__(self) -> None:
        super().__init__(normalization="NFC")

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Record]:  # noqa: ARG002
        for record in data:
            with self.track_time():
                text = _SURROGATES.sub("\ufffd", _LINE_ENDS.sub("\n", record.text))
                record.text = text if record.metadata["language"] == CODE else self.format(text)
            yield record

    def format(self, text: str) -> str:
        repaired = _AROUND_NEWLINES.sub("\n", _SPACES.sub(" ", self._fixed(text)))
        return _MANY_NEWLINES.sub("\n\n", repaired).strip()

    def _fixed(self, text: str) -> str:
        """What ftfy makes of a text."""
        if not ftfy_may_change(text):
            normalised = unicodedata.normalize("NFC", text)
            # ftfy looks at what it has normalised once more.
            if normalised == text or not ftfy_may_change(normalised):
                return normalised
        return str(super().format(text))


def ftfy_may_change(text: str) -> bool:
    """False only where ftfy, with datatrove's settings, changes nothing but the normal form.

    Most of ftfy's time goes into one pattern of 35 alternatives; here it sees only the places that can match it.
    """
    if _CHANGED_ALONE.search(text):
        return True
    if text.isascii():
        return False
    margin = _LONGEST_SUSPICION
    return any(
        BADNESS_RE.search(text, max(0, found.start() - margin), found.end() + margin)
        for found in _SUSPECTS.finditer(text)
    )
