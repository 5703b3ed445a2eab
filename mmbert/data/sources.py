"""Sources of text as datatrove readers. Their documents carry language, source, split and the source's own facts as metadata."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import tempfile
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import zstandard
from datatrove.data import Document as Record
from datatrove.pipeline.readers.base import BaseReader
from datatrove.pipeline.readers.huggingface import HuggingFaceDatasetReader

from mmbert import storage
from mmbert.data import eld, udhr
from mmbert.data.documents import HELD_OUT, TRAIN
from mmbert.errors import InfrastructureError, UserError
from mmbert.recipe.languages import known_languages
from mmbert.recipe.schema import EldSource, FilesSource, HubSource, Source, UdhrSource

_SUFFIXES = (".txt", ".jsonl")
_COMPRESSED = (".gz", ".zst")
_KEPT_FIELDS = ("date", "url")


def language_group(language: str, groups: int) -> int:
    """The group, 0 to groups - 1, that a language is curated and tokenized in; the same whatever other languages there are."""
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


def make_record(ident: str, text: str, language: str, source: str, held_out: bool, facts: dict[str, Any]) -> Record:
    split = HELD_OUT if held_out else TRAIN
    return Record(
        text=text, id=ident, metadata={"language": language, "source": source, "split": split, "facts": facts}
    )


class SourceReader(BaseReader):  # type: ignore[misc]
    """A reader of one source of the recipe, whose name its documents carry."""

    def __init__(self, source: str, selection: Selection) -> None:
        super().__init__()
        self.source = source
        self.selection = selection

    @abstractmethod
    def read(self) -> Iterator[Record]:
        """The selected documents. Raises UserError where the source, in any language, is empty or undecodable."""

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Record]:
        if data:
            yield from data
        for record in self.read():
            self.stat_update("documents")
            yield record


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
                yield make_record(
                    f"{self.source}/{language}/{number}",
                    text,
                    language,
                    self.source,
                    is_held_out(text, self.held_out_share),
                    {},
                )
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
            if declaration.language not in self.selection:
                continue
            for article, text in declaration.articles.items():
                yield make_record(
                    f"{self.source}/{declaration.language}/{article}",
                    text,
                    declaration.language,
                    self.source,
                    article in self.held_out_articles,
                    {"article": article, "variant": declaration.variant},
                )


class FilesReader(SourceReader):
    """A user's own files, `LANGUAGE/NAME.txt` (a document a line) or `.jsonl`, plain, .gz or .zst, in a folder or in S3."""

    name = "files"

    def __init__(self, source: str, selection: Selection, settings: FilesSource) -> None:
        super().__init__(source, selection)
        self.settings = settings

    def read(self) -> Iterator[Record]:
        names = [n for n in storage.list_files(self.settings.path) if not n.startswith(".") and "/." not in n]
        found = False
        for name in names:
            language, _, rest = name.partition("/")
            where = f"source {self.source}: {storage.join(self.settings.path, name)}"
            kind = rest.removesuffix(".gz").removesuffix(".zst")
            if not kind.endswith(_SUFFIXES):
                kinds = ", ".join(_SUFFIXES)
                raise UserError(
                    f"{where}: expected LANGUAGE/NAME with one of {kinds} (and .gz or .zst where compressed)"
                )
            if language not in known_languages():
                raise UserError(f"{where}: unknown language '{language}'; name the subfolder like deu_Latn")
            if language not in self.selection:
                found = True
                continue
            for number, line in enumerate(self._lines(where, name), start=1):
                text, facts = self._parse(f"{where}, line {number}", line) if kind.endswith(".jsonl") else (line, {})
                if not text:
                    continue
                found = True
                held_out = is_held_out(text, self.settings.held_out_share)
                yield make_record(f"{self.source}/{name}/{number}", text, language, self.source, held_out, facts)
        if not found:
            raise UserError(
                f"source {self.source}: no text below {self.settings.path}; put it into LANGUAGE/NAME.txt or .jsonl"
            )

    def _lines(self, where: str, name: str) -> Iterator[str]:
        uri = storage.join(self.settings.path, name)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(uri)
            if storage.is_s3(uri):
                path = Path(folder, "file")
                storage.download(uri, path)
            number = 0
            try:
                with _opened(path, name) as stream:
                    for number, line in enumerate(stream, start=1):
                        yield line.decode("utf-8").strip("\r\n")
            except UnicodeDecodeError as error:
                raise UserError(f"{where}, line {number}: not UTF-8: {error.reason}") from error
            except (EOFError, gzip.BadGzipFile, zstandard.ZstdError) as error:
                raise UserError(f"{where}, after line {number}: broken compression: {error}") from error

    def _parse(self, where: str, line: str) -> tuple[str, dict[str, Any]]:
        if not line.strip():
            return "", {}
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where}: not JSON: {error}") from error
        field = self.settings.text_field
        if not isinstance(row, dict) or not isinstance(row.get(field), str):
            raise UserError(f"{where}: no text in the field '{field}'; set text_field to the field that holds the text")
        return row[field], {key: row[key] for key in _KEPT_FIELDS if key in row}


def _opened(path: Path, name: str) -> IO[bytes]:
    if name.endswith(".gz"):
        return gzip.open(path, "rb")
    if name.endswith(".zst"):
        return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(path.open("rb"), read_across_frames=True))
    return path.open("rb")


class HubReader(HuggingFaceDatasetReader):  # type: ignore[misc]
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
        try:
            for subset, language in self._subsets():
                self.found = self.found or language not in self.selection
                if language in self.selection:
                    self.language = language
                    self.dataset_options = {
                        "name": subset,
                        "split": self.settings.split,
                        "revision": self.settings.revision,
                    }
                    yield from super().run(None, rank, world_size)
        except (ValueError, FileNotFoundError, UnicodeDecodeError) as error:
            raise UserError(f"{where} cannot be read: {error}") from error
        except OSError as error:
            raise InfrastructureError(f"{where} cannot be reached: {error}") from error
        if not self.found:
            raise UserError(
                f"{where} holds no text for split '{self.settings.split}'; check dataset, subset, split and language"
            )

    def _subsets(self) -> list[tuple[str | None, str]]:
        """(subset, language) of each part of the data set that is one language's, sorted."""
        pattern, language = self.settings.subset, self.settings.language
        if language:
            return [(pattern, language)]
        if pattern and "{language}" in pattern:
            from datasets import get_dataset_config_names

            names = get_dataset_config_names(self.settings.dataset, revision=self.settings.revision)
            expression = re.escape(pattern).replace(re.escape("{language}"), r"(?P<language>\w+)")
            matches = [m for m in (re.fullmatch(expression, name) for name in sorted(names)) if m]
            return [(m[0], m["language"]) for m in matches if m["language"] in known_languages()]
        if pattern in known_languages():
            return [(pattern, str(pattern))]
        raise UserError(
            f"source {self.source}: its language is not known; set language, or name it in subset (deu_Latn or {{language}})"
        )

    def get_document_from_dict(self, data: dict[str, Any], source_file: str, id_in_file: int | str) -> Record | None:
        text = data.get(self.text_key)
        if not isinstance(text, str):
            fields = ", ".join(sorted(data))
            raise UserError(
                f"source {self.source}: {source_file}, row {id_in_file}: no text in '{self.text_key}'; it has {fields}"
            )
        self.found = True
        facts = {key: str(data[key]) for key in _KEPT_FIELDS if data.get(key) is not None}
        held_out = is_held_out(text, self.settings.held_out_share)
        ident = f"{self.source}/{self.language}/{data.get('id', id_in_file)}"
        return make_record(ident, text, self.language, self.source, held_out, facts)


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
