"""Curation's steps between reader and writer, as datatrove steps: repair, filters, splitting, exact deduplication."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import regex
from datatrove.data import Document as Record
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.filters.gopher_repetition_filter import find_duplicates
from datatrove.pipeline.formatters import FTFYFormatter

from mmbert.data.documents import HELD_OUT
from mmbert.recipe.languages import CODE
from mmbert.recipe.schema import Curation

_SPACES = regex.compile(r"[^\S\n]+")
_LINE_ENDS = regex.compile(r"\r\n?|[\u0085\u2028\u2029\v\f]")
_AROUND_NEWLINES = regex.compile(r" ?\n ?")
_MANY_NEWLINES = regex.compile(r"\n{3,}")
_SURROGATES = regex.compile(r"[\ud800-\udfff]")
# Vowel signs and other marks carry as much of a word as letters do.
_LETTERS = regex.compile(r"[\p{L}\p{M}]")

Verdict = bool | tuple[bool, str]


def text_digest(language: str, text: str) -> bytes:
    """16 bytes that stand for a text within its language."""
    return hashlib.blake2b(f"{language}\0{text}".encode(), digest_size=16).digest()


class Repair(FTFYFormatter):
    """Mojibake and stray control characters repaired, NFC, one space between words, at most one empty line.

    Source code keeps its spaces and characters.
    """

    name = "repair"

    def __init__(self) -> None:
        super().__init__(normalization="NFC")

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Record]:  # noqa: ARG002
        for record in data:
            text = _SURROGATES.sub("\ufffd", _LINE_ENDS.sub("\n", record.text))
            record.text = text if record.metadata["language"] == CODE else self.format(text)
            yield record

    def format(self, text: str) -> str:
        repaired = _AROUND_NEWLINES.sub("\n", _SPACES.sub(" ", super().format(text)))
        return str(_MANY_NEWLINES.sub("\n\n", repaired).strip())


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


class SplitLong(PipelineStep):
    """Splits longer texts at a line's end or a space; all pieces stay in the document's split."""

    type = "split"
    name = "split long"

    def __init__(self, max_characters: int) -> None:
        super().__init__()
        self.max_characters = max_characters

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Record]:  # noqa: ARG002
        for record in data:
            pieces = split_text(record.text, self.max_characters)
            if len(pieces) == 1:
                yield record
                continue
            for number, piece in enumerate(pieces):
                yield Record(text=piece, id=f"{record.id}#{number}", metadata=record.metadata)


def split_text(text: str, max_characters: int) -> list[str]:
    """Pieces of at most `max_characters`; nothing is lost but the line end or space that a cut falls on."""
    pieces = []
    start = 0
    while len(text) - start > max_characters:
        end = start + max_characters
        # A cut in the first half would make more pieces than needed.
        middle = start + max_characters // 2
        cut = text.rfind("\n", middle, end + 1)
        cut = cut if cut > start else text.rfind(" ", middle, end + 1)
        if cut > start:
            pieces.append(text[start:cut])
            start = cut + 1
        else:
            pieces.append(text[start:end])
            start = end
    if start < len(text) or not pieces:
        pieces.append(text[start:])
    return pieces


class ExactDeduplication(BaseFilter):
    """Drops texts that their language has already, and training texts that equal a held-out one.

    Where the training copy came first, its digest goes into `withdrawn` and the writer takes it out again. Holds a
    digest of 16 bytes a document in memory.
    """

    name = "exact deduplication"

    def __init__(self, drop_repeated: bool, exclusion_writer: Any) -> None:
        super().__init__(exclusion_writer)
        self.drop_repeated = drop_repeated
        self.held_out: dict[bytes, bool] = {}
        self.withdrawn: set[bytes] = set()

    def filter(self, doc: Record) -> Verdict:
        digest = text_digest(doc.metadata["language"], doc.text)
        held_out = doc.metadata["split"] == HELD_OUT
        before = self.held_out.get(digest)
        self.held_out[digest] = held_out or bool(before)
        if held_out and before is False:
            self.withdrawn.add(digest)
            return True
        if before and not held_out:
            return False, "equals_held_out"
        return not (self.drop_repeated and before is not None) or (False, "duplicate")
