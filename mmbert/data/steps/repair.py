"""Repair and normalisation of text, and the splitting of long documents."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import regex
from datatrove.data import Document as Record
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.formatters import FTFYFormatter

from mmbert.recipe.languages import CODE

_SPACES = regex.compile(r"[^\S\n]+")
_LINE_ENDS = regex.compile(r"\r\n?|[\u0085\u2028\u2029\v\f]")
_AROUND_NEWLINES = regex.compile(r" ?\n ?")
_MANY_NEWLINES = regex.compile(r"\n{3,}")
_SURROGATES = regex.compile(r"[\ud800-\udfff]")


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
                # Each piece has facts of its own.
                yield Record(text=piece, id=f"{record.id}#{number}", metadata=copy.deepcopy(record.metadata))


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
