"""Documents on disk: JSON Lines under zstd, `<split>/<source>/<language>/<part>.jsonl.zst`.

A language of a source has one or more parts, numbered from 00000; its documents are those of its parts in that order.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import zstandard

from mmbert.errors import UserError

TRAIN = "train"
HELD_OUT = "heldout"
SPLITS = (HELD_OUT, TRAIN)
SUFFIX = ".jsonl.zst"
_LEVEL = 3
_CHUNK_BYTES = 2**18


@dataclass(frozen=True, slots=True)
class Document:
    """A piece of text in one language. `metadata` holds what the source knows of it (article number, date, url)."""

    id: str
    text: str
    language: str
    source: str
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DocumentFile:
    """One file of a folder of documents. `part` is its name without the suffix."""

    source: str
    language: str
    part: str
    path: Path


def document_files(folders: Iterable[Path], split: str) -> list[DocumentFile]:
    """The files of one split in several folders, sorted by source, language, folder and part."""
    paths = [path for folder in folders for path in Path(folder).glob(f"{split}/*/*/*{SUFFIX}")]
    found = [DocumentFile(path.parts[-3], path.parts[-2], path.name.removesuffix(SUFFIX), path) for path in paths]
    return sorted(found, key=lambda f: (f.source, f.language, str(f.path)))


def part_path(folder: Path, split: str, source: str, language: str, part: int = 0) -> Path:
    """Where a part of a language's documents stands in a folder of documents."""
    return folder / split / source / language / f"{part:05d}{SUFFIX}"


def to_line(document: Document) -> bytes:
    fields = {"id": document.id, "text": document.text, "language": document.language, "source": document.source}
    line = json.dumps(fields | {"metadata": document.metadata}, ensure_ascii=False, separators=(",", ":"))
    return line.encode() + b"\n"


def from_line(line: str | bytes) -> Document:
    return Document(**json.loads(line))


def read_documents(path: Path) -> Iterator[Document]:
    """The documents of one file, in order. Raises UserError for a file that is not what `write_documents` writes."""
    number = 0
    try:
        with path.open("rb") as stream:
            for line in zstd_lines(stream):
                yield from_line(line)
                number += 1
    except (ValueError, TypeError, zstandard.ZstdError) as error:
        raise UserError(f"{path}, after line {number}: not a file of documents: {error}") from error


class Readable(Protocol):
    """What bytes are read from."""

    def read(self, size: int, /) -> bytes: ...


def zstd_lines(stream: Readable) -> Iterator[bytes]:
    """Lines, without their ends, of a stream of zstd frames.

    Raises ZstdError where it is broken or truncated; zstandard's own reader takes a truncated frame for a short one.
    """
    tail = b""
    frame = None
    while chunk := stream.read(_CHUNK_BYTES):
        while chunk:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            *lines, tail = (tail + frame.decompress(chunk)).split(b"\n")
            yield from lines
            chunk = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame is not None:
        raise zstandard.ZstdError("the file is truncated")
    if tail:
        yield tail


def write_documents(path: Path, documents: Iterable[Document]) -> None:
    """Write documents as one zstd frame; the same documents give the same bytes."""
    write_lines(path, (to_line(document) for document in documents))


def compressor() -> zstandard.ZstdCompressor:
    """The one way in which documents are compressed, so that the same ones give the same bytes."""
    return zstandard.ZstdCompressor(level=_LEVEL)


def write_lines(path: Path, lines: Iterable[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as raw, compressor().stream_writer(raw, closefd=False) as stream:
        for line in lines:
            stream.write(line)
