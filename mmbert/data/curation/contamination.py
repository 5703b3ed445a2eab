"""Training documents that hold what models are evaluated on: looked for in each cleaned unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from datatrove.data import Document as Record
from datatrove.pipeline.base import PipelineStep

from mmbert.data.curation.clean import Cleaned
from mmbert.data.curation.reading import ReadCleaned
from mmbert.data.curation.work import WorkStore, fingerprint
from mmbert.data.documents import TRAIN
from mmbert.data.steps import ContaminationIndex, Decontamination

STAGE = "contamination"
REASON = "contaminated"
_VERSION = 1

Marks = Mapping[str, Sequence[int]]
"""Positions of contaminated training documents by language."""


def job(unit: Cleaned, index: ContaminationIndex) -> str:
    """The fingerprint of looking through a unit."""
    return fingerprint(STAGE, _VERSION, unit.documents.sha256, index.digest)


def steps(
    units: Sequence[Cleaned], names: Sequence[str], index: ContaminationIndex, store: WorkStore
) -> list[PipelineStep]:
    """The pipeline whose task number n looks through `units[n]`, whose work is called `names[n]`."""
    marks = _Marks()
    return [ReadCleaned(units, store, [TRAIN]), Decontamination(index, marks), _Commit(names, marks, store)]


class _Marks:
    """Takes what the filter drops and keeps its place only."""

    def __init__(self) -> None:
        self.positions: dict[str, list[int]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def write(self, record: Record, rank: int = 0) -> None:  # noqa: ARG002
        self.positions.setdefault(record.metadata["language"], []).append(record.metadata["position"])


class _Commit(PipelineStep):  # type: ignore[misc]
    type = "writer"
    name = "marks"

    def __init__(self, names: Sequence[str], marks: _Marks, store: WorkStore) -> None:
        super().__init__()
        self.names, self.marks, self.store = names, marks, store

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> None:  # noqa: ARG002
        for _ in data:
            pass
        self.store.commit(STAGE, self.names[rank], {}, {"marks": self.marks.positions})
