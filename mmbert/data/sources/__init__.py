"""Sources of text, one module a kind, behind one interface."""

from __future__ import annotations

from mmbert.data.sources.files import FilesReader
from mmbert.data.sources.huggingface import HubReader
from mmbert.data.sources.packages import EldReader, UdhrReader
from mmbert.data.sources.reader import SourceReader, Unit
from mmbert.recipe.schema import EldSource, FilesSource, HubSource, Source, UdhrSource

__all__ = ["MAX_CHARACTERS", "SourceReader", "Unit", "make_reader"]

MAX_CHARACTERS = 1_000_000


def make_reader(name: str, source: Source, max_characters: int = MAX_CHARACTERS) -> SourceReader:
    """The reader of a source of documents that the recipe calls `name`. Picklable.

    A document of more than `max_characters` comes as several records, cut at a line's end or a space.
    """
    match source:
        case EldSource():
            return EldReader(name, source.held_out_share)
        case UdhrSource():
            return UdhrReader(name, source.held_out_articles)
        case FilesSource():
            return FilesReader(name, source, max_characters)
        case HubSource():
            return HubReader(name, source, max_characters)
    raise TypeError(f"a source of kind {source.kind} has no documents to read")
