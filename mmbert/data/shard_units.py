"""Units of tokenization: consecutive parts of a source, with shards of their own, so that their order is nobody's.

A unit's shards are written one after another into the artifact's kept files, each followed by a marker. A killed unit
goes on behind its last marker; a finished one has a marker of its own in place of its shards'.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mmbert import metrics, storage
from mmbert.data.mds import ShardBuffer, ShardFormat, finish_shard
from mmbert.data.rows import Place, Row, RowPacker, TokenBatch, wrapped_pieces
from mmbert.sealed import read_sealed, write_sealed

PROGRESS = "progress"
_UNITS_A_SOURCE = 32


@dataclass(frozen=True, slots=True)
class Part:
    """A file of documents of one language; `path` names it to its reader, `size` is in bytes as stored."""

    source: str
    language: str
    path: str
    size: int


@dataclass(frozen=True, slots=True)
class Unit:
    source: str
    number: int
    parts: tuple[Part, ...]

    @property
    def name(self) -> str:
        return f"{self.source}/{self.number:05d}"

    @property
    def size(self) -> int:
        """In bytes as stored."""
        return sum(part.size for part in self.parts)


class Reader(Protocol):
    """Reads a unit's parts, from a place on: whole documents, in batches of any size, without special tokens."""

    def __call__(self, parts: Sequence[Part], begin: Place) -> Iterator[TokenBatch]: ...


@dataclass(frozen=True)
class RowSettings:
    """What decides the bytes of shards. `bos`, `eos`: ids, or None to leave them out; `byte_tokens`: bool [vocab]."""

    row_tokens: int
    format: ShardFormat
    bos: int | None
    eos: int | None
    byte_tokens: NDArray[np.bool_]


@dataclass(slots=True)
class LanguageCounts:
    """What a stretch of rows holds of a language. `tokens` count special ones too; `bytes` are of UTF-8 text;
    `byte_tokens` are those that stand for one byte of a character that the vocabulary lacks."""

    rows: int = 0
    tokens: int = 0
    documents: int = 0
    bytes: int = 0
    byte_tokens: int = 0

    def add(self, other: LanguageCounts) -> None:
        self.rows += other.rows
        self.tokens += other.tokens
        self.documents += other.documents
        self.bytes += other.bytes
        self.byte_tokens += other.byte_tokens


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard that is written. `path` is its place below the artifact's kept files, `entry` its part of index.json."""

    path: str
    sha256: str
    size: int
    entry: dict[str, Any]
    languages: dict[str, LanguageCounts]
    after: Place

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Shard:
        languages = {language: LanguageCounts(**counts) for language, counts in value["languages"].items()}
        return cls(**{**value, "languages": languages, "after": Place(*value["after"])})


def plan_units(parts: Sequence[Part], shard_bytes: int) -> list[Unit]:
    """Share out each source's parts, in the order of languages and paths, into units of consecutive parts.

    A unit takes parts until it has a 32nd of its source, but at least a 16th of a shard and at most four (of stored
    bytes; as tokens they take about twice the room): small sources are parallel too, and large ones have few unfilled
    shards. Only what is read decides, so the shards are the same however many processes write them.
    """
    units: list[Unit] = []
    for source in sorted({part.source for part in parts}):
        own = sorted((p for p in parts if p.source == source), key=lambda p: (p.language, p.path))
        share = sum(part.size for part in own) / _UNITS_A_SOURCE
        wanted = min(max(share, shard_bytes / 16), shard_bytes * 4)
        first = size = number = 0
        for last, part in enumerate(own, 1):
            size += part.size
            if size >= wanted or last == len(own):
                units.append(Unit(source, number, tuple(own[first:last])))
                first, size, number = last, 0, number + 1
    return units


class Progress:
    """What attempts at an artifact have finished, below its kept files at `uri`; `listing` is of these files."""

    def __init__(self, uri: str, listing: Sequence[str]) -> None:
        self._uri = uri
        self._listing = frozenset(listing)

    def unit(self, unit: Unit) -> list[Shard] | None:
        """A finished unit's shards; None where it is not finished, or a shard of it is gone."""
        shards = self._read(self._unit_path(unit))
        return None if shards is None or any(s.path not in self._listing for s in shards) else shards

    def shards(self, unit: Unit) -> list[Shard]:
        """The shards that an unfinished unit has, from its first one on."""
        found: list[Shard] = []
        while True:
            shard = self._read(self._shard_path(unit, len(found)))
            if shard is None or shard[0].path not in self._listing:
                return found
            found += shard

    def finish_shard(self, unit: Unit, number: int, shard: Shard) -> None:
        self._write(self._shard_path(unit, number), [shard])

    def finish_unit(self, unit: Unit, shards: Sequence[Shard]) -> None:
        self._write(self._unit_path(unit), shards)
        for number in range(len(shards)):
            storage.delete_file(storage.join(self._uri, self._shard_path(unit, number)))

    def _unit_path(self, unit: Unit) -> str:
        return f"{PROGRESS}/{unit.name}.json"

    def _shard_path(self, unit: Unit, number: int) -> str:
        return f"{PROGRESS}/{unit.name}-{number:05d}.json"

    def _read(self, path: str) -> list[Shard] | None:
        if path not in self._listing:
            return None
        try:
            marker = read_sealed(storage.join(self._uri, path))
        # Another attempt has finished the unit, or the marker is damaged: what it stood for is made again.
        except (storage.MissingFileError, ValueError):
            return None
        return [Shard.from_json(value) for value in marker["shards"]]

    def _write(self, path: str, shards: Sequence[Shard]) -> None:
        write_sealed(storage.join(self._uri, path), {"shards": [asdict(shard) for shard in shards]})


def write_unit(unit: Unit, reader: Reader, settings: RowSettings, progress: Progress, uri: str) -> list[Shard]:
    """Tokenize a unit, or what is left of it, into shards below `uri`; a shard is uploaded while the next one grows.

    Raises what the reader and the store raise; finished shards stay.
    """
    with ThreadPoolExecutor(1) as uploader:
        writer = _UnitWriter(unit, settings, progress, uri, uploader)
        packer = RowPacker(settings.row_tokens)
        begin = writer.begin
        language = ""
        for batch in reader(unit.parts, begin):
            if batch.language != language:
                writer.add(packer.flush(), language)
                language = batch.language
            pieces = wrapped_pieces(batch, settings.row_tokens, settings.bos, settings.eos)
            if begin.piece and (batch.part, batch.first) == (begin.part, begin.document):
                pieces = pieces.since(begin.piece)
            writer.add(packer.add(pieces), language)
        writer.add(packer.flush(), language)
        shards = writer.finish()
    progress.finish_unit(unit, shards)
    return shards


class _UnitWriter:
    """Collects rows into shards and hands each full one to the uploader, one at a time."""

    def __init__(
        self, unit: Unit, settings: RowSettings, progress: Progress, uri: str, uploader: ThreadPoolExecutor
    ) -> None:
        self._unit = unit
        self._settings = settings
        self._progress = progress
        self._uri = uri
        self._uploader = uploader
        self._done = progress.shards(unit)
        self._number = len(self._done)
        self._upload: Future[Shard] | None = None
        self.begin = self._done[-1].after if self._done else Place()
        self._start()

    def _start(self) -> None:
        self._buffer = ShardBuffer(self._settings.format)
        self._languages: dict[str, LanguageCounts] = {}
        self._after = Place()

    def add(self, rows: Iterator[Row], language: str) -> None:
        for row in rows:
            if not self._buffer.add(row.tokens, row.lengths):
                self._hand_over()
                self._buffer.add(row.tokens, row.lengths)
            byte_tokens = int(np.count_nonzero(self._settings.byte_tokens[row.tokens]))
            self._languages.setdefault(language, LanguageCounts()).add(
                LanguageCounts(1, len(row.tokens), row.documents, row.text_bytes, byte_tokens)
            )
            self._after = row.after

    def finish(self) -> list[Shard]:
        if len(self._buffer):
            self._hand_over()
        self._wait()
        return self._done

    def _hand_over(self) -> None:
        self._wait()
        self._upload = self._uploader.submit(self._write, self._number, self._buffer, self._languages, self._after)
        self._number += 1
        self._start()

    def _wait(self) -> None:
        if self._upload is not None:
            self._done.append(self._upload.result())
        self._upload = None

    def _write(self, number: int, buffer: ShardBuffer, languages: dict[str, LanguageCounts], after: Place) -> Shard:
        name = f"shard.{self._unit.number:05d}-{number:05d}.mds"
        path = f"{self._unit.source}/{name}{self._settings.format.file_suffix()}"
        entry, data = finish_shard(buffer, self._settings.format, name)
        storage.write_bytes(storage.join(self._uri, path), data)
        shard = Shard(path, hashlib.sha256(data).hexdigest(), len(data), entry, languages, after)
        self._progress.finish_shard(self._unit, number, shard)
        metrics.add(metrics.DOCUMENTS, sum(counts.documents for counts in languages.values()), "tokenize", "kept")
        metrics.add(metrics.BYTES, len(data), "tokenize")
        print(f"shard {path}: {entry['samples']} rows", flush=True)
        return shard
