"""The first stage: a unit of a source is read, repaired and filtered, document by document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from datatrove.data import Document as Record
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter

from mmbert import metrics
from mmbert.data.curation.counts import Samples, Tally
from mmbert.data.curation.executor import Jobs
from mmbert.data.curation.parts import Part, Spool, parts_of
from mmbert.data.curation.work import Finished, StoredFile, WorkStore, fingerprint
from mmbert.data.documents import Document, to_line
from mmbert.data.readers import Selection, is_error, to_document
from mmbert.data.scripts import script_of
from mmbert.data.sources import SourceReader, Unit, make_reader
from mmbert.data.steps.cleaning import cleaning_steps, language_settings
from mmbert.places import scratch_folder
from mmbert.recipe.languages import known_languages
from mmbert.recipe.schema import Curation, Source

STAGE = "clean"
DOCUMENTS = "documents.jsonl.zst"
DROPPED = "dropped.jsonl.zst"
_VERSION = 1


@dataclass(frozen=True)
class CleanJob:
    """One unit of one source."""

    source: str
    unit: Unit
    fingerprint: str

    @property
    def name(self) -> str:
        return f"{self.source}/{self.unit.name}"


@dataclass(frozen=True)
class Cleaned:
    """A unit's documents after the first stage: one file with a part for each split and language."""

    job: CleanJob
    documents: StoredFile
    dropped: StoredFile | None
    parts: tuple[Part, ...]
    found: Mapping[str, Any]

    @classmethod
    def of(cls, job: CleanJob, finished: Finished) -> Cleaned:
        files, parts = finished.files, tuple(parts_of(finished.found["parts"]))
        return cls(job, files[DOCUMENTS], files.get(DROPPED), parts, finished.found)


def plan(sources: Mapping[str, Source], curation: Curation, selection: Selection) -> list[CleanJob]:
    """The units to read, in the order of the recipe's sources and of the units' names."""
    return [
        CleanJob(name, unit, _fingerprint(name, source, unit, curation, selection))
        for name, source in sources.items()
        for unit in make_reader(name, source).units(selection)
    ]


def steps(
    jobs: Jobs, sources: Mapping[str, Source], curation: Curation, selection: Selection, store: WorkStore
) -> list[PipelineStep]:
    """The pipeline that does one `CleanJob` a task."""
    dropped = Dropped()
    readers = {name: make_reader(name, source, curation.max_characters) for name, source in sources.items()}
    return [
        _Read(jobs, readers, selection),
        _Unreadable(dropped),
        *cleaning_steps(curation, dropped),
        _Commit(jobs, dropped, curation.keep_dropped, store),
    ]


def _fingerprint(name: str, source: Source, unit: Unit, curation: Curation, selection: Selection) -> str:
    """Covers the settings of the languages that the unit holds, and of no others."""
    part: Any = None
    if unit.languages is None or len(unit.languages) > 1:
        part = [selection.groups, selection.group, sorted(selection.reserved)]
    languages = sorted(known_languages()) if unit.languages is None else unit.languages
    settings = {code: language_settings(curation, code) for code in languages if code in selection}
    own = [name, source.model_dump(mode="json"), unit.name, unit.version]
    return fingerprint(STAGE, _VERSION, own, part, curation.keep_dropped, settings)


class Dropped:
    """Where the filters of a pipeline put what they drop, each document with its reason."""

    def __init__(self) -> None:
        self.reasons = Tally()
        self.labels = Tally()
        self.samples = Samples()
        self._spool: Spool | None = None

    def open(self, spool: Spool | None) -> None:
        self._spool = spool

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def write(self, record: Record, rank: int = 0) -> None:  # noqa: ARG002
        document, split, reason = to_document(record), record.metadata["split"], record.metadata["filter_reason"]
        self.reasons.add(document.language, split, reason)
        self.samples.add(document.language, reason, document.id, document.text)
        note_labels(self.labels, record, reason)
        if self._spool is not None:
            self._spool.add(split, document.language, dropped_line(document, split, reason))


def dropped_line(document: Document, split: str, reason: str) -> bytes:
    """A dropped document as it is kept for reading: its split and the reason stand among its metadata."""
    facts = document.metadata | {"split": split, "reason": reason}
    return to_line(Document(document.id, document.text, document.language, document.source, facts))


def note_labels(labels: Tally, record: Record, reason: str = "") -> None:
    """Count the language that was identified, and the script that was found in place of the language's own."""
    language = record.metadata["language"]
    if (identified := record.metadata["facts"].get("identified")) is not None:
        labels.add(language, "identified", identified)
    script = script_of(record.text) if reason == "wrong_script" else language.partition("_")[2]
    if script:
        labels.add(language, "script", script)


class _Read(PipelineStep):
    type = "reader"
    name = "unit"

    def __init__(self, jobs: Jobs, readers: Mapping[str, SourceReader], selection: Selection) -> None:
        super().__init__()
        self.jobs, self.readers, self.selection = jobs, readers, selection

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Record]:  # noqa: ARG002
        job: CleanJob = self.jobs[rank]
        yield from self.readers[job.source].read(job.unit, self.selection)


class _Unreadable(BaseFilter):
    """Drops what the reader could not read; it comes as a record that carries the reason."""

    name = "unreadable"

    def filter(self, doc: Record) -> bool | tuple[bool, str]:
        return (False, doc.metadata["error"]) if is_error(doc) else True


class _Commit(PipelineStep):
    type = "writer"
    name = "commit"

    def __init__(self, jobs: Jobs, dropped: Dropped, keep_dropped: bool, store: WorkStore) -> None:
        super().__init__()
        self.jobs, self.dropped, self.keep_dropped, self.store = jobs, dropped, keep_dropped, store

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> None:  # noqa: ARG002
        job: CleanJob = self.jobs[rank]
        with scratch_folder() as folder:
            kept_folder, dropped_folder = folder / "kept", folder / "dropped"
            kept_folder.mkdir()
            dropped_folder.mkdir()
            kept, dropped = Spool(kept_folder), Spool(dropped_folder) if self.keep_dropped else None
            self.dropped.open(dropped)
            labels = self.dropped.labels
            number = 0
            for record in data:
                document = to_document(record)
                kept.add(record.metadata["split"], document.language, to_line(document))
                note_labels(labels, record)
                number += 1
            files = {DOCUMENTS: folder / DOCUMENTS}
            parts = kept.write(files[DOCUMENTS])
            if dropped is not None and self.dropped.reasons.counts:
                files[DROPPED] = folder / DROPPED
                dropped.write(files[DROPPED])
            reasons = self.dropped.reasons.to_json()
            found = {
                "parts": [part.to_json() for part in parts],
                "dropped": reasons,
                "labels": labels.to_json(),
                "samples": self.dropped.samples.to_json(),
            }
            self.store.commit(STAGE, job.fingerprint, files, found)
        lost = sum(n for splits in reasons.values() for numbers in splits.values() for n in numbers.values())
        metrics.add(metrics.DOCUMENTS, number, "clean", "kept")
        metrics.add(metrics.DOCUMENTS, lost, "clean", "dropped")
        metrics.add(metrics.BYTES, sum(part.size for part in parts), "clean")
        print(f"cleaned {job.name}: {number:,} documents kept, {lost:,} dropped", flush=True)
