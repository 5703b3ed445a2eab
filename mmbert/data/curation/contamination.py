"""Training documents that hold what models are evaluated on: looked for in each cleaned unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from datatrove.data import Document as Record
from datatrove.pipeline.base import PipelineStep

from mmbert.data.curation.clean import Cleaned
from mmbert.data.curation.executor import Jobs
from mmbert.data.curation.reading import ReadCleaned, UnitJob
from mmbert.data.curation.work import WorkStore, fingerprint
from mmbert.data.documents import TRAIN
from mmbert.data.steps.decontamination import ContaminationIndex, Decontamination

STAGE = "contamination"
REASON = "contaminated"
_VERSION = 1

Marks = Mapping[str, Sequence[tuple[int, str]]]
"""Contaminated training documents by language: their positions, and the tasks whose text they hold."""


def plan(units: Sequence[Cleaned], index: ContaminationIndex) -> list[UnitJob]:
    digest = index.digest()
    return [UnitJob(unit, fingerprint(STAGE, _VERSION, unit.documents.sha256, digest)) for unit in units]


def steps(jobs: Jobs, index: ContaminationIndex, store: WorkStore) -> list[PipelineStep]:
    """The pipeline that does one job of `plan` a task."""
    marks = _Marks()
    return [ReadCleaned(jobs, store, [TRAIN]), Decontamination(index, marks), _Commit(jobs, marks, store)]


class _Marks:
    """Takes what the filter drops and keeps its place only."""

    def __init__(self) -> None:
        self.found: dict[str, list[tuple[int, str]]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def write(self, record: Record, rank: int = 0) -> None:  # noqa: ARG002
        mark = record.metadata["position"], record.metadata["facts"]["contaminated_by"]
        self.found.setdefault(record.metadata["language"], []).append(mark)


class _Commit(PipelineStep):
    type = "writer"
    name = "marks"

    def __init__(self, jobs: Jobs, marks: _Marks, store: WorkStore) -> None:
        super().__init__()
        self.jobs, self.marks, self.store = jobs, marks, store

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> None:  # noqa: ARG002
        for _ in data:
            pass
        self.store.commit(STAGE, self.jobs[rank].fingerprint, {}, {"marks": self.marks.found})
