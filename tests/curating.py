"""Curation into a folder, as the component does it into an artifact."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmbert.data.curation import Curated, Executor, WorkStore
from mmbert.data.curation import curate as curate_documents
from mmbert.data.documents import Document, document_files, read_documents
from mmbert.recipe.schema import Curation, Source


def curate(
    sources: Mapping[str, Source],
    curation: Curation,
    reserved: Iterable[str],
    group: int,
    out: Path,
    work: Path | None = None,
    executor: Executor | None = None,
) -> Curated:
    """Curate into `out`; without `work` nothing is shared with other runs."""
    store = WorkStore(str(work or out.with_name(f"{out.name}-work")))
    curated = curate_documents(sources, curation, reserved, group, store, executor or Executor())
    for file in (*curated.files, *curated.dropped):
        target = out / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file.stored.uri, target)
    (out / "counts.json").write_text(json.dumps(curated.counts, indent=1) + "\n")
    return curated


def read_all(folder: Path, split: str) -> list[Document]:
    return [document for file in document_files([folder], split) for document in read_documents(file.path)]


def dropped(folder: Path) -> list[Document]:
    return [document for path in sorted(folder.glob("dropped/*/*")) for document in read_documents(path)]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def drop_counts(curated: Curated) -> dict[str, dict[str, int]]:
    """{language: {reason: documents}} over all sources and splits."""
    found: dict[str, dict[str, int]] = {}
    for languages in curated.counts.values():
        for language, splits in languages.items():
            for entry in splits.values():
                for reason, n in entry["dropped"].items():
                    reasons: dict[str, Any] = found.setdefault(language, {})
                    reasons[reason] = reasons.get(reason, 0) + n
    return found
