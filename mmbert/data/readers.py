"""What readers of sources share, and those of the demo corpus, as datatrove readers.

A record's metadata: language, source, split, and the source's own facts (article number, date, url).
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from datatrove.data import Document as Record
from datatrove.pipeline.readers.base import BaseReader

from mmbert.data import eld, udhr
from mmbert.data.documents import HELD_OUT, TRAIN, Document
from mmbert.errors import UserError


def language_group(language: str, groups: int) -> int:
    """The group, 0 to groups - 1, that a language is worked on in, whatever other languages there are."""
    return int.from_bytes(hashlib.sha256(language.encode()).digest()[:8], "big") % groups


def is_held_out(text: str, share: float) -> bool:
    """Whether a text is among the share that is never trained on; equal texts always go together."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


@dataclass(frozen=True)
class Selection:
    """The languages that one task of curation reads: a group's, without the reserved ones."""

    groups: int
    group: int
    reserved: frozenset[str]

    def __contains__(self, language: str) -> bool:
        return language not in self.reserved and language_group(language, self.groups) == self.group


def to_record(document: Document, held_out: bool) -> Record:
    split = HELD_OUT if held_out else TRAIN
    place = {"language": document.language, "source": document.source, "split": split}
    return Record(text=document.text, id=document.id, metadata=place | {"facts": document.metadata})


def to_document(record: Record) -> Document:
    metadata = record.metadata
    return Document(record.id, record.text, metadata["language"], metadata["source"], metadata["facts"])


class SourceReader(BaseReader):
    """A reader of one source of the recipe, whose name its documents carry."""

    def __init__(self, source: str, selection: Selection) -> None:
        super().__init__()
        self.source = source
        self.selection = selection

    @abstractmethod
    def read(self) -> Iterator[Record]:
        """The selected documents. Raises UserError where the source, in any language, is empty or undecodable."""

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Record]:  # noqa: ARG002
        if data:
            yield from data
        yield from self.read()


class EldReader(SourceReader):
    """Sentences of the PyPI package eld; the held-out share is drawn by hash of the sentence."""

    name = "eld"

    def __init__(self, source: str, selection: Selection, held_out_share: float) -> None:
        super().__init__(source, selection)
        self.held_out_share = held_out_share

    def read(self) -> Iterator[Record]:
        path = eld.sentence_file()
        number = 0
        for number, language, text in eld.read_sentences(path):
            if language in self.selection:
                document = Document(f"{self.source}/{language}/{number}", text, language, self.source)
                yield to_record(document, is_held_out(text, self.held_out_share))
        if not number:
            raise UserError(f"source {self.source}: {path} is empty; run 'make setup' again")


class UdhrReader(SourceReader):
    """Articles of the declarations, preamble as article 0; the held-out ones are held out in every language."""

    name = "udhr"

    def __init__(self, source: str, selection: Selection, held_out_articles: tuple[int, ...]) -> None:
        super().__init__(source, selection)
        self.held_out_articles = frozenset(held_out_articles)

    def read(self) -> Iterator[Record]:
        for declaration in udhr.read_declarations(udhr.declaration_folder()):
            language = declaration.language
            if language not in self.selection:
                continue
            for article, text in declaration.articles.items():
                facts = {"article": article, "variant": declaration.variant}
                document = Document(f"{self.source}/{language}/{article}", text, language, self.source, facts)
                yield to_record(document, article in self.held_out_articles)
