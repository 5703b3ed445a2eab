"""Rows of files: txt, jsonl, csv, tsv and parquet, in order and in bounded memory."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

import orjson

from mmbert.data.sources.lines import ChunkStream, Lines, decode, decode_line, decompressed, plain_name
from mmbert.data.sources.long_json import LongText, parse_long
from mmbert.data.sources.reader import UnreadableError
from mmbert.errors import UserError

FORMATS = {".txt": "txt", ".jsonl": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}

# More characters than decide a text's split, in any script.
_LONG_TEXT = 2**20
_LONG_JSON = 2**23
_BATCH_BYTES = 2**24
_BATCH_ROWS = 1024
# The csv module holds a cell in 4 bytes a character.
_CSV_CELL = 2**28
_LONE_SURROGATES = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True)
class Row:
    """One row. `where` is its place in the file, like `line 5`; `number` is the same for an id."""

    number: int
    where: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Columns:
    """The columns that are read of a table, as dotted paths."""

    required: tuple[str, ...]
    optional: tuple[str, ...]


def format_of(name: str) -> str | None:
    """txt, jsonl, csv, tsv or parquet; None for any other file."""
    plain = plain_name(name)
    found = next((kind for ending, kind in FORMATS.items() if plain.endswith(ending)), None)
    return None if found == "parquet" and plain != name else found


def read_rows(
    stream: IO[bytes], file: str, kind: str, columns: Columns, text_field: str
) -> Iterator[Row | UnreadableError]:
    """The rows of one file, and in their place the problems of those that cannot be read.

    `file` names it in messages, and its ending tells the compression. A line of txt is a row with `text_field` alone.
    Long texts are LongText, to be read before the next row. Raises UserError for a column that the file lacks.
    """
    if kind == "parquet":
        yield from _parquet(stream, file, columns)
        return
    chunks = decompressed(stream, file)
    if kind == "jsonl":
        yield from _jsonl(Lines(chunks, _LONG_JSON))
    elif kind == "txt":
        yield from _txt(Lines(chunks, _LONG_TEXT), text_field)
    else:
        yield from _csv(chunks, file, "\t" if kind == "tsv" else ",", columns)


def value_at(row: Mapping[str, Any], path: str) -> Any:
    """The value under a name, or under a dotted path into nested ones; None where there is none."""
    if path in row:
        return row[path]
    value: Any = row
    for part in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


def _txt(lines: Lines, text_field: str) -> Iterator[Row | UnreadableError]:
    try:
        for part, ends in lines:
            where = f"line {lines.number}"
            if ends:
                if part.strip():
                    yield _at(where, _text_row, lines.number, where, part, text_field)
                continue
            parts = lines.rest(part)
            yield Row(lines.number, where, {text_field: LongText(decode(parts))})
            for _ in parts:
                pass
    except UnreadableError as problem:
        yield _after(problem, lines)


def _jsonl(lines: Lines) -> Iterator[Row | UnreadableError]:
    try:
        for part, ends in lines:
            where = f"line {lines.number}"
            if ends and not part.strip():
                continue
            parts = None if ends else lines.rest(part)
            yield _at(where, _json_row, lines.number, where, part, parts)
            for _ in parts or ():
                pass
    except UnreadableError as problem:
        yield _after(problem, lines)


def _text_row(number: int, where: str, line: bytes, text_field: str) -> Row:
    return Row(number, where, {text_field: decode_line(line)})


def _json_row(number: int, where: str, line: bytes, parts: Iterator[bytes] | None) -> Row:
    try:
        values = orjson.loads(line) if parts is None else parse_long(parts)
    except orjson.JSONDecodeError as error:
        decode_line(line)
        raise UnreadableError(
            "not_json", f"not JSON: {error}", excerpt=line[:1000].decode("utf-8", "replace")
        ) from error
    if not isinstance(values, dict):
        raise UnreadableError("not_json", "not a JSON object", excerpt=line[:1000].decode("utf-8", "replace"))
    return Row(number, where, values)


def _at(where: str, make_row: Callable[..., Row], *args: Any) -> Row | UnreadableError:
    """The row, or why there is none, which is known to be at `where`."""
    try:
        return make_row(*args)
    except UnreadableError as problem:
        return UnreadableError(problem.reason, problem.detail, where, problem.excerpt)


def _after(problem: UnreadableError, lines: Lines) -> UnreadableError:
    return UnreadableError(problem.reason, problem.detail, f"after line {lines.number}", problem.excerpt)


def _csv(chunks: Iterator[bytes], file: str, delimiter: str, columns: Columns) -> Iterator[Row | UnreadableError]:
    buffered = io.BufferedReader(ChunkStream(chunks), 2**18)
    text = io.TextIOWrapper(buffered, encoding="utf-8-sig", errors="surrogateescape", newline="")
    csv.field_size_limit(_CSV_CELL)
    rows = csv.reader(text, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        where = f"line {rows.line_num + 1}"
        try:
            cells = next(rows, None)
        except csv.Error as error:
            yield UnreadableError("not_csv", f"not {'TSV' if delimiter != ',' else 'CSV'}: {error}", where)
            continue
        except UnreadableError as problem:
            yield UnreadableError(problem.reason, problem.detail, f"after line {rows.line_num}")
            return
        if cells is None:
            return
        if header is None:
            header = cells
            _check_columns(columns, set(header), file)
        elif cells:
            yield _at(where, _csv_row, rows.line_num, where, header, cells)


def _csv_row(number: int, where: str, header: list[str], cells: list[str]) -> Row:
    excerpt = " ".join(cells)[:1000]
    if len(cells) > len(header):
        detail = f"{len(cells)} cells, but the header names {len(header)} columns; is a cell not quoted?"
        raise UnreadableError("not_csv", detail, excerpt=excerpt)
    if any(_LONE_SURROGATES.search(cell) for cell in cells):
        raise UnreadableError("invalid_utf8", "not UTF-8", excerpt=excerpt.encode("utf-8", "replace").decode())
    return Row(number, where, dict(zip(header, cells, strict=False)))


def _check_columns(columns: Columns, present: set[str], file: str) -> None:
    for path in columns.required:
        if path not in present and path.partition(".")[0] not in present:
            raise UserError(f"{file}: no column '{path}'; it has {', '.join(sorted(present)) or 'none'}")


def _parquet(stream: IO[bytes], file: str, columns: Columns) -> Iterator[Row | UnreadableError]:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    number = 0
    try:
        # Dictionaries and pre-buffering would hold more than the batch at hand.
        table = pq.ParquetFile(stream, pre_buffer=False)
        present = set(table.schema_arrow.names)
        _check_columns(columns, present, file)
        wanted = [p for p in (*columns.required, *columns.optional) if p in present or p.partition(".")[0] in present]
        for group in range(table.num_row_groups):
            facts = table.metadata.row_group(group)
            row_bytes = facts.total_byte_size // max(facts.num_rows, 1) + 1
            size = max(1, min(_BATCH_ROWS, _BATCH_BYTES // row_bytes))
            for batch in table.iter_batches(size, row_groups=[group], columns=wanted, use_threads=False):
                for index in range(batch.num_rows):
                    number += 1
                    yield _at(f"row {number}", _table_row, number, f"row {number}", batch, index)
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        yield UnreadableError("corrupt_parquet", f"not a whole parquet file: {error}", f"after row {number}")


def _table_row(number: int, where: str, batch: Any, index: int) -> Row:
    values = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        cell = column[index]
        buffer = cell.as_buffer() if hasattr(cell, "as_buffer") else None
        try:
            if buffer is not None and buffer.size > _LONG_TEXT:
                values[name] = LongText(decode(_slices(memoryview(buffer))))
            else:
                values[name] = cell.as_py()
        except UnicodeDecodeError as error:
            raise UnreadableError("invalid_utf8", f"column '{name}' is not UTF-8: {error.reason}") from error
    return Row(number, where, values)


def _slices(data: memoryview) -> Iterator[bytes]:
    for start in range(0, len(data), _LONG_TEXT):
        yield bytes(data[start : start + _LONG_TEXT])
