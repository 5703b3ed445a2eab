"""The tasks of mteb's benchmarks as tasks of suites: a model is fine-tuned on MS MARCO, then mteb measures it.

mteb loads the data, embeds and computes the metric. What is added here: the mirror, seeds, intervals and languages.
The table of tasks beside this module is made by `make_mteb_tasks`, because importing mteb takes seconds.
"""

from __future__ import annotations

import csv
import functools
import statistics
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mmbert.errors import UserError
from mmbert.evaluation.scores import Score, interval, ratio_interval
from mmbert.evaluation.suites import contrastive
from mmbert.evaluation.suites.base import DataSet, ModelFolder, Setup, Suite, Task
from mmbert.evaluation.suites.keeping import kept_json
from mmbert.evaluation.suites.mteb_measure import Cell, measure

TABLE = Path(__file__).with_name("mteb_tasks.csv")
COLUMNS = ("suite", "task", "type", "repo", "revision", "metric", "languages")
BENCHMARKS = {
    "mteb-english": "MTEB(eng, v2)",
    "mteb-multilingual": "MTEB(Multilingual, v2)",
    "coir": "CoIR",
}
SETTINGS: dict[str, Any] = {**contrastive.SETTINGS, "batch_size": 32, "max_seq_length": 8192}
"""Those of the fine-tuning, and: texts a batch, and tokens at which texts are cut (or at the model's own limit)."""

_VERSION = 1


def language_code(mteb: str) -> str:
    """This project's `eng_Latn` of mteb's `eng-Latn`."""
    return mteb.replace("-", "_")


def table() -> list[dict[str, str]]:
    """The rows of `mteb_tasks.csv`."""
    with TABLE.open(encoding="utf-8") as stream:
        # Some tasks have more languages than a field may hold by default.
        csv.field_size_limit(2**20)
        return list(csv.DictReader(stream))


def mteb_suite(name: str, title: str, columns: Mapping[str, str]) -> Suite:
    """The suite of a benchmark; `columns` maps a task's type, or its name, to the published table's column."""
    rows = [row for row in table() if row["suite"] == name]
    found = {row["task"]: columns.get(row["task"], columns.get(row["type"], "")) for row in rows}
    return Suite(
        name,
        f"{title} (mteb's {BENCHMARKS[name]})",
        tuple(_task(name, row) for row in rows),
        published=name,
        columns={task: column for task, column in found.items() if column},
    )


def _task(suite: str, row: Mapping[str, str]) -> Task:
    data = DataSet(row["repo"], revision=row["revision"], card=f"https://huggingface.co/datasets/{row['repo']}")
    return Task(
        name=row["task"],
        version=_VERSION,
        data=(data, contrastive.DATA),
        languages=tuple(row["languages"].split()),
        metrics=(row["metric"],),
        settings=SETTINGS,
        run=functools.partial(_run, suite, row, data),
    )


def _run(suite: str, row: Mapping[str, str], data: DataSet, model: ModelFolder, setup: Setup) -> list[Score]:
    """The score over all of the task's subsets and splits, as mteb averages them, and one for each language.

    A language's score is the mean over the subsets that it is in, pairs of languages among them.
    """
    runs: list[list[Cell]] = []
    rate = 0.0
    for seed in setup.seeds:
        encoder, rate = contrastive.fine_tuned(model, setup, seed)
        cells = kept_json(setup.kept / f"seed-{seed}.json", functools.partial(_measured, row, data, encoder, setup))
        runs.append([Cell(**{**cell, "languages": tuple(cell["languages"])}) for cell in cells])
    settings = {
        **setup.settings,
        "learning_rate": rate,
        "bootstrap_samples": setup.bootstrap_samples,
        "resampled": ", ".join(sorted({cell.unit or "subsets" for cell in runs[0]})),
    }

    def score(language: str | None) -> Score:
        chosen = [[c for c in cells if language is None or language in c.languages] for cells in runs]
        values = [statistics.fmean(cell.score for cell in cells) for cells in chosen]
        low, high, n = _interval(chosen, statistics.fmean(values), setup)
        return Score(
            suite,
            row["task"],
            row["metric"],
            statistics.fmean(values),
            low,
            high,
            n,
            language=language,
            deviation=statistics.stdev(values) if len(values) > 1 else None,
            seeds=setup.seeds,
            data_revision=setup.data.revision(data),
            settings=settings,
        )

    languages = sorted({code for cell in runs[0] for code in cell.languages})
    return [score(None), *(score(code) for code in languages if len(languages) > 1)]


def _interval(runs: list[list[Cell]], value: float, setup: Setup) -> tuple[float, float, int]:
    """Bounds of the mean over cells and seeds, and how many units were resampled, in each cell on its own.

    Where a cell has no units, whole cells are resampled; a single one has no interval, and n is 1.
    """
    samples, first = setup.bootstrap_samples, setup.seeds[0]
    drawn = [cell.resampled(samples, first + i) for cells in runs for i, cell in enumerate(cells)]
    parts = [part for part in drawn if part is not None]
    if len(parts) == len(drawn):
        means = np.mean(parts, axis=0)
        return (*interval(means), sum(np.shape(cell.values)[-1] for cell in runs[0]))
    by_cell = np.mean([[cell.score for cell in cells] for cells in runs], axis=0)
    if len(by_cell) < 2:
        return value, value, 1
    return (*ratio_interval(by_cell, np.ones_like(by_cell), samples, first), len(by_cell))


def _measured(row: Mapping[str, str], data: DataSet, encoder: Path, setup: Setup) -> list[dict[str, Any]]:
    from datasets.exceptions import DatasetGenerationError

    try:
        with setup.data.reading(data):
            cells = measure(
                row["task"],
                BENCHMARKS[row["suite"]],
                encoder,
                data_folder=setup.data.folder(data),
                data_revision=setup.data.revision(data),
                batch_size=setup.settings["batch_size"],
                max_seq_length=setup.settings["max_seq_length"],
                device=setup.device,
                scratch=setup.scratch,
            )
    except (ValueError, KeyError, OSError, DatasetGenerationError) as error:
        raise UserError(
            f"{row['task']}: {data.repo}: {type(error).__name__}: {error}; its files should be those of {data.card} at "
            f"revision {data.revision}"
        ) from error
    return [asdict(cell) for cell in cells]
