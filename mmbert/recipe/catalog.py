"""Known data sets: `{kind: catalog, name: fineweb2}` in a recipe stands for the source that `catalog.yaml` gives."""

from __future__ import annotations

import functools
from importlib import resources
from typing import Any

import yaml

_ABOUT = {"about", "taken_from", "gated"}
"""Keys of an entry that describe it and are no settings."""


@functools.cache
def catalog() -> dict[str, dict[str, Any]]:
    """The entries by name, each with its settings and what is known about it."""
    text = resources.files("mmbert.recipe").joinpath("catalog.yaml").read_text("utf-8")
    entries: dict[str, dict[str, Any]] = yaml.safe_load(text)["sources"]
    return entries


def from_catalog(source: dict[str, Any]) -> dict[str, Any]:
    """The settings that a recipe's `{kind: catalog, name: ..., **changes}` stands for. Raises ValueError."""
    name = source.get("name")
    entry = catalog().get(str(name))
    if entry is None:
        raise ValueError(f"the catalog has no data set '{name}'; it has {', '.join(sorted(catalog()))}")
    changes = {key: value for key, value in source.items() if key not in ("kind", "name")}
    settings = {key: value for key, value in entry.items() if key not in _ABOUT}
    return settings | changes
