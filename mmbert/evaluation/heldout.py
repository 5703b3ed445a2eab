"""Held-out documents: `heldout/<source>/<language>.jsonl.zst` below one or more folders."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

from mmbert.errors import UserError

SUFFIX = ".jsonl.zst"


@dataclass(frozen=True)
class Document:
    """One held-out document. `metadata` holds `article` for the articles of a declaration."""

    id: str
    text: str
    language: str
    source: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


HeldOut = dict[str, dict[str, list[Document]]]
"""Documents by source and language, both in sorted order."""


def read_held_out(folders: Iterable[Path]) -> HeldOut:
    """All held-out documents of several folders, each holding `heldout/<source>/<language>.jsonl.zst`.

    Raises UserError where there are none, or where a file cannot be read.
    """
    found: HeldOut = {}
    searched = list(folders)
    for folder in searched:
        for path in sorted(folder.glob(f"heldout/*/*{SUFFIX}")):
            languages = found.setdefault(path.parent.name, {})
            languages.setdefault(path.name.removesuffix(SUFFIX), []).extend(_read(path))
    if not found:
        where = ", ".join(map(str, searched)) or "no folder"
        raise UserError(f"{where}: no heldout/<source>/<language>{SUFFIX}; curate the sources first")
    return {source: dict(sorted(languages.items())) for source, languages in sorted(found.items())}


def by_language(held_out: HeldOut) -> dict[str, list[Document]]:
    """Documents of all sources by language."""
    merged: dict[str, list[Document]] = {}
    for languages in held_out.values():
        for language, documents in languages.items():
            merged.setdefault(language, []).extend(documents)
    return dict(sorted(merged.items()))


def _read(path: Path) -> list[Document]:
    try:
        with path.open("rb") as stream:
            text = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(stream), "utf-8")
            return [
                Document(row["id"], row["text"], row["language"], row["source"], row.get("metadata") or {})
                for row in map(json.loads, text)
            ]
    except (zstandard.ZstdError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not readable as held-out documents ({error}); curate the source again") from error
