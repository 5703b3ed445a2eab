"""datatrove steps around MinHash, for the documents of one language: signatures, pairs, clusters, filter.

The first runs in as many tasks as there are inputs, the second in a multiple of the number of bands, the third in one,
the fourth like the first over the same documents. Files hold little-endian 64-bit words and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack

import numpy as np
from datatrove.data import Document
from datatrove.io import DataFolderLike, get_datafolder
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter
from datatrove.utils.typeshelper import StatHints

from mmbert.data.dedup.clusters import duplicate_pairs, join, settle
from mmbert.data.dedup.minhash import NO_SHINGLE, MinHashSettings, band_hashes
from mmbert.data.dedup.shingles import Ints
from mmbert.errors import InfrastructureError

_BUFFERED_CHARACTERS = 2**20
_WORD_BYTES = 8


class MinHashSignatures(PipelineStep):
    """Writes the band hashes of a task's documents, one file a band (`band-03/00017.hashes`), and passes them on."""

    type = "dedup"
    name = "MinHash signatures"

    def __init__(self, folder: DataFolderLike, settings: MinHashSettings | None = None) -> None:
        super().__init__()
        self.folder = get_datafolder(folder)
        self.settings = settings or MinHashSettings()

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # noqa: ARG002
        with ExitStack() as stack:
            bands = range(self.settings.num_bands)
            files = [stack.enter_context(self.folder.open(_hash_file(band, rank), "wb")) for band in bands]
            for documents in _batches(data):
                with self.track_time():
                    hashes = band_hashes([document.text for document in documents], self.settings)
                    for file, column in zip(files, hashes.T, strict=True):
                        file.write(column.astype("<u8").tobytes())
                self.stat_update(StatHints.total, value=len(documents))
                self.stat_update("too_short", value=int((hashes[:, 0] == NO_SHINGLE).sum()))
                yield from documents


class MinHashPairs(PipelineStep):
    """Writes the pairs of documents that agree on one band, in one range of hashes (`pairs/03-001.pairs`).

    Task r of w looks at band r // (w / bands). A document's number counts through all tasks of `MinHashSignatures`.
    """

    type = "dedup"
    name = "MinHash pairs"

    def __init__(self, folder: DataFolderLike, settings: MinHashSettings | None = None) -> None:
        super().__init__()
        self.folder = get_datafolder(folder)
        self.settings = settings or MinHashSettings()

    def run(self, data: None = None, rank: int = 0, world_size: int = 1) -> None:  # noqa: ARG002
        parts, rest = divmod(world_size, self.settings.num_bands)
        if rest or not parts:
            raise ValueError(f"{world_size} tasks cannot share {self.settings.num_bands} bands; take a multiple")
        band, part = divmod(rank, parts)
        with self.track_time():
            files = self.folder.list_files(f"band-{band:02d}", glob_pattern="*.hashes")
            pairs = duplicate_pairs((_read(self.folder, file).view("<u8") for file in files), part, parts)
            with self.folder.open(f"pairs/{band:02d}-{part:03d}.pairs", "wb") as file:
                file.write(pairs.astype("<i8").tobytes())
        self.stat_update("pairs", value=len(pairs))


class MinHashClusters(PipelineStep):
    """Writes for each document the number of the first one of its cluster (`clusters/00017.first`), in one task."""

    type = "dedup"
    name = "MinHash clusters"

    def __init__(self, folder: DataFolderLike) -> None:
        super().__init__()
        self.folder = get_datafolder(folder)

    def run(self, data: None = None, rank: int = 0, world_size: int = 1) -> None:  # noqa: ARG002
        if world_size != 1:
            raise ValueError(f"clusters are made by one task, not {world_size}")
        with self.track_time():
            tasks = [file.split("/")[-1] for file in self.folder.list_files("band-00", glob_pattern="*.hashes")]
            sizes = [self.folder.size(f"band-00/{task}") // _WORD_BYTES for task in tasks]
            first = np.arange(sum(sizes))
            for file in self.folder.list_files("pairs", glob_pattern="*.pairs"):
                join(first, _read(self.folder, file).reshape(-1, 2))
            settle(first)
            for task, of_task in zip(tasks, np.split(first, np.cumsum(sizes)[:-1]) if tasks else [], strict=True):
                with self.folder.open(f"clusters/{task.replace('.hashes', '.first')}", "wb") as out:
                    out.write(of_task.astype("<i8").tobytes())
        self.stat_update("duplicates", value=int((first != np.arange(len(first))).sum()))


class MinHashFilter(BaseFilter):
    """Keeps the first document of each cluster. Must see the documents that `MinHashSignatures` saw, task by task."""

    name = "MinHash filter"

    def __init__(self, folder: DataFolderLike, exclusion_writer: DiskWriter | None = None) -> None:
        super().__init__(exclusion_writer)
        self.folder = get_datafolder(folder)

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        name = f"clusters/{rank:05d}.first"
        first = _read(self.folder, name)
        earlier = [f for f in self.folder.list_files("clusters", glob_pattern="*.first") if f < name]
        begin = sum(self.folder.size(file) for file in earlier) // _WORD_BYTES
        self._kept = iter(first == np.arange(begin, begin + len(first)))
        yield from super().run(data, rank, world_size)
        if next(self._kept, None) is not None:
            raise InfrastructureError(
                f"{name} is of {len(first)} documents, but fewer came; run from the signatures on"
            )

    def filter(self, doc: Document) -> bool | tuple[bool, str]:  # noqa: ARG002
        kept = next(self._kept, None)
        if kept is None:
            raise InfrastructureError("more documents than MinHash signatures; run from the signatures on")
        return True if kept else (False, "near_duplicate")


def _hash_file(band: int, rank: int) -> str:
    return f"band-{band:02d}/{rank:05d}.hashes"


def _batches(data: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in data:
        batch.append(document)
        characters += len(document.text)
        if characters > _BUFFERED_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _read(folder: DataFolderLike, name: str) -> Ints:
    with folder.open(name, "rb") as file:
        data = file.read()
    if len(data) % _WORD_BYTES:
        raise InfrastructureError(f"{name} is cut off at {len(data)} bytes; run the step that writes it again")
    return np.frombuffer(data, "<i8").astype(np.int64, copy=False)
