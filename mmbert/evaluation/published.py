"""The published results of mmBERT and its peers, for comparison. They were measured on other data than any run here."""

from __future__ import annotations

import functools
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources

from mmbert.errors import UserError
from mmbert.evaluation.results.scorecard import PUBLISHED, Scorecard
from mmbert.evaluation.scores import Score
from mmbert.evaluation.suites.base import Suite

_BY_TASK = "low-resource-qa"
"""The table with a row a task and model (`TiQuAD, mmBERT small`) and a column a decay variant."""
_RELEASED = "merged"

COLUMN = "column_mean"
"""The metric of a score that stands for a published column of several tasks."""


@dataclass(frozen=True)
class PublishedTable:
    """One table: `rows` maps a model to its values in the order of `columns`; None where nothing was published."""

    id: str
    title: str
    note: str
    source: str
    columns: tuple[str, ...]
    rows: dict[str, tuple[float | None, ...]]

    def value(self, model: str, column: str) -> float | None:
        return self.rows[model][self.columns.index(column)]


@functools.cache
def published_tables() -> dict[str, PublishedTable]:
    """The tables of `published.json` by id: xtreme, glue, mteb-english, mteb-multilingual, coir, low-resource-qa."""
    data = json.loads(resources.files("mmbert.evaluation").joinpath("published.json").read_text("utf-8"))
    return {
        table["id"]: PublishedTable(
            table["id"],
            table["title"],
            table["note"],
            data["source"],
            tuple(table["columns"]),
            {row["model"]: tuple(row["values"]) for row in table["rows"]},
        )
        for table in data["tables"]
    }


def baseline_names() -> list[str]:
    """`mmbert-base`, `xlm-r-base` and so on: the tables' models in lower case with dashes."""
    return sorted(_models())


def baseline(name: str) -> Scorecard:
    """A model's published values as scores of our suites: shares, with n 0 and an interval of no width.

    A suite says by its `columns` which of its tasks a column is about. Of several it is the mean, and a score of its
    own (`with_columns` makes the same of measured ones); columns of no task (averages) are left out.
    Raises UserError for a name that is none.
    """
    from mmbert.evaluation.suites.registry import get_suite, suite_names

    if name not in _models():
        raise UserError(f"no published baseline '{name}'; there are {', '.join(baseline_names())}")
    model = _models()[name]
    scores = [score for suite in suite_names() for score in _scores(get_suite(suite), model)]
    return Scorecard(name, f"{PUBLISHED}:{name}", PUBLISHED, "", tuple(scores))


def _models() -> dict[str, str]:
    models = [model for table in published_tables().values() if table.id != _BY_TASK for model in table.rows]
    return {model.lower().replace(" ", "-"): model for model in models}


def with_columns(card: Scorecard) -> Scorecard:
    """The scorecard with a score more for each published column that is the mean of several tasks, all measured.

    Such a score has the column as its task. Tasks count as independent for its interval.
    """
    from mmbert.evaluation.suites.registry import get_suite

    first = {(s.suite, s.task): s for s in reversed(card.scores) if s.language is None}
    added = []
    for name in card.suites():
        for column, tasks in _columns(get_suite(name)).items():
            found = [first[name, task] for task in tasks if (name, task) in first]
            if len(tasks) > 1 and len(found) == len(tasks):
                added.append(_mean(name, column, found))
    return replace(card, scores=(*card.scores, *added))


def _columns(suite: Suite) -> dict[str, list[str]]:
    """The tasks of each published column."""
    columns: dict[str, list[str]] = {}
    for task, column in suite.columns.items():
        columns.setdefault(column, []).append(task)
    return columns


def _mean(suite: str, column: str, scores: Sequence[Score]) -> Score:
    value = statistics.fmean(s.value for s in scores)
    half = math.hypot(*((s.high - s.low) / 2 for s in scores)) / len(scores)
    settings = {"tasks": sorted(s.task for s in scores)}
    revision = ",".join(sorted({s.data_revision for s in scores}))
    n = sum(s.n for s in scores)
    return Score(suite, column, COLUMN, value, value - half, value + half, n, data_revision=revision, settings=settings)


def _scores(suite: Suite, model: str) -> list[Score]:
    if not suite.published:
        return []
    table = published_tables()[suite.published]
    source = {"source": table.source, "table": table.title}
    found: dict[tuple[str, str], float | None] = {}
    if table.id == _BY_TASK:
        rows = {row.lower(): row for row in table.rows}
        for task in suite.tasks:
            row = rows.get(f"{task.name}, {model}".lower())
            found[task.name, task.metrics[0]] = table.value(row, _RELEASED) if row else None
    elif model in table.rows:
        for column, tasks in _columns(suite).items():
            key = (tasks[0], suite.task(tasks[0]).metrics[0]) if len(tasks) == 1 else (column, COLUMN)
            found[key] = table.value(model, column)
    return [
        Score(suite.name, task, metric, value / 100, value / 100, value / 100, 0, settings=source)
        for (task, metric), value in found.items()
        if value is not None
    ]
