"""A page from its template, and the small things that pages are made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from mmbert.pages.plots import Figure


@dataclass(frozen=True)
class Card:
    """A headline figure, with a line of context below it."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Cell:
    """A table's cell. `sort` is what a sortable table sorts by; `mark` is a CSS class."""

    text: str
    sort: float | str = ""
    mark: str = ""


def render(
    package: str, template: str, *, title: str, eyebrow: str, lead: str, facts: Mapping[str, str],
    plots: Mapping[str, Figure], links: Mapping[str, str] | None = None, **values: Any,
) -> str:  # fmt: skip
    """The page as HTML, where it has plots with plotly.js inside (about 5 MB): it works offline, from a file and inside
    an iframe.

    `template` is a file of `package` that extends `base.html`. All text is escaped. `links` stand in the head, by what
    they lead to. Each plot's element gets `data-drawn="true"` once it has been drawn, and the document
    `data-ready="true"` once its scripts have run.
    """
    from jinja2 import DictLoader, Environment, StrictUndefined
    from plotly.offline import get_plotlyjs

    sources = {name: _read("mmbert.pages", name) for name in ("base.html", "macros.html", "graph.html")}
    environment = Environment(
        loader=DictLoader({**sources, template: _read(package, template)}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(
        title=title,
        eyebrow=eyebrow,
        lead=lead,
        facts=facts,
        links=links or {},
        plots=plots,
        plots_json=script_json(plots),
        plotly=get_plotlyjs() if plots else "",
        **values,
    )


def _read(package: str, name: str) -> str:
    return resources.files(package).joinpath(name).read_text("utf-8")


def script_json(value: Any) -> str:
    """JSON that may stand inside a script element: text in it cannot end the element."""
    return plain_json(value).replace("<", "\\u003c")


def plain_json(value: Any) -> str:
    """JSON without spaces."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def short_number(value: float) -> str:
    """`4.8M`, `2.3T`, `950`."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f}".removesuffix(".0") + unit
    return f"{value:.0f}"
