"""The order of curation's stages, and what comes out of them."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from datatrove.pipeline.base import PipelineStep

from mmbert import progress
from mmbert.data.curation import clean, contamination, duplicates, finish, signatures
from mmbert.data.curation.clean import Cleaned
from mmbert.data.curation.counts import Samples, Tally, merge_counts, most_common
from mmbert.data.curation.duplicates import Drops, LanguageJob
from mmbert.data.curation.executor import Executor, Jobs
from mmbert.data.curation.parts import Place
from mmbert.data.curation.work import Finished, StoredFile, WorkStore
from mmbert.data.dedup.minhash import MinHashSettings
from mmbert.data.documents import HELD_OUT, SUFFIX, TRAIN
from mmbert.data.readers import UNDETERMINED, Selection
from mmbert.data.sources import make_reader
from mmbert.data.steps.decontamination import ContaminationIndex, EvaluationText
from mmbert.errors import InfrastructureError, UserError
from mmbert.recipe.languages import language_name
from mmbert.recipe.schema import Curation, Source
from mmbert.workers import Workers

_BUNDLE_DOCUMENTS = 200_000
_EVALUATED = {"eld", "udhr"}
"""Kinds of sources whose held-out text a suite evaluates on. Of others, equal and similar documents are dropped."""


@dataclass(frozen=True)
class CuratedFile:
    """A file of documents where it lies, and its path among the results: `train/<source>/<language>/<n>.jsonl.zst`."""

    path: str
    stored: StoredFile


@dataclass(frozen=True)
class Curated:
    """What curation made of a group of languages.

    `counts`: {source: {language: {split: {documents, bytes, characters, lengths, dropped: {reason: documents}}}}}.
    `report`: {source: {language: {identified, script: {label: documents}, samples: {reason or kept: [[id, text]]}}}}.
    `work`: {stage: (pieces done now, pieces found done)}.
    """

    files: tuple[CuratedFile, ...]
    dropped: tuple[CuratedFile, ...]
    counts: dict[str, Any]
    report: dict[str, Any]
    warnings: tuple[str, ...]
    work: dict[str, tuple[int, int]]


def curate(
    sources: Mapping[str, Source],
    curation: Curation,
    reserved_languages: Iterable[str],
    group: int,
    store: WorkStore,
    executor: Executor,
    evaluation_texts: Iterable[EvaluationText] = (),
) -> Curated:
    """Clean documents of one group of languages. The same input gives the same bytes, whoever does the work.

    `evaluation_texts` are what `curation.decontamination` protects, beside what the demo's sources hold out.

    Raises UserError for a source that is missing, empty or unreadable, a group that is not one of `curation.groups` and
    a required language of which nothing is left; InfrastructureError where a store or the hub fails.
    """
    if not 0 <= group < curation.groups:
        raise UserError(f"group {group} does not exist; with {curation.groups} groups it is 0 to {curation.groups - 1}")
    selection = Selection(curation.groups, group, frozenset(reserved_languages))
    # Tokenized sources have no text; the tokenization reads them.
    texts = {name: source for name, source in sources.items() if source.kind != "tokenized"}
    with Workers(executor.workers, "curation") as workers:
        run = _Run(store, executor, workers)
        jobs = clean.plan(texts, curation, selection)
        finished = run.stage(clean.STAGE, jobs, lambda todo: clean.steps(todo, texts, curation, selection, store))
        units = [Cleaned.of(job, done) for job, done in zip(jobs, finished, strict=True)]
        _check_sources(units)
        drops = _duplicates(run, units, texts, curation)
        marks = _marks(run, units, _contamination_index(curation, texts, selection.reserved, evaluation_texts))
        last = [
            finish.FinishJob(unit, unit_drops, unit_marks, curation.keep_dropped)
            for unit, unit_drops, unit_marks in zip(units, drops, marks, strict=True)
        ]
        written = run.stage(finish.STAGE, last, lambda todo: finish.steps(todo, store))
    return _collect(units, written, curation, selection, run.work)


class _Job(Protocol):
    @property
    def fingerprint(self) -> str: ...


J = TypeVar("J", bound=_Job)


def _check_sources(units: Sequence[Cleaned]) -> None:
    """Raise UserError for a source that is there and holds nothing at all, which is hardly meant."""
    read: dict[str, int] = defaultdict(int)
    for unit in units:
        # Where only reading tells the language, the text may belong to other groups.
        read[unit.job.source] += unit.job.unit.languages is None
        read[unit.job.source] += sum(part.documents for part in unit.parts) + len(unit.found["dropped"])
    for source, found in read.items():
        if not found:
            names = [unit.job.unit.name for unit in units if unit.job.source == source]
            raise UserError(f"source {source}: no text in {', '.join(names[:5])}; put some there, or take it out")


@dataclass
class _Run:
    store: WorkStore
    executor: Executor
    workers: Workers
    work: dict[str, tuple[int, int]] = field(default_factory=dict)

    def stage(
        self,
        name: str,
        jobs: Sequence[J],
        steps: Callable[[Jobs], Sequence[PipelineStep]],
        tasks: Callable[[list[J]], Sequence[Any]] = list,
    ) -> list[Finished]:
        """The results of all jobs, in order; those that are not there yet are made by the pipeline of `steps`.

        `tasks`: what each of its tasks is given; by default a job.
        """
        names = [job.fingerprint for job in jobs]
        found = self.store.find(name, names)
        pending = [job for job in {job.fingerprint: job for job in jobs}.values() if job.fingerprint not in found]
        self.work[name] = len(pending), len(found)
        if pending:
            shares = tasks(pending)
            with progress.shown(f"curation, {name}", len(shares), "units") as advance:
                self.executor.run(steps, shares, self.store, self.workers, advance)
            found |= self.store.find(name, [job.fingerprint for job in pending])
        if missing := [name for name in names if name not in found]:
            raise InfrastructureError(
                f"curation, stage {name}: {len(missing)} of {len(pending)} tasks did not finish; run it again"
            )
        return [found[name] for name in names]


def _duplicates(
    run: _Run, units: Sequence[Cleaned], sources: Mapping[str, Source], curation: Curation
) -> list[dict[Place, tuple[Drops, int]]]:
    """What is dropped of each unit: for each place the language's drops, and the place's number in them."""
    near, store = curation.near_duplicates, run.store
    settings = None if near is None else MinHashSettings(**near.model_dump())
    signed = run.stage(
        signatures.STAGE, signatures.plan(units, settings), lambda jobs: signatures.steps(jobs, settings, store)
    )
    languages = duplicates.plan(units, [signatures.signed(done) for done in signed], sources, curation)
    run.stage(
        duplicates.PAIRS_STAGE, duplicates.pairs_jobs(languages), lambda jobs: [duplicates.FindPairs(jobs, store)]
    )
    done = run.stage(duplicates.STAGE, languages, lambda jobs: [duplicates.FindDuplicates(jobs, store)], _bundles)
    found: list[dict[Place, tuple[Drops, int]]] = [{} for _ in units]
    for job, result in zip(languages, done, strict=True):
        drops = Drops.of(result)
        for number, part in enumerate(job.parts):
            if drops.counts[number]:
                found[part.number][part.part.place] = drops, number
    return found


def _contamination_index(
    curation: Curation, sources: Mapping[str, Source], reserved: frozenset[str], texts: Iterable[EvaluationText]
) -> ContaminationIndex | None:
    """None where the recipe asks for no decontamination. It does not depend on the group."""
    settings = curation.decontamination
    if settings is None:
        return None
    held_out = (
        EvaluationText(f"held_out/{name}", text)
        for name, source in sources.items()
        if source.kind in _EVALUATED
        for text in _held_out(name, source, Selection(1, 0, reserved))
    )
    return ContaminationIndex.build(itertools.chain(texts, held_out), settings.words, settings.min_words)


def _held_out(name: str, source: Source, selection: Selection) -> Iterator[str]:
    reader = make_reader(name, source)
    for unit in reader.units(selection):
        yield from (r.text for r in reader.read(unit, selection) if r.metadata["split"] == HELD_OUT)


def _marks(run: _Run, units: Sequence[Cleaned], index: ContaminationIndex | None) -> list[contamination.Marks]:
    if index is None:
        return [{} for _ in units]
    done = run.stage(
        contamination.STAGE,
        contamination.plan(units, index),
        lambda jobs: contamination.steps(jobs, index, run.store),
    )
    return [result.found["marks"] for result in done]


def _bundles(jobs: Sequence[LanguageJob]) -> list[list[LanguageJob]]:
    """Languages that one task does together, because a small one takes less time than a task."""
    bundles: list[list[LanguageJob]] = []
    documents = 0
    for job in jobs:
        if not bundles or documents + job.documents > _BUNDLE_DOCUMENTS:
            bundles.append([])
            documents = 0
        bundles[-1].append(job)
        documents += job.documents
    return bundles


def _collect(
    units: Sequence[Cleaned],
    written: Sequence[Finished],
    curation: Curation,
    selection: Selection,
    work: dict[str, tuple[int, int]],
) -> Curated:
    files, dropped = [], []
    numbers: dict[tuple[str, str, str], int] = defaultdict(int)
    dropped_numbers: dict[str, int] = defaultdict(int)
    counted = []
    samples: dict[str, Samples] = defaultdict(Samples)
    labels: dict[str, Tally] = defaultdict(Tally)
    for unit, last in zip(units, written, strict=True):
        source = unit.job.source
        for split, language, name in last.found["files"]:
            number = numbers[split, source, language]
            numbers[split, source, language] += 1
            files.append(CuratedFile(f"{split}/{source}/{language}/{number:05d}{SUFFIX}", last.files[name]))
        for stored in (unit.dropped, last.files.get(clean.DROPPED)):
            if stored is not None:
                dropped.append(CuratedFile(f"dropped/{source}/{dropped_numbers[source]:05d}{SUFFIX}", stored))
                dropped_numbers[source] += 1
        counted.append((source, last.found["kept"], last.found["dropped"]))
        counted.append((source, {}, unit.found["dropped"]))
        samples[source].merge(unit.found["samples"])
        samples[source].merge(last.found["samples"])
        labels[source].merge(unit.found["labels"])
    counts = merge_counts(counted)
    warnings = _warnings(counts, curation, selection)
    return Curated(tuple(files), tuple(dropped), counts, _report(samples, labels), tuple(warnings), work)


def _report(samples: Mapping[str, Samples], labels: Mapping[str, Tally]) -> dict[str, Any]:
    report: dict[str, Any] = {}
    for source in sorted(samples):
        for language, groups in samples[source].to_json().items():
            report.setdefault(source, {}).setdefault(language, {})["samples"] = groups
        for language, found in labels[source].to_json().items():
            entry = report.setdefault(source, {}).setdefault(language, {})
            entry |= {key: most_common(values) for key, values in found.items()}
    return report


def _warnings(counts: Mapping[str, Any], curation: Curation, selection: Selection) -> list[str]:
    """Languages of which nothing is left to train on. Raises UserError where the recipe requires one of them."""
    left: dict[str, int] = defaultdict(int)
    lost: dict[str, Tally] = defaultdict(Tally)
    for languages in counts.values():
        for language, splits in languages.items():
            for split, found in splits.items():
                left[language] += found["documents"] if split == TRAIN else 0
                for reason, n in found["dropped"].items():
                    lost[language].add(language, "reasons", reason, n)
    missing = [code for code in curation.required_languages if code in selection and code not in left]
    if missing:
        raise UserError(
            f"no source has text in {', '.join(missing)}, which curation.required_languages asks for; "
            "add a source that has, or take it off the list"
        )
    warnings = []
    for language in sorted(language for language, n in left.items() if not n and language != UNDETERMINED):
        reasons = lost[language].counts[language]["reasons"]
        listed = ", ".join(f"{reason} {n:,}" for reason, n in reasons.most_common()) or "all of it is held out"
        message = f"{language} ({language_name(language)}): nothing is left to train on ({listed})"
        if language in curation.required_languages:
            raise UserError(
                f"{message}; curation.required_languages asks for it: change the settings that drop it, or the source"
            )
        warnings.append(message)
    return warnings
