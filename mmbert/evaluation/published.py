"""The published results of mmBERT and its peers, for comparison. They were measured on other data than any run here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources


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
