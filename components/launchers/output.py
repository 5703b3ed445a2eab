"""A component's output, shown as it comes; its closing error is kept back, for who catches the exception to tell it.

The last line is told in plain words, also where the component writes JSON (mmbert/logs.py).
"""

from __future__ import annotations

import codecs
import contextlib
from collections.abc import Iterable, Iterator

from mmbert import logs

ERROR = "error: "
"""What a component's closing message begins with."""
_RESULT = '{"uri": '
"""What the line with a component's result begins with."""
_are_results_shown = True


@contextlib.contextmanager
def without_results() -> Iterator[None]:
    """Within the block components' results are left out: what they name is of no use to whoever reads them."""
    global _are_results_shown  # noqa: PLW0603 - there is one terminal
    _are_results_shown = False
    try:
        yield
    finally:
        _are_results_shown = True


def lines_of(chunks: Iterable[bytes]) -> Iterator[str]:
    """What comes in chunks, as lines, each with its end."""
    begun = ""
    for text in codecs.iterdecode(chunks, "utf-8", "replace"):
        *lines, begun = (begun + text).split("\n")
        yield from (f"{line}\n" for line in lines)
    if begun:
        yield begun


class Shown:
    def __init__(self) -> None:
        self._last = ""
        self._error = ""

    def follow(self, lines: Iterable[str]) -> None:
        """Show lines, each with its end, until there are no more."""
        for line in lines:
            plain = logs.plain(line)
            if plain.startswith(_RESULT) and (logs.quiet() or not _are_results_shown):
                continue
            told, self._error = (self._error, line) if plain.startswith(ERROR) else (self._error + line, "")
            logs.relay(told)
            self._last = plain.strip() or self._last

    def last_line(self, code: int) -> str:
        """The last line, of an error its message; what was kept back is shown where it ended well."""
        if code == 0:
            logs.relay(self._error)
        return self._last.removeprefix(ERROR)
