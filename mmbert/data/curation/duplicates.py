"""The third stage: which documents of a language are duplicates, or not among its best, over all its sources and units.

Held-out documents come first, then the sources in the recipe's order: of what is equal or nearly equal the first is
kept. A training document that equals or resembles a held-out one is dropped in any case.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datatrove.pipeline.base import PipelineStep
from numpy.typing import NDArray

from mmbert.data.curation.clean import Cleaned
from mmbert.data.curation.executor import Jobs
from mmbert.data.curation.parts import Part, Place, read_part
from mmbert.data.curation.signatures import FIRST_BAND, ID_ROW, SCORE_ROW, TEXT_ROW, SignedPart
from mmbert.data.curation.work import Finished, StoredFile, WorkStore, fingerprint, read_checked
from mmbert.data.dedup.clusters import duplicate_pairs, join, settle
from mmbert.data.documents import HELD_OUT
from mmbert.data.steps.classifier import keep_share
from mmbert.errors import UserError
from mmbert.places import scratch_folder
from mmbert.recipe.schema import Curation, Source

STAGE = "duplicates"
FILE = "drops.i64"
PAIRS_STAGE = "pairs"
PAIRS_FILE = "pairs.i64"
REASONS = ("duplicate_id", "equals_held_out", "duplicate", "near_held_out", "near_duplicate", "low_quality")
_VERSION = 1
_PAIRS_DOCUMENTS = 5_000_000
_RANGE_DOCUMENTS = 50_000_000

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class LanguagePart:
    """One part of one unit. `number` is the unit's, `on_error` its source's."""

    number: int
    name: str
    source: str
    on_error: str
    file: StoredFile
    part: Part
    signed: SignedPart

    @property
    def is_held_out(self) -> bool:
        return self.part.split == HELD_OUT


@dataclass(frozen=True)
class LanguageJob:
    """All that duplicates of one language are looked for in, in the order in which documents come."""

    language: str
    parts: tuple[LanguagePart, ...]
    bands: int
    exact: bool
    keep_share: float
    fingerprint: str

    @property
    def documents(self) -> int:
        return sum(part.signed.documents for part in self.parts)


@dataclass(frozen=True)
class PairsJob:
    """One row of the signatures of a language whose documents are many: those with a hash in one part of its range."""

    language: LanguageJob
    row: int
    share: int
    shares: int

    @property
    def fingerprint(self) -> str:
        return fingerprint(PAIRS_STAGE, self.language.fingerprint, self.row, self.share, self.shares)


def plan(
    units: Sequence[Cleaned],
    signed: Sequence[Mapping[Place, SignedPart]],
    sources: Mapping[str, Source],
    curation: Curation,
) -> list[LanguageJob]:
    """One job a language that the units hold, sorted."""
    by_language: dict[str, list[LanguagePart]] = {}
    for number, (unit, parts) in enumerate(zip(units, signed, strict=True)):
        source, name = unit.job.source, unit.job.unit.name
        on_error = getattr(sources[source], "on_error", "stop")
        for part in unit.parts:
            listed = LanguagePart(number, name, source, on_error, unit.documents, part, parts[part.place])
            by_language.setdefault(part.language, []).append(listed)
    bands = 0 if curation.near_duplicates is None else curation.near_duplicates.num_bands
    jobs = []
    for language, found in sorted(by_language.items()):
        ordered = tuple(sorted(found, key=lambda part: (not part.is_held_out, part.number)))
        identity = [[part.is_held_out, part.source, part.on_error, part.signed.digest] for part in ordered]
        exact, share = curation.exact_deduplication, _keep_share(curation, language)
        name = fingerprint(STAGE, _VERSION, language, exact, bands, share, identity)
        jobs.append(LanguageJob(language, ordered, bands, exact, share, name))
    return jobs


def _keep_share(curation: Curation, language: str) -> float:
    settings = curation.quality_classifier
    share = None if settings is None else keep_share(settings, language)
    return 1.0 if share is None else share


def pairs_jobs(jobs: Sequence[LanguageJob]) -> list[PairsJob]:
    """The work on large languages that is done beforehand, in many tasks."""
    found = []
    for job in jobs:
        if job.documents >= _PAIRS_DOCUMENTS:
            shares = -(-job.documents // _RANGE_DOCUMENTS)
            rows = [TEXT_ROW, ID_ROW, *range(FIRST_BAND, FIRST_BAND + job.bands)]
            found += [PairsJob(job, row, share, shares) for row in rows for share in range(shares)]
    return found


@dataclass(frozen=True)
class Drops:
    """Documents to drop: for each part of `LanguageJob.parts`, positions and numbers in `REASONS`."""

    file: StoredFile | None
    counts: tuple[int, ...]
    digests: tuple[str, ...]

    @classmethod
    def of(cls, finished: Finished) -> Drops:
        found = finished.found
        return cls(finished.files.get(FILE), tuple(found["counts"]), tuple(found["digests"]))

    def read(self, part: int) -> tuple[Indices, Indices]:
        """Positions, ascending, and reasons of one part."""
        before, n = sum(self.counts[:part]), self.counts[part]
        if self.file is None or not n:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        data = np.frombuffer(read_checked(self.file, 16 * before, 16 * n, self.digests[part]), "<i8")
        return data[:n], data[n:]


class FindPairs(PipelineStep):
    """Does one `PairsJob` a task."""

    type = "dedup"
    name = "pairs"

    def __init__(self, jobs: Jobs, store: WorkStore) -> None:
        super().__init__()
        self.jobs, self.store = jobs, store

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:  # noqa: ARG002
        job: PairsJob = self.jobs[rank]
        pairs = _pairs_of_row(job.language, job.row, job.share, job.shares)
        with scratch_folder() as folder:
            path = folder / PAIRS_FILE
            path.write_bytes(pairs.astype("<i8").tobytes())
            self.store.commit(PAIRS_STAGE, job.fingerprint, {PAIRS_FILE: path}, {"pairs": len(pairs)})


class FindDuplicates(PipelineStep):
    """Does several `LanguageJob`s a task: a language alone may take less time than a task costs."""

    type = "dedup"
    name = "duplicates"

    def __init__(self, bundles: Jobs, store: WorkStore) -> None:
        super().__init__()
        self.bundles, self.store = bundles, store

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:  # noqa: ARG002
        jobs: list[LanguageJob] = self.bundles[rank]
        for job in jobs:
            reasons = self._reasons(job)
            borders = np.cumsum([0, *(part.signed.documents for part in job.parts)])
            blocks, counts, digests = [], [], []
            for begin, end in itertools.pairwise(borders.tolist()):
                positions = np.flatnonzero(reasons[begin:end] >= 0)
                block = np.stack([positions, reasons[begin:end][positions]]).astype("<i8").tobytes()
                blocks.append(block)
                counts.append(len(positions))
                digests.append(hashlib.sha256(block).hexdigest())
            files = {}
            with scratch_folder() as folder:
                if sum(counts):
                    files[FILE] = folder / FILE
                    files[FILE].write_bytes(b"".join(blocks))
                self.store.commit(STAGE, job.fingerprint, files, {"counts": counts, "digests": digests})

    def _reasons(self, job: LanguageJob) -> Indices:
        """int64 [documents]: number of the reason to drop it, -1 where it stays."""
        reasons = np.full(job.documents, -1, np.int64)
        held_out = np.repeat(
            [part.is_held_out for part in job.parts], [part.signed.documents for part in job.parts]
        ).astype(bool)
        alive = np.ones(job.documents, bool)
        first = self._firsts(job, [ID_ROW], alive)
        twice = np.flatnonzero(first != np.arange(job.documents))
        if len(twice):
            self._check_ids(job, twice, first)
            reasons[twice] = REASONS.index("duplicate_id")
            alive[twice] = False
        stages = [("equals_held_out", "duplicate", [TEXT_ROW], job.exact)]
        if job.bands:
            bands = list(range(FIRST_BAND, FIRST_BAND + job.bands))
            stages.append(("near_held_out", "near_duplicate", bands, True))
        for leaked, repeated, rows, drop_repeated in stages:
            first = self._firsts(job, rows, alive)
            later = (first != np.arange(job.documents)) & (reasons < 0)
            leak = later & held_out[first] & ~held_out
            reasons[leak] = REASONS.index(leaked)
            if drop_repeated:
                reasons[later & ~leak] = REASONS.index(repeated)
        if job.keep_share < 1:
            left = np.flatnonzero((reasons < 0) & ~held_out)
            scores = np.concatenate([part.signed.row(SCORE_ROW) for part in job.parts]).view("<f8")[left]
            reasons[left[scores < _least_kept(scores, job.keep_share)]] = REASONS.index("low_quality")
        return reasons

    def _firsts(self, job: LanguageJob, rows: Sequence[int], alive: NDArray[np.bool_]) -> Indices:
        """int64 [documents]: the first living document that each one is joined with by equal hashes in some rows."""
        roots = np.arange(job.documents)
        for row in rows:
            shares = [pairs.fingerprint for pairs in pairs_jobs([job]) if pairs.row == row]
            if not shares:
                join(roots, _pairs_of_row(job, row, 0, 1))
            for found in self.store.find(PAIRS_STAGE, shares).values():
                with self.store.fetched(found.files[PAIRS_FILE]) as path:
                    join(roots, np.fromfile(path, "<i8").reshape(-1, 2))
        settle(roots)
        last_to_first = np.flatnonzero(alive)[::-1]
        firsts = np.arange(job.documents)
        firsts[roots[last_to_first]] = last_to_first
        return np.where(alive, firsts[roots], np.arange(job.documents))

    def _check_ids(self, job: LanguageJob, twice: Indices, first: Indices) -> None:
        """Raise UserError for the first repeated id of a source that stops at errors."""
        borders = np.cumsum([0, *(part.signed.documents for part in job.parts)])
        for index in twice.tolist():
            number = int(np.searchsorted(borders, index, side="right")) - 1
            part = job.parts[number]
            if part.on_error != "stop":
                continue
            before = int(first[index])
            other_number = int(np.searchsorted(borders, before, side="right")) - 1
            other = job.parts[other_number]
            ident = self._id(part, index - int(borders[number]))
            if ident != self._id(other, before - int(borders[other_number])):
                continue  # two ids with one hash
            raise UserError(
                f"source {part.source}: {part.name}: the id '{ident}' stands twice, also in {other.name}; "
                f"make ids unique, name another id_field, or keep the first of each with "
                f"sources.{part.source}.on_error: drop"
            )

    def _id(self, part: LanguagePart, position: int) -> str:
        with self.store.fetched(part.file) as path:
            return next(itertools.islice(read_part(path, part.part), position, None)).id


def _least_kept(scores: NDArray[np.float64], share: float) -> float:
    """The highest score that at least this share of the documents reach."""
    return float(np.sort(scores)[::-1][: math.ceil(share * len(scores))].min(initial=math.inf))


def _pairs_of_row(job: LanguageJob, row: int, share: int, shares: int) -> Indices:
    """int64 [pairs, 2]: documents with an equal hash in a row of the signatures, of one share of the hashes."""
    return duplicate_pairs((part.signed.row(row) for part in job.parts), share, shares)
