"""The second stage: what stands for each cleaned document when duplicates are looked for.

A unit's file holds for each part a matrix of uint64 [rows, documents], row after row: a digest of the text, one of the
document's id, the bits of its quality score (NaN without one), and a row a MinHash band (NO_SHINGLE: the text is too
short to have a near duplicate). 64 bits are enough: among a billion texts the chance that two different ones share a
digest is below 3%.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.pipeline.base import PipelineStep
from numpy.typing import NDArray

from mmbert.data.curation.clean import Cleaned
from mmbert.data.curation.executor import Jobs
from mmbert.data.curation.parts import Place
from mmbert.data.curation.reading import ReadCleaned, UnitJob
from mmbert.data.curation.work import Finished, StoredFile, WorkStore, fingerprint, read_checked
from mmbert.data.dedup.minhash import MinHashSettings, band_hashes
from mmbert.data.documents import SPLITS
from mmbert.data.steps.classifier import SCORE
from mmbert.places import scratch_folder

STAGE = "signatures"
FILE = "signatures.u64"
TEXT_ROW = 0
ID_ROW = 1
SCORE_ROW = 2
FIRST_BAND = 3
_VERSION = 2
_BATCH_CHARACTERS = 500_000

Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class SignedPart:
    """Where the matrix of one part lies. `digest` stands for its content."""

    file: StoredFile
    offset: int
    documents: int
    digest: str
    rows: tuple[str, ...]
    """The sha256 of each row."""

    def row(self, number: int) -> Hashes:
        """One row: uint64 [documents]."""
        size = 8 * self.documents
        return np.frombuffer(read_checked(self.file, self.offset + number * size, size, self.rows[number]), "<u8")


def plan(units: Sequence[Cleaned], settings: MinHashSettings | None) -> list[UnitJob]:
    given = None if settings is None else asdict(settings)
    return [UnitJob(unit, fingerprint(STAGE, _VERSION, unit.documents.sha256, given)) for unit in units]


def signed(finished: Finished) -> dict[Place, SignedPart]:
    file = finished.files[FILE]
    listed = finished.found["parts"]
    return {
        (split, language): SignedPart(file, offset, n, digest, tuple(rows))
        for split, language, offset, n, digest, rows in listed
    }


def steps(jobs: Jobs, settings: MinHashSettings | None, store: WorkStore) -> list[PipelineStep]:
    """The pipeline that does one job of `plan` a task."""
    return [ReadCleaned(jobs, store, SPLITS), _Sign(jobs, settings, store)]


class _Sign(PipelineStep):
    type = "dedup"
    name = "signatures"

    def __init__(self, jobs: Jobs, settings: MinHashSettings | None, store: WorkStore) -> None:
        super().__init__()
        self.jobs, self.settings, self.store = jobs, settings, store

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> None:  # noqa: ARG002
        blocks: dict[Place, list[Hashes]] = {}
        texts: list[str] = []
        facts: list[tuple[Place, bytes]] = []
        characters = 0

        def flush() -> None:
            for place, block in _by_place(facts, self._bands(texts)):
                blocks.setdefault(place, []).append(block)
            texts.clear()
            facts.clear()

        for record in data:
            metadata = record.metadata
            place = metadata["split"], metadata["language"]
            score = struct.pack("<d", metadata["facts"].get(SCORE, math.nan))
            facts.append((place, _digest(record.text) + _digest(record.id) + score))
            texts.append(record.text)
            characters += len(record.text)
            if characters >= _BATCH_CHARACTERS:
                flush()
                characters = 0
        flush()
        with scratch_folder() as folder:
            path = folder / FILE
            parts = _write(path, blocks)
            self.store.commit(STAGE, self.jobs[rank].fingerprint, {FILE: path}, {"parts": parts})

    def _bands(self, texts: Sequence[str]) -> Hashes:
        """uint64 [bands, documents]."""
        if self.settings is None or not texts:
            return np.zeros((0, len(texts)), np.uint64)
        return band_hashes(texts, self.settings).T


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def _by_place(facts: Sequence[tuple[Place, bytes]], bands: Hashes) -> list[tuple[Place, Hashes]]:
    """One matrix for each run of documents of one part; the reader gives part after part."""
    if not facts:
        return []
    own = np.frombuffer(b"".join(words for _, words in facts), "<u8").reshape(-1, FIRST_BAND).T
    matrix = np.concatenate([own, bands])
    found = []
    begin = 0
    for index in range(1, len(facts) + 1):
        if index == len(facts) or facts[index][0] != facts[begin][0]:
            found.append((facts[begin][0], matrix[:, begin:index]))
            begin = index
    return found


def _write(path: Path, blocks: dict[Place, list[Hashes]]) -> list[list[Any]]:
    """[split, language, offset, documents, digest, digests of the rows] of each part."""
    parts: list[list[Any]] = []
    with path.open("wb") as stream:
        for place in sorted(blocks):
            matrix = np.concatenate(blocks.pop(place), axis=1)
            data = matrix.astype("<u8").tobytes()
            rows = [hashlib.sha256(row.astype("<u8").tobytes()).hexdigest() for row in matrix]
            parts.append([*place, stream.tell(), matrix.shape[1], hashlib.sha256(data).hexdigest(), rows])
            stream.write(data)
    return parts
