"""The second stage: what stands for each cleaned document when duplicates are looked for.

A unit's file holds for each part a matrix of uint64 [rows, documents], row after row: two rows of a digest of the text,
one of the document's id, and one a MinHash band (NO_SHINGLE: the text is too short to have a near duplicate).
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.pipeline.base import PipelineStep
from numpy.typing import NDArray

from mmbert import storage
from mmbert.data.curation.clean import Cleaned
from mmbert.data.curation.parts import Place
from mmbert.data.curation.reading import ReadCleaned
from mmbert.data.curation.work import Finished, StoredFile, WorkStore, fingerprint
from mmbert.data.documents import SPLITS
from mmbert.data.dedup import MinHashSettings, band_hashes
from mmbert.data.steps import text_digest

STAGE = "signatures"
FILE = "signatures.u64"
TEXT_ROWS = (0, 1)
ID_ROW = 2
FIRST_BAND = 3
_VERSION = 1
_BATCH_CHARACTERS = 500_000

Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class SignedPart:
    """Where the matrix of one part lies. `digest` stands for its content."""

    file: StoredFile
    offset: int
    documents: int
    digest: str

    def rows(self, first: int, last: int) -> Hashes:
        """Rows first to last - 1: uint64 [rows, documents]."""
        size = 8 * self.documents
        data = storage.read_range(self.file.uri, self.offset + first * size, (last - first) * size)
        return np.frombuffer(data, "<u8").reshape(last - first, self.documents)


def job(unit: Cleaned, settings: MinHashSettings | None) -> str:
    """The fingerprint of a unit's signatures."""
    return fingerprint(STAGE, _VERSION, unit.documents.sha256, None if settings is None else asdict(settings))


def signed(finished: Finished) -> dict[Place, SignedPart]:
    file = finished.files[FILE]
    listed = finished.found["parts"]
    return {(split, language): SignedPart(file, offset, n, digest) for split, language, offset, n, digest in listed}


def steps(
    units: Sequence[Cleaned], names: Sequence[str], settings: MinHashSettings | None, store: WorkStore
) -> list[PipelineStep]:
    """The pipeline whose task number n signs `units[n]`, whose work is called `names[n]`."""
    return [ReadCleaned(units, store, SPLITS), _Sign(names, settings, store)]


class _Sign(PipelineStep):  # type: ignore[misc]
    type = "dedup"
    name = "signatures"

    def __init__(self, names: Sequence[str], settings: MinHashSettings | None, store: WorkStore) -> None:
        super().__init__()
        self.names, self.settings, self.store = names, settings, store

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> None:  # noqa: ARG002
        blocks: dict[Place, list[Hashes]] = {}
        texts: list[str] = []
        facts: list[tuple[Place, bytes, bytes]] = []
        characters = 0

        def flush() -> None:
            for place, block in _by_place(facts, self._bands(texts)):
                blocks.setdefault(place, []).append(block)
            texts.clear()
            facts.clear()

        for record in data:
            metadata = record.metadata
            place = metadata["split"], metadata["language"]
            ident = hashlib.blake2b(record.id.encode(), digest_size=8).digest()
            facts.append((place, text_digest(place[1], record.text), ident))
            texts.append(record.text)
            characters += len(record.text)
            if characters >= _BATCH_CHARACTERS:
                flush()
                characters = 0
        flush()
        with tempfile.TemporaryDirectory(prefix="mmbert-signatures-") as folder:
            path = Path(folder, FILE)
            parts = _write(path, blocks)
            self.store.commit(STAGE, self.names[rank], {FILE: path}, {"parts": parts})

    def _bands(self, texts: Sequence[str]) -> Hashes:
        """uint64 [bands, documents]."""
        if self.settings is None or not texts:
            return np.zeros((0, len(texts)), np.uint64)
        return band_hashes(texts, self.settings).T


def _by_place(facts: Sequence[tuple[Place, bytes, bytes]], bands: Hashes) -> list[tuple[Place, Hashes]]:
    """One matrix for each run of documents of one part; the reader gives part after part."""
    if not facts:
        return []
    digests = np.frombuffer(b"".join(digest for _, digest, _ in facts), "<u8").reshape(-1, 2).T
    ids = np.frombuffer(b"".join(ident for _, _, ident in facts), "<u8")[None]
    matrix = np.concatenate([digests, ids, bands])
    found = []
    begin = 0
    for index in range(1, len(facts) + 1):
        if index == len(facts) or facts[index][0] != facts[begin][0]:
            found.append((facts[begin][0], matrix[:, begin:index]))
            begin = index
    return found


def _write(path: Path, blocks: dict[Place, list[Hashes]]) -> list[list[Any]]:
    """[split, language, offset, documents, digest] of each part."""
    parts: list[list[Any]] = []
    with path.open("wb") as stream:
        for place in sorted(blocks):
            data = np.concatenate(blocks.pop(place), axis=1).astype("<u8", order="C")
            digest = hashlib.sha256(data).hexdigest()
            parts.append([*place, stream.tell(), data.shape[1], digest])
            stream.write(data)
    return parts
