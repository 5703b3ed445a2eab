"""The last stage: a cleaned unit without its duplicates and contaminated documents, as files of a language each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from datatrove.pipeline.base import PipelineStep

from mmbert.data.curation import contamination
from mmbert.data.curation.clean import DROPPED, Cleaned, dropped_line
from mmbert.data.curation.counts import Kept, Samples, Tally
from mmbert.data.curation.duplicates import REASONS, Drops
from mmbert.data.curation.executor import Jobs
from mmbert.data.curation.parts import Place, Spool
from mmbert.data.curation.reading import ReadCleaned
from mmbert.data.curation.work import WorkStore, fingerprint
from mmbert.data.documents import SPLITS, SUFFIX, TRAIN, compressor, to_line
from mmbert.data.readers import to_document
from mmbert.places import scratch_folder

STAGE = "finish"
KEPT_SAMPLES = "kept"
_VERSION = 1
_FILE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class FinishJob:
    """One cleaned unit, and what of it goes: for each place its part number in the language's drops, and the marks."""

    unit: Cleaned
    drops: Mapping[Place, tuple[Drops, int]]
    marks: contamination.Marks
    keep_dropped: bool

    @property
    def fingerprint(self) -> str:
        listed = [[*place, drops.digests[part]] for place, (drops, part) in sorted(self.drops.items())]
        return fingerprint(
            STAGE, _VERSION, self.unit.documents.sha256, listed, sorted(self.marks.items()), self.keep_dropped
        )

    def reasons(self, place: Place) -> dict[int, tuple[str, dict[str, Any]]]:
        """Position -> reason of the documents to drop, and facts about it."""
        found: dict[int, tuple[str, dict[str, Any]]] = {}
        if place[0] == TRAIN:
            marks = self.marks.get(place[1], ())
            found = {p: (contamination.REASON, {"contaminated_by": task}) for p, task in marks}
        if place in self.drops:
            drops, part = self.drops[place]
            positions, reasons = drops.read(part)
            found |= {p: (REASONS[r], {}) for p, r in zip(positions.tolist(), reasons.tolist(), strict=True)}
        return found


def steps(jobs: Jobs, store: WorkStore) -> list[PipelineStep]:
    """The pipeline that does one `FinishJob` a task."""
    return [ReadCleaned(jobs, store, SPLITS), _Finish(jobs, store)]


class _Finish(PipelineStep):
    type = "writer"
    name = "documents"

    def __init__(self, jobs: Jobs, store: WorkStore) -> None:
        super().__init__()
        self.jobs, self.store = jobs, store

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> None:  # noqa: ARG002
        job: FinishJob = self.jobs[rank]
        kept: dict[Place, Kept] = defaultdict(Kept)
        dropped, samples = Tally(), Samples()
        with scratch_folder() as folder, Files(folder) as files:
            spool = Spool(folder)
            place, reasons = ("", ""), dict[int, tuple[str, dict[str, Any]]]()
            for record in data:
                document = to_document(record)
                here = record.metadata["split"], document.language
                if here != place:
                    place, reasons = here, job.reasons(here)
                drop = reasons.get(record.metadata["position"])
                if drop is None:
                    files.write(place, to_line(document))
                    kept[place].add(document.text)
                    if place[0] == TRAIN:
                        samples.add(document.language, KEPT_SAMPLES, document.id, document.text)
                else:
                    reason, facts = drop
                    document.metadata.update(facts)
                    dropped.add(document.language, place[0], reason)
                    samples.add(document.language, reason, document.id, document.text)
                    if job.keep_dropped:
                        spool.add(place[0], document.language, dropped_line(document, place[0], reason))
            files.close()
            paths = dict(files.paths)
            if job.keep_dropped and dropped.counts:
                paths[DROPPED] = folder / DROPPED
                spool.write(paths[DROPPED])
            found = {
                "files": [[*of, name] for name, of in files.places.items()],
                "kept": _nested(kept.items()),
                "dropped": dropped.to_json(),
                "samples": samples.to_json(),
            }
            self.store.commit(STAGE, job.fingerprint, paths, found)


def _nested(kept: Iterable[tuple[Place, Kept]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for (split, language), numbers in sorted(kept):
        found.setdefault(language, {})[split] = numbers.to_json()
    return found


class Files:
    """Lines into compressed files of one place each, a new one when enough text is in it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.paths: dict[str, Path] = {}
        self.places: dict[str, Place] = {}
        self._place: Place | None = None
        self._bytes = 0
        self._raw: Any = None
        self._stream: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, place: Place, line: bytes) -> None:
        if place != self._place or self._bytes >= _FILE_BYTES:
            self._next(place)
        self._stream.write(line)
        self._bytes += len(line)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._raw.close()
            self._stream = None

    def _next(self, place: Place) -> None:
        self.close()
        number = sum(1 for other in self.places.values() if other == place) if place == self._place else 0
        name = f"{place[0]}-{place[1]}-{number:05d}{SUFFIX}"
        self.paths[name], self.places[name] = self._folder / name, place
        self._raw = self.paths[name].open("wb")
        self._stream = compressor().stream_writer(self._raw, closefd=False)
        self._place, self._bytes = place, 0
