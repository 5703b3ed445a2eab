"""Reads cleaned units again, for the stages that look at their documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from datatrove.data import Document as Record
from datatrove.pipeline.base import PipelineStep

from mmbert.data.curation.clean import Cleaned
from mmbert.data.curation.executor import Jobs
from mmbert.data.curation.parts import read_part
from mmbert.data.curation.work import WorkStore
from mmbert.data.documents import HELD_OUT
from mmbert.data.readers import to_record


@dataclass(frozen=True)
class UnitJob:
    """A cleaned unit, and the fingerprint of what is done with it."""

    unit: Cleaned
    fingerprint: str


class ReadCleaned(PipelineStep):
    """Reads the `unit` of each task's job: part after part, each document with its `position` within its part."""

    type = "reader"
    name = "cleaned unit"

    def __init__(self, jobs: Jobs, store: WorkStore, splits: Sequence[str]) -> None:
        super().__init__()
        self.jobs, self.store, self.splits = jobs, store, splits

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Record]:  # noqa: ARG002
        unit: Cleaned = self.jobs[rank].unit
        with self.store.fetched(unit.documents) as path:
            for part in unit.parts:
                if part.split in self.splits:
                    for position, document in enumerate(read_part(path, part)):
                        record = to_record(document, part.split == HELD_OUT)
                        record.metadata["position"] = position
                        yield record
