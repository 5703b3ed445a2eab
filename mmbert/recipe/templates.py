"""Texts put together from several fields of a row: `{title}\\n\\n{body}`."""

from __future__ import annotations

import string
from collections.abc import Callable


def template_fields(template: str) -> list[str]:
    """The fields that a template names, in order. Raises ValueError for one that is not well formed."""
    parsed = list(string.Formatter().parse(template))
    for _, field, spec, conversion in parsed:
        if field == "" or spec or conversion:
            raise ValueError(f"'{template}' is not a template; name plain fields, like '{{title}} {{body}}'")
    return [field for _, field, _, _ in parsed if field is not None]


def fill(template: str, value_of: Callable[[str], str]) -> str:
    """The template with each field replaced by what `value_of` gives for its name."""
    parts = []
    for literal, field, _, _ in string.Formatter().parse(template):
        parts.append(literal)
        if field is not None:
            parts.append(value_of(field))
    return "".join(parts)
