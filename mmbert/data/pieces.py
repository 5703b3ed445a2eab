"""Long texts in pieces."""

from __future__ import annotations

from collections.abc import Iterator


def split_text(text: str, max_characters: int) -> list[str]:
    """Pieces of at most `max_characters`; nothing is lost but the line end or space that a cut falls on."""
    return list(pieces_of(iter([text]), max_characters))


def pieces_of(parts: Iterator[str], max_characters: int) -> Iterator[str]:
    """The pieces of a text that comes in parts, never held whole. One piece at least, be it empty."""
    text, start, any_piece = "", 0, False
    for part in parts:
        text, start = text[start:] + part, 0
        while len(text) - start > max_characters:
            end, following = _cut(text, start, start + max_characters)
            yield text[start:end]
            start, any_piece = following, True
    if start < len(text) or not any_piece:
        yield text[start:]


def _cut(text: str, start: int, end: int) -> tuple[int, int]:
    """(end of the piece, start of the next one) for a piece that may reach to `end`."""
    # A cut in the first half would make more pieces than needed.
    middle = (start + end) // 2
    for separator in "\n ":
        cut = text.rfind(separator, middle, end + 1)
        if cut > start:
            return cut, cut + 1
    return end, end
