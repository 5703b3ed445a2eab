"""Documents of one unit in one file: a zstd frame a (split, language), so that each can be read on its own.

The whole file is a valid `.jsonl.zst`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from mmbert.data.documents import Document, compressor, from_line, zstd_lines

Place = tuple[str, str]
"""Split and language."""

_BUFFER_BYTES = 8 * 2**20
_COPY_BYTES = 2**20


@dataclass(frozen=True)
class Part:
    """One frame: where it lies in its file, and how many documents it holds."""

    split: str
    language: str
    offset: int
    size: int
    documents: int

    @property
    def place(self) -> Place:
        return self.split, self.language

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Spool:
    """Sorts lines by (split, language) in bounded memory, whatever the order in which they come."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._buffers: dict[Place, list[bytes]] = defaultdict(list)
        self._buffered = 0
        self._documents: dict[Place, int] = defaultdict(int)

    def add(self, split: str, language: str, line: bytes) -> None:
        self._buffers[split, language].append(line)
        self._documents[split, language] += 1
        self._buffered += len(line)
        if self._buffered > _BUFFER_BYTES:
            self._flush()

    def write(self, path: Path) -> list[Part]:
        """Compress everything into one file, sorted by split and language."""
        self._flush()
        parts: list[Part] = []
        with path.open("wb") as target:
            for place in sorted(self._documents):
                offset = target.tell()
                with (
                    self._path(place).open("rb") as lines,
                    compressor().stream_writer(target, closefd=False) as frame,
                ):
                    while chunk := lines.read(_COPY_BYTES):
                        frame.write(chunk)
                self._path(place).unlink()
                parts.append(Part(*place, offset, target.tell() - offset, self._documents[place]))
        return parts

    def _path(self, place: Place) -> Path:
        return self._folder / f"{place[0]}-{place[1]}.jsonl"

    def _flush(self) -> None:
        for place, lines in self._buffers.items():
            with self._path(place).open("ab") as stream:
                stream.writelines(lines)
        self._buffers.clear()
        self._buffered = 0


def read_part(path: Path, part: Part) -> Iterator[Document]:
    """The documents of one part, in the order in which they were added."""
    with path.open("rb") as stream:
        stream.seek(part.offset)
        for line in zstd_lines(_Slice(stream, part.size)):
            yield from_line(line)


def parts_of(listed: Sequence[dict[str, Any]]) -> list[Part]:
    return [Part(**part) for part in listed]


class _Slice:
    """The next `size` bytes of a stream."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self._stream = stream
        self._left = size

    def read(self, size: int) -> bytes:
        data = self._stream.read(min(size, self._left))
        self._left -= len(data)
        return data
