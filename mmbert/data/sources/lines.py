"""Bytes of compressed or plain files, and their lines, in bounded memory however long a line is."""

from __future__ import annotations

import codecs
import io
import zlib
from collections.abc import Iterator
from typing import IO

import zstandard

from mmbert.data.sources.reader import UnreadableError

_CHUNK_BYTES = 2**18
# Repeated text expands ten thousandfold; larger inputs are no faster.
_ZSTD_INPUT_BYTES = 2**9

COMPRESSIONS = (".gz", ".zst")


def plain_name(name: str) -> str:
    """A file's name without the ending of its compression."""
    for ending in COMPRESSIONS:
        name = name.removesuffix(ending)
    return name


def decompressed(stream: IO[bytes], name: str) -> Iterator[bytes]:
    """The content of a plain, .gz or .zst file in chunks. Raises UnreadableError where it is corrupt or truncated."""
    try:
        if name.endswith(".zst"):
            yield from _zstd_chunks(stream)
        elif name.endswith(".gz"):
            yield from _gzip_chunks(stream)
        else:
            while chunk := stream.read(_CHUNK_BYTES):
                yield chunk
    except (zlib.error, zstandard.ZstdError) as error:
        raise UnreadableError("corrupt_compression", f"broken compression: {error}") from error


def _gzip_chunks(stream: IO[bytes]) -> Iterator[bytes]:
    """Of one or more gzip members; the gzip module gives nothing of the chunk in which a file breaks off."""
    member = None
    while data := stream.read(_CHUNK_BYTES):
        # Zeros may pad the end of a file.
        while data and (member or data.strip(b"\0")):
            member = member or zlib.decompressobj(wbits=zlib.MAX_WBITS + 16)
            if chunk := member.decompress(data, _CHUNK_BYTES):
                yield chunk
            data = member.unused_data if member.eof else member.unconsumed_tail
            member = None if member.eof else member
    if member is not None:
        raise zlib.error("the file is truncated")


def _zstd_chunks(stream: IO[bytes]) -> Iterator[bytes]:
    """Of one or more zstd frames; zstandard's own reader takes a truncated frame for a short one."""
    frame = None
    while chunk := stream.read(_ZSTD_INPUT_BYTES):
        while chunk:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            yield frame.decompress(chunk)
            chunk = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame is not None:
        raise zstandard.ZstdError("the file is truncated")


class Lines:
    """The lines of a file, without their ends; one of more than `limit` bytes comes in parts, the first of that size.

    Iterating gives (part, whether the line ends with it); `number` is the number of its line, from 1.
    """

    def __init__(self, chunks: Iterator[bytes], limit: int) -> None:
        self.number = 0
        self._parts = self._read(chunks, limit)

    def __iter__(self) -> Iterator[tuple[bytes, bool]]:
        return self._parts

    def rest(self, part: bytes) -> Iterator[bytes]:
        """A long line's parts: the one at hand and those that follow."""
        yield part
        for more, ends in self._parts:
            yield more
            if ends:
                return

    def _read(self, chunks: Iterator[bytes], limit: int) -> Iterator[tuple[bytes, bool]]:
        begun: list[bytes] = []
        size = 0
        is_long = False
        for chunk in chunks:
            first, *rest = chunk.split(b"\n")
            begun.append(first)
            size += len(first)
            if rest:
                self.number += not is_long
                yield b"".join(begun).removesuffix(b"\r"), True
                *lines, last = rest
                for line in lines:
                    self.number += 1
                    yield line.removesuffix(b"\r"), True
                begun, size, is_long = [last], len(last), False
            if size > limit or is_long:
                self.number += not is_long
                yield b"".join(begun), False
                begun, size, is_long = [], 0, True
        if size or is_long:
            self.number += not is_long
            yield b"".join(begun), True


def decode(parts: Iterator[bytes]) -> Iterator[str]:
    """UTF-8 text in parts. Raises UnreadableError where it is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for part in parts:
            yield decoder.decode(part)
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise UnreadableError("invalid_utf8", f"not UTF-8: {error.reason}", excerpt=_excerpt(error.object)) from error


def decode_line(line: bytes) -> str:
    """One whole line. Raises UnreadableError where it is not UTF-8."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnreadableError("invalid_utf8", f"not UTF-8: {error.reason}", excerpt=_excerpt(line)) from error


def _excerpt(data: bytes) -> str:
    return data[:1000].decode("utf-8", "replace")


class ChunkStream(io.RawIOBase):
    """Chunks as a file, for libraries that read from one."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        while not self._left:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._left = memoryview(chunk)
        size = min(len(buffer), len(self._left))
        buffer[:size] = self._left[:size]
        self._left = self._left[size:]
        return size
