"""Progress of what takes long, on standard error: how much is done of how much, how fast, and the time left.

On a terminal one live line; elsewhere a message (mmbert/logs.py) every half minute at most, so that logs stay made of
lines. Of several processes only the first shows it, and with MMBERT_QUIET none.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from mmbert import logs

LINE_SECONDS = 30.0
_SHORTEST_BAR, _USUAL_TEXT = 8, 56
"""Columns. Where there are too few, the bar goes first: the text ends with the time left."""
BYTES = "bytes"

Advance = Callable[[int], None]
"""Told how much more is done; any thread may call it."""


@contextlib.contextmanager
def shown(what: str, total: int | None, unit: str) -> Iterator[Advance]:
    """Show how a piece of work goes on, until the block ends. `total` is None where nobody knows it.

    `unit` is a plural, like `files`; BYTES are shown as kB, MB and so on. Within another such block the inner one is
    what a terminal shows.
    """
    counted = _Counted(what, total, unit)
    if logs.quiet() or os.environ.get("RANK", "0") != "0" or multiprocessing.parent_process() is not None:
        yield counted.add
    elif _is_terminal():
        with _display.showing(counted):
            yield counted.add
    else:
        lines = _Lines(counted)
        yield lines.add
        lines.end()


class _Counted:
    def __init__(self, what: str, total: int | None, unit: str) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done, self.began = 0, time.monotonic()
        self.lock = threading.Lock()

    def add(self, more: int) -> None:
        with self.lock:
            self.done += more

    def __str__(self) -> str:
        seconds = max(time.monotonic() - self.began, 1e-9)
        if self.total is None:
            parts = [f"{self.what}: {amount(self.done, self.unit)}"]
        else:
            share = f" ({100 * self.done / self.total:.0f}%)" if self.total else ""
            of = amount(self.total, self.unit)
            done = amount(self.done, self.unit).removesuffix(f" {self.unit}")
            parts = [f"{self.what}: {done} of {of}{share}"]
        if not self.done:
            return parts[0]
        parts.append(rate(self.done / seconds, self.unit))
        if self.total is not None:
            left = self.total - self.done
            parts.append(f"{duration(seconds * left / self.done)} left" if left > 0 else f"took {duration(seconds)}")
        return ", ".join(parts)


class _Lines:
    """A message now and then; the last one only where there was another."""

    def __init__(self, counted: _Counted) -> None:
        self._counted, self._told, self._when = counted, -1, counted.began

    def add(self, more: int) -> None:
        self._counted.add(more)
        with self._counted.lock:
            due = time.monotonic() - self._when >= LINE_SECONDS
            if due:
                self._when = time.monotonic()
        if due:
            self._tell()

    def end(self) -> None:
        if 0 <= self._told < self._counted.done:
            self._tell()

    def _tell(self) -> None:
        self._told = self._counted.done
        print(self._counted, file=sys.stderr, flush=True)


class _Display:
    """The live line of this process's terminal: of the innermost piece of work."""

    def __init__(self) -> None:
        self._stack: list[_Counted] = []

    @contextlib.contextmanager
    def showing(self, counted: _Counted) -> Iterator[None]:
        self._stack.append(counted)
        try:
            with self._live() if len(self._stack) == 1 else contextlib.nullcontext():
                yield
        finally:
            self._stack.remove(counted)

    @contextlib.contextmanager
    def _live(self) -> Iterator[None]:
        from rich.console import Console
        from rich.live import Live

        console = Console(file=logs.bare(sys.stderr), highlight=False)
        # What is printed meanwhile, by other processes too, is put above the line by mmbert/logs.py: rich would cut it
        # into lines of the terminal's width.
        live = Live(
            get_renderable=lambda: self._line(console.width), console=console, refresh_per_second=4,
            redirect_stdout=False, redirect_stderr=False,
        )  # fmt: skip
        with logs.above_a_live_line(), live:
            live.refresh()
            yield

    def _line(self, width: int) -> Any:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        counted = self._stack[-1]
        line = Table.grid(padding=(0, 1))
        text = str(counted)
        row: list[Any] = [Text(text, no_wrap=True, overflow="ellipsis")]
        room = min(20, width - max(len(text), _USUAL_TEXT) - 1)
        if counted.total and room >= _SHORTEST_BAR:
            row.insert(0, ProgressBar(total=counted.total, completed=counted.done, width=room))
        line.add_row(*row)
        return line


_display = _Display()


def _is_terminal() -> bool:
    """Whether a live line can be shown."""
    if os.environ.get("TERM") == "dumb" or logs.is_json() or not sys.stderr.isatty():
        return False
    with contextlib.suppress(ImportError):  # only an installation without the extras lacks it
        import rich  # noqa: F401

        return True
    return False


def amount(number: float, unit: str) -> str:
    """`1,234 files`, `1.2 GB`."""
    if unit != BYTES:
        return f"{number:,.0f} {unit}"
    for name in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.{0 if name == 'B' else 1}f} {name}"
        number /= 1000
    return f"{number:,.1f} TB"


def rate(a_second: float, unit: str) -> str:
    """`3.1 files/s`, `12.0 files/min`, `1.2 GB/s`."""
    if unit == BYTES:
        return f"{amount(a_second, BYTES)}/s"
    for seconds, name in ((1, "s"), (60, "min")):
        if a_second * seconds >= 1:
            number = a_second * seconds
            return f"{number:,.{0 if number >= 100 else 1}f} {unit}/{name}"
    return f"{a_second * 3600:,.1f} {unit}/h"


def duration(seconds: float) -> str:
    """`9 s`, `3 min 20 s`, `1 h 02 min`, `2 d 03 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02} h"
