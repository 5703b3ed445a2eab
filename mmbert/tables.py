"""Tables, times and numbers of things as text."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence


def counted(number: int, word: str) -> str:
    """`1 language`, `4 languages`."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """Columns of text, the first `left` of them and the last to the left, the others to the right."""
    lines = [columns, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]

    def place(column: int) -> Callable[[str, int], str]:
        return str.ljust if column < left or column == len(columns) - 1 else str.rjust

    return "\n".join(
        "  ".join(place(i)(text, width) for i, (text, width) in enumerate(zip(line, widths, strict=True))).rstrip()
        for line in lines
    )


def now(seconds: float | None = None) -> str:
    """This moment, or one in seconds since 1970, as `2026-11-24T15:00:00+00:00`."""
    moment = (
        datetime.datetime.now(datetime.UTC)
        if seconds is None
        else datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    )
    return moment.isoformat(timespec="seconds")
