"""Curation: from sources to clean documents, as one datatrove pipeline."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from datatrove.data import Document as Record
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from loguru import logger

from mmbert.data.documents import SUFFIX, TRAIN, Document, DocumentCounts, from_line, to_line, write_lines
from mmbert.data.filters import ExactDeduplication, text_digest
from mmbert.data.readers import Selection, to_document
from mmbert.data.sources import make_reader
from mmbert.data.steps.cleaning import cleaning_steps
from mmbert.errors import UserError
from mmbert.recipe.schema import Curation, Source

COUNTS_FILE = "counts.json"
DROPPED_FILE = f"dropped{SUFFIX}"
_BUFFER_BYTES = 64 * 2**20

Key = tuple[str, str, str]
"""Source, language, split."""


def curate(
    sources: Mapping[str, Source], curation: Curation, reserved_languages: Iterable[str], group: int, out: Path
) -> dict[str, Any]:
    """Read, repair, filter, split and deduplicate the languages of one group.

    Writes `train/<source>/<language>.jsonl.zst`, `heldout/...`, `dropped.jsonl.zst` (each with its reason) and
    `counts.json` into `out`; the same input gives the same bytes. Returns the counts:
    `{source: {language: {split: {documents, bytes, dropped: {reason: documents}}}}}`. Raises UserError for a source
    that is missing, empty or undecodable, and for a group that is not one of `curation.groups`.
    """
    if not 0 <= group < curation.groups:
        raise UserError(f"group {group} does not exist; with {curation.groups} groups it is 0 to {curation.groups - 1}")
    selection = Selection(curation.groups, group, frozenset(reserved_languages))
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".curation-") as temporary:
        record = Dropped(Path(temporary, "dropped.jsonl"))
        pipeline = [
            *(make_reader(name, source, selection) for name, source in sources.items()),
            *cleaning_steps(curation, record),
            ExactDeduplication(curation.exact_deduplication, record),
            Spool(Path(temporary, "spool")),
        ]
        executor = LocalPipelineExecutor(pipeline, tasks=1, workers=1, logging_dir=str(Path(temporary, "logs")))
        logger.disable("datatrove")
        executor.run()
        # The executor runs a copy of the pipeline and keeps it.
        *_, deduplication, spool = executor.pipeline
        return _finish(spool, deduplication, out)


class Dropped:
    """Where filters put what they drop; filters of one pipeline share it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.counts: dict[Key, DocumentCounts] = defaultdict(DocumentCounts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def write(self, record: Record, rank: int = 0) -> None:  # noqa: ARG002
        metadata = record.metadata
        self.add(metadata["split"], to_document(record), metadata["filter_reason"])

    def add(self, split: str, document: Document, reason: str) -> None:
        self.counts[document.source, document.language, split].dropped[reason] += 1
        facts = document.metadata | {"split": split, "reason": reason}
        with self.path.open("ab") as stream:
            stream.write(to_line(Document(document.id, document.text, document.language, document.source, facts)))


class Spool(PipelineStep):
    """Sorts documents into one plain file a split, source and language, with bounded memory and few open files."""

    type = "writer"
    name = "spool"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.counts: dict[Key, DocumentCounts] = defaultdict(DocumentCounts)

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Record]:  # noqa: ARG002
        buffers: dict[Key, list[bytes]] = defaultdict(list)
        buffered = 0
        for record in data:
            document = to_document(record)
            key = (document.source, document.language, record.metadata["split"])
            line = to_line(document)
            buffers[key].append(line)
            buffered += len(line)
            self.counts[key].documents += 1
            self.counts[key].bytes += len(document.text.encode())
            if buffered > _BUFFER_BYTES:
                self._flush(buffers)
                buffered = 0
            yield record
        self._flush(buffers)

    def path(self, key: Key) -> Path:
        source, language, split = key
        return self.folder / split / source / f"{language}.jsonl"

    def _flush(self, buffers: dict[Key, list[bytes]]) -> None:
        for key, lines in buffers.items():
            self.path(key).parent.mkdir(parents=True, exist_ok=True)
            with self.path(key).open("ab") as stream:
                stream.writelines(lines)
        buffers.clear()


def _finish(spool: Spool, deduplication: ExactDeduplication, out: Path) -> dict[str, Any]:
    """Compress what was spooled, without training texts that turned out to be held out elsewhere; write the counts."""
    dropped: Dropped = deduplication.exclusion_writer
    for split in {key[2] for key in spool.counts} | {TRAIN}:
        shutil.rmtree(out / split, ignore_errors=True)
    for key in sorted(spool.counts):
        source, language, split = key
        lines = spool.path(key).open("rb")
        with lines:
            kept = _without(lines, deduplication.withdrawn, spool.counts[key], dropped) if split == TRAIN else lines
            write_lines(out / split / source / f"{language}{SUFFIX}", kept)
        if not spool.counts[key].documents:
            (out / split / source / f"{language}{SUFFIX}").unlink()
    with dropped.path.open("ab+") as stream:
        stream.seek(0)
        write_lines(out / DROPPED_FILE, stream)
    counts = _counts(spool.counts, dropped.counts)
    (out / COUNTS_FILE).write_text(json.dumps(counts, indent=1) + "\n")
    return counts


def _without(
    lines: Iterable[bytes], withdrawn: set[bytes], counts: DocumentCounts, dropped: Dropped
) -> Iterator[bytes]:
    if not withdrawn:
        yield from lines
        return
    for line in lines:
        document = from_line(line)
        if text_digest(document.language, document.text) in withdrawn:
            counts.documents -= 1
            counts.bytes -= len(document.text.encode())
            dropped.add(TRAIN, document, "equals_held_out")
        else:
            yield line


def _counts(kept: Mapping[Key, DocumentCounts], dropped: Mapping[Key, DocumentCounts]) -> dict[str, Any]:
    counts: dict[str, Any] = {}
    for key in sorted({*kept, *dropped}):
        source, language, split = key
        entry = DocumentCounts(dropped=dropped[key].dropped if key in dropped else DocumentCounts().dropped)
        if key in kept:
            entry.documents, entry.bytes = kept[key].documents, kept[key].bytes
        counts.setdefault(source, {}).setdefault(language, {})[split] = entry.to_json()
    return counts
