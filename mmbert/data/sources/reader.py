"""The interface of a source: its units, and the records of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from datatrove.data import Document as Record

from mmbert.data.readers import Selection


@dataclass(frozen=True)
class Unit:
    """A piece of a source that is read on its own: a file, or what a package holds."""

    name: str
    """Unique and stable within the source, like `deu_Latn/a.jsonl.gz`."""
    languages: tuple[str, ...] | None
    """The languages that it can hold; None where only reading tells."""
    version: str
    """Changes whenever the content does: an etag, size and time, or a commit."""


class SourceReader(Protocol):
    """A source of documents. Readers hold settings only, so they can be sent to other processes."""

    def units(self, selection: Selection) -> list[Unit]:
        """The units that can hold a selected language, sorted by name; reads no document.

        Raises UserError where the source is missing, empty or wrongly named, InfrastructureError where it cannot be
        reached.
        """

    def read(self, unit: Unit, selection: Selection) -> Iterator[Record]:
        """The selected documents of a unit, in order.

        What cannot be read raises UserError with source, file and line, or comes as an error record where the source's
        `on_error` is `drop`.
        """


class UnreadableError(Exception):
    """Something that cannot be read, in a file whose name the caller knows."""

    def __init__(self, reason: str, detail: str, where: str = "", excerpt: str = "") -> None:
        super().__init__(f"{where}: {detail}" if where else detail)
        self.reason = reason
        self.detail = detail
        self.where = where
        self.excerpt = excerpt
