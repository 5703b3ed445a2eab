"""The published results of mmBERT and its peers, for comparison. They were measured on other data than any run here."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib import resources

from mmbert.errors import UserError
from mmbert.evaluation.results.scorecard import PUBLISHED, Scorecard
from mmbert.evaluation.scores import Score
from mmbert.evaluation.suites.base import Suite, Task

_BY_TASK = "low-resource-qa"
"""The table with a row a task and model (`TiQuAD, mmBERT small`) and a column a decay variant."""
_RELEASED = {"mmBERT small": "merged", "mmBERT base": "merged"}


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

    A suite says by its `columns` which of its tasks a column is about; columns of no task (averages) are left out.
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


def _scores(suite: Suite, model: str) -> list[Score]:
    if not suite.published:
        return []
    table = published_tables()[suite.published]
    values = {task.name: _value(table, suite, task, model) for task in suite.tasks}
    return [
        Score(suite.name, task.name, task.metrics[0], value / 100, value / 100, value / 100, 0,
              settings={"source": table.source, "table": table.title})
        for task in suite.tasks
        if (value := values[task.name]) is not None
    ]  # fmt: skip


def _value(table: PublishedTable, suite: Suite, task: Task, model: str) -> float | None:
    if table.id == _BY_TASK:
        rows = {row.lower(): row for row in table.rows}
        row = rows.get(f"{task.name}, {model}".lower())
        return table.value(row, _RELEASED[model]) if row else None
    column = suite.columns.get(task.name)
    return table.value(model, column) if column and model in table.rows else None
