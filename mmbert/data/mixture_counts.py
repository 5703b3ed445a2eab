"""A table of token counts, from which `mmbert mixture` plans."""

from __future__ import annotations

import csv
import io

from mmbert import storage
from mmbert.data.mixture import Key
from mmbert.errors import UserError
from mmbert.recipe.schema import parse_tokens

ONLY_SOURCE = "all"
"""Where a table has no column `source`, its rows are of this one."""


def read_counts(uri: str) -> dict[Key, int]:
    """(source, language) -> tokens, from a CSV with the columns `language`, `tokens` and, if wanted, `source`.

    Any label is a language; other columns are left alone; tokens take units (`1.5B`). `uri` is a path or on S3. Raises
    UserError, naming file, line and value, for a missing or empty table, a missing column or value, tokens that are no
    whole number from 0 up, and a language that stands twice (in one source).
    """
    rows = csv.DictReader(io.StringIO(_text(uri), newline=""), strict=True)
    counts: dict[Key, int] = {}
    lines: dict[Key, int] = {}
    try:
        names = {str(name).strip(): name for name in rows.fieldnames or ()}
        _check_columns(uri, names)
        for row in rows:
            values = {name: (row[column] or "").strip() for name, column in names.items()}
            where = f"{uri}, line {rows.line_num}"
            key = (
                _label(where, values, "source") if "source" in names else ONLY_SOURCE,
                _label(where, values, "language"),
            )
            if key in counts:
                of = f" of source '{key[0]}'" if "source" in names else ""
                raise UserError(f"{where}: language '{key[1]}'{of} stands on line {lines[key]} already; add them up")
            counts[key], lines[key] = _tokens(where, values["tokens"]), rows.line_num
    except csv.Error as error:
        raise UserError(f"{uri}, line {rows.line_num}: not valid CSV: {error}") from error
    if not counts:
        raise UserError(f"{uri}: the table has no rows; give it a line a language")
    return counts


def _text(uri: str) -> str:
    try:
        return storage.read_bytes(uri).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{uri}: not UTF-8 text: {error}") from error


def _check_columns(uri: str, names: dict[str, str]) -> None:
    for column in ("language", "tokens"):
        if column not in names:
            found = ", ".join(names) if names else "nothing"
            raise UserError(f"{uri}, line 1: no column '{column}', found {found}; the first line is 'language,tokens'")


def _label(where: str, values: dict[str, str], column: str) -> str:
    if not values[column]:
        raise UserError(f"{where}: the {column} is empty")
    return values[column]


def _tokens(where: str, value: str) -> int:
    try:
        return int(parse_tokens(value))
    except ValueError as error:
        raise UserError(f"{where}: tokens: {error}") from error
