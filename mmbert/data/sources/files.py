"""A user's own files, in a folder or in S3."""

from __future__ import annotations

from collections.abc import Iterator

from datatrove.data import Document as Record

from mmbert import storage
from mmbert.data.readers import Selection
from mmbert.data.sources.reader import Unit
from mmbert.data.sources.records import RecordMaker
from mmbert.data.sources.rows import format_of, read_rows
from mmbert.errors import UserError
from mmbert.recipe.languages import language_problem
from mmbert.recipe.schema import FilesSource


class FilesReader:
    """txt (a document a line), jsonl, csv, tsv and parquet; a unit is a file. Hidden files are passed over."""

    def __init__(self, name: str, settings: FilesSource, max_characters: int) -> None:
        self.name = name
        self.settings = settings
        self.maker = RecordMaker(name, settings, max_characters)

    def units(self, selection: Selection) -> list[Unit]:
        found = [
            Unit(name, self._languages(name), version)
            for name, version in storage.list_versions(self.settings.path)
            if not any(part.startswith(".") for part in name.split("/"))
        ]
        if not found:
            raise UserError(f"source {self.name}: no text at {self.settings.path}; {self._advice()}")
        return [unit for unit in found if unit.languages is None or unit.languages[0] in selection]

    def read(self, unit: Unit, selection: Selection) -> Iterator[Record]:
        uri = self._uri(unit.name)
        kind = format_of(unit.name)
        if kind is None:
            raise UserError(f"source {self.name}: {uri}: {self._advice()}")
        with storage.open_read(uri) as stream:
            columns = self.maker.columns()
            rows = read_rows(stream, f"source {self.name}: {uri}", kind, columns, self.settings.text_field)
            yield from self.maker.records(unit, uri, rows, selection)

    def _uri(self, name: str) -> str:
        path = self.settings.path
        return path if f"/{path.rstrip('/')}".endswith(f"/{name}") and format_of(path) else storage.join(path, name)

    def _languages(self, name: str) -> tuple[str, ...] | None:
        uri = self._uri(name)
        if format_of(name) is None:
            raise UserError(f"source {self.name}: {uri}: not a file of text that is known here; {self._advice()}")
        if self.settings.language_field is not None:
            return None
        if self.settings.language is not None:
            return (self.settings.language,)
        folder, _, file = name.partition("/")
        if not file:
            raise UserError(f"source {self.name}: {uri}: its language is not known; {self._advice()}")
        language = self.settings.language_codes.get(folder, folder)
        if problem := language_problem(language):
            raise UserError(f"source {self.name}: {uri}: {problem}. Its subfolder names the language")
        return (language,)

    def _advice(self) -> str:
        kinds = "NAME.txt, .jsonl, .csv, .tsv (also .gz or .zst) or .parquet"
        if self.settings.language or self.settings.language_field:
            return f"put files like {kinds} there"
        return f"put files like LANGUAGE/{kinds} there (deu_Latn/a.txt), or set language or language_field"
