"""Readers of a user's own text, and the choice of a reader for each source of the recipe."""

from __future__ import annotations

import gzip
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import zstandard
from datatrove.data import Document as Record
from datatrove.pipeline.readers.base import BaseReader
from datatrove.pipeline.readers.huggingface import HuggingFaceDatasetReader

from mmbert import storage
from mmbert.data.documents import Document, zstd_lines
from mmbert.data.readers import EldReader, Selection, SourceReader, UdhrReader, is_held_out, to_record
from mmbert.errors import InfrastructureError, UserError
from mmbert.recipe.languages import known_languages
from mmbert.recipe.schema import EldSource, FilesSource, HubSource, Source, UdhrSource

_KEPT_FIELDS = ("date", "url")


def make_reader(name: str, source: Source, selection: Selection) -> BaseReader:
    """The reader of one source of the recipe."""
    match source:
        case EldSource():
            return EldReader(name, selection, source.held_out_share)
        case UdhrSource():
            return UdhrReader(name, selection, source.held_out_articles)
        case FilesSource():
            return FilesReader(name, selection, source)
        case HubSource():
            return HubReader(name, selection, source)


class FilesReader(SourceReader):
    """A user's files, `LANGUAGE/NAME.txt` (a document a line) or `.jsonl`, plain, .gz or .zst, in a folder or in S3."""

    name = "files"

    def __init__(self, source: str, selection: Selection, settings: FilesSource) -> None:
        super().__init__(source, selection)
        self.settings = settings

    def read(self) -> Iterator[Record]:
        found = False
        for name in storage.list_files(self.settings.path):
            if any(part.startswith(".") for part in name.split("/")):
                continue
            language = self._language(name)
            if language not in self.selection:
                found = True
                continue
            for number, text, facts in self._texts(name):
                found = True
                document = Document(f"{self.source}/{name}/{number}", text, language, self.source, facts)
                yield to_record(document, is_held_out(text, self.settings.held_out_share))
        if not found:
            raise UserError(
                f"source {self.source}: no text below {self.settings.path}; put it into LANGUAGE/NAME.txt or .jsonl"
            )

    def _where(self, name: str) -> str:
        return f"source {self.source}: {storage.join(self.settings.path, name)}"

    def _language(self, name: str) -> str:
        language, _, rest = name.partition("/")
        if not _plain(rest).endswith((".txt", ".jsonl")):
            raise UserError(
                f"{self._where(name)}: expected LANGUAGE/NAME.txt or .jsonl (with .gz or .zst if compressed)"
            )
        if language not in known_languages():
            raise UserError(f"{self._where(name)}: unknown language '{language}'; name the subfolder like deu_Latn")
        return language

    def _texts(self, name: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """(line number, text, facts) of a file's documents, empty lines left out."""
        is_json = _plain(name).endswith(".jsonl")
        for number, line in self._lines(name):
            if line.strip():
                text, facts = self._row(f"{self._where(name)}, line {number}", line) if is_json else (line, {})
                yield number, text, facts

    def _lines(self, name: str) -> Iterator[tuple[int, str]]:
        uri = storage.join(self.settings.path, name)
        number = 0
        with tempfile.TemporaryDirectory() as folder:
            path = Path(uri)
            if storage.is_s3(uri):
                path = Path(folder, "file")
                storage.download(uri, path)
            try:
                with path.open("rb") as stream:
                    for line in _raw_lines(stream, name):
                        number += 1
                        yield number, line.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise UserError(f"{self._where(name)}, line {number}: not UTF-8: {error.reason}") from error
            except (EOFError, gzip.BadGzipFile, zstandard.ZstdError) as error:
                raise UserError(f"{self._where(name)}, after line {number}: broken compression: {error}") from error

    def _row(self, where: str, line: str) -> tuple[str, dict[str, Any]]:
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where}: not JSON: {error}") from error
        field = self.settings.text_field
        if not isinstance(row, dict) or not isinstance(row.get(field), str):
            raise UserError(f"{where}: no text in the field '{field}'; set text_field to the field that holds the text")
        return row[field], {key: row[key] for key in _KEPT_FIELDS if key in row}


def _plain(name: str) -> str:
    return name.removesuffix(".gz").removesuffix(".zst")


def _raw_lines(stream: IO[bytes], name: str) -> Iterator[bytes]:
    if name.endswith(".zst"):
        return zstd_lines(stream)
    return iter(gzip.GzipFile(fileobj=stream) if name.endswith(".gz") else stream)


class HubReader(HuggingFaceDatasetReader):
    """A Hugging Face data set, streamed. `{language}` in its subset stands for every language that the data set has."""

    name = "huggingface"

    def __init__(self, source: str, selection: Selection, settings: HubSource) -> None:
        super().__init__(settings.dataset, streaming=True, text_key=settings.text_field)
        self.source = source
        self.selection = selection
        self.settings = settings
        self.language = ""
        self.found = False

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Record]:
        if data:
            yield from data
        where = f"source {self.source}: the data set {self.settings.dataset}"
        options = {"split": self.settings.split, "revision": self.settings.revision}
        try:
            for subset, language in self._subsets():
                if language not in self.selection:
                    self.found = True
                    continue
                self.language = language
                self.dataset_options = {"name": subset, **options}
                yield from super().run(None, rank, world_size)
        except (ValueError, FileNotFoundError) as error:
            raise UserError(f"{where} cannot be read: {error}") from error
        except OSError as error:
            raise InfrastructureError(f"{where} cannot be reached: {error}") from error
        if not self.found:
            raise UserError(f"{where} has no text in split '{self.settings.split}'; check split, subset and language")

    def _subsets(self) -> list[tuple[str | None, str]]:
        """(subset, language) of each part of the data set, sorted."""
        pattern, language = self.settings.subset, self.settings.language
        if language:
            return [(pattern, language)]
        if pattern in known_languages():
            return [(pattern, str(pattern))]
        if not pattern or "{language}" not in pattern:
            raise UserError(
                f"source {self.source}: its language is not known; set language, or put {{language}} into subset"
            )
        from datasets import get_dataset_config_names  # type: ignore[import-untyped]

        before, after = map(re.escape, pattern.split("{language}", 1))
        names = sorted(get_dataset_config_names(self.settings.dataset, revision=self.settings.revision))
        matches = [match for match in (re.fullmatch(rf"{before}(\w+){after}", name) for name in names) if match]
        return [(match[0], match[1]) for match in matches if match[1] in known_languages()]

    def get_document_from_dict(self, data: dict[str, Any], source_file: str, id_in_file: int | str) -> Record:
        text = data.get(self.text_key)
        if not isinstance(text, str):
            raise UserError(
                f"source {self.source}: {source_file}, row {id_in_file}: no text in the field '{self.text_key}'; "
                f"its fields are {', '.join(sorted(data))}"
            )
        self.found = True
        facts = {key: str(data[key]) for key in _KEPT_FIELDS if data.get(key) is not None}
        ident = f"{self.source}/{self.language}/{data.get('id', id_in_file)}"
        document = Document(ident, text, self.language, self.source, facts)
        return to_record(document, is_held_out(text, self.settings.held_out_share))
