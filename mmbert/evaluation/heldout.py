"""Held-out documents by source and language, from one or more folders of curated text."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mmbert.data.documents import HELD_OUT, SUFFIX, Document, document_files, read_documents
from mmbert.errors import UserError

HeldOut = dict[str, dict[str, list[Document]]]
"""Documents by source and language, both in sorted order."""


def read_held_out(folders: Iterable[Path]) -> HeldOut:
    """All held-out documents of several folders. Raises UserError where there are none or a file cannot be read."""
    searched = [Path(folder) for folder in folders]
    found: HeldOut = {}
    for file in document_files(searched, HELD_OUT):
        found.setdefault(file.source, {}).setdefault(file.language, []).extend(read_documents(file.path))
    if not found:
        where = ", ".join(map(str, searched)) or "no folder given"
        raise UserError(
            f"{where}: no held-out documents ({HELD_OUT}/<source>/<language>/<part>{SUFFIX}); curate the sources first"
        )
    return found


def by_language(held_out: HeldOut) -> dict[str, list[Document]]:
    """Documents of all sources by language."""
    merged: dict[str, list[Document]] = {}
    for languages in held_out.values():
        for language, documents in languages.items():
            merged.setdefault(language, []).extend(documents)
    return dict(sorted(merged.items()))
