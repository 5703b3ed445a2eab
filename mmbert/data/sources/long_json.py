"""Lines of JSON too long to be parsed whole: their long strings go to disk and come back in parts."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from typing import IO, Any

import orjson

from mmbert.data.sources.reader import UnreadableError

_LONG_BYTES = 2**20
_BLOCK_BYTES = 2**20
_ESCAPE_BYTES = len(r"\u0000")
_BACKSLASH = ord("\\")
_HIGH_SURROGATE = re.compile(rb"\\u[dD][89aAbB]")
_MARK = "\0long string %d"


class LongText:
    """A text that is read in parts, once. The first part has more characters than decide a split."""

    def __init__(self, parts: Iterator[str]) -> None:
        self.parts = parts

    def whole(self) -> str:
        return "".join(self.parts)


def parse_long(parts: Iterator[bytes]) -> Any:
    """The value of one JSON text that comes in parts, its long strings as LongText.

    Memory holds a block of a few MB and whatever is not a long string. Raises UnreadableError for what is not JSON.
    """
    short, files = _shorten(parts)
    try:
        return _restore(orjson.loads(short), files)
    except orjson.JSONDecodeError as error:
        raise UnreadableError(
            "not_json", f"not JSON: {error}", excerpt=bytes(short[:200]).decode("utf-8", "replace")
        ) from error


def _shorten(parts: Iterator[bytes]) -> tuple[bytearray, list[IO[bytes]]]:
    """The text with a mark in place of each long string, and the strings, as JSON writes them, in files."""
    short, files = bytearray(), list[IO[bytes]]()
    string = bytearray()
    file: IO[bytes] | None = None
    in_string = False
    left = b""
    for part in parts:
        data = left + part
        left, position = b"", 0
        while position < len(data):
            if not in_string:
                quote = data.find(b'"', position)
                end = len(data) if quote < 0 else quote + 1
                short += data[position:end]
                in_string, position = quote >= 0, end
                continue
            quote = _closing_quote(data, position)
            end = quote if quote >= 0 else max(_whole_escapes(data), position)
            string += data[position:end]
            if len(string) > _LONG_BYTES:
                file = file or tempfile.TemporaryFile()  # noqa: SIM115 - closed when nothing reads it any more
                file.write(string)
                string.clear()
            if quote < 0:
                left = data[end:]
                break
            if file:
                file.write(string)
                string[:] = orjson.dumps(_MARK % len(files))[1:-1]
                files.append(file)
                file = None
            short += string + b'"'
            string.clear()
            in_string, position = False, quote + 1
    return short + string, files


def _restore(value: Any, files: list[IO[bytes]]) -> Any:
    marks = {_MARK % number: file for number, file in enumerate(files)}

    def restored_key(key: str) -> str:
        return "".join(_parts(marks[key])) if key in marks else key

    def restored(node: Any) -> Any:
        if isinstance(node, dict):
            return {restored_key(key): restored(item) for key, item in node.items()}
        if isinstance(node, list):
            return [restored(item) for item in node]
        if isinstance(node, str) and node in marks:
            return LongText(_parts(marks[node]))
        return node

    return restored(value)


def _parts(file: IO[bytes]) -> Iterator[str]:
    """The characters of a string that was written as JSON writes them."""
    file.seek(0)
    left = b""
    while True:
        block = file.read(_BLOCK_BYTES)
        data = left + block
        if not data:
            file.close()
            return
        end = _before_cut_character(data, _whole_escapes(data)) if block else len(data)
        try:
            yield orjson.loads(b'"' + data[:end] + b'"')
        except orjson.JSONDecodeError as error:
            reason = "invalid_utf8" if "utf-8" in str(error).lower() else "not_json"
            raise UnreadableError(reason, f"not JSON: {error}") from error
        left = data[end:]


def _closing_quote(data: bytes, position: int) -> int:
    """Where a string ends that `position` lies in; -1 where its end is not here."""
    quote = data.find(b'"', position)
    while quote > position and _is_escape(data, quote - 1, position):
        quote = data.find(b'"', quote + 1)
    return quote


def _is_escape(data: bytes, at: int, start: int = 0) -> bool:
    """Whether an escape begins at this byte: a backslash that no other one escapes."""
    first = at
    while first >= start and data[first] == _BACKSLASH:
        first -= 1
    return (at - first) % 2 == 1


def _whole_escapes(data: bytes) -> int:
    """The end of the data, or the start of the escape, or pair of surrogates, that it cuts."""
    at = data.rfind(b"\\", max(len(data) - 2 * _ESCAPE_BYTES, 0))
    if at < 0 or not _is_escape(data, at):
        return len(data)
    before = at - _ESCAPE_BYTES
    is_cut = len(data) < at + (_ESCAPE_BYTES if data[at + 1 : at + 2] == b"u" else 2)
    if before >= 0 and _HIGH_SURROGATE.match(data, before) and _is_escape(data, before):
        return before if is_cut else len(data)
    return at if is_cut or _HIGH_SURROGATE.match(data, at) else len(data)


def _before_cut_character(data: bytes, end: int) -> int:
    """`end`, or the start of the UTF-8 character that it cuts."""
    for start in range(end - 1, max(end - 4, -1), -1):
        byte = data[start]
        if byte & 0xC0 != 0x80:
            length = 1 + (byte >= 0xC0) + (byte >= 0xE0) + (byte >= 0xF0)
            return start if start + length > end else end
    return end
