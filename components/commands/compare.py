"""`mmbert compare`: two models' scores, with what chance explains."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from components.commands.as_json import echo_json, json_option
from mmbert.errors import UserError

if TYPE_CHECKING:
    from mmbert.evaluation.results.scorecard import Scorecard


@click.command(name="compare")
@click.argument("before", metavar="A")
@click.argument("after", metavar="B")
@click.option("--baseline", default="", help="a published baseline beside them, like mmbert-base")
@click.option("--out", default="", metavar="FILE.html", help="the whole comparison as one page with plots")
@click.option(
    "--significance", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.05, show_default=True,
    help="the p-value below which a change is marked",
)  # fmt: skip
@json_option()
def compare_command(before: str, after: str, baseline: str, out: str, significance: float, as_json: bool) -> None:
    """Show what changed from model A to model B, by suite and by language, and what of it is significant.

    A and B are scores.json or .parquet files, folders or artifacts with scores, registered models (NAME@ALIAS or
    NAME/VERSION), or published baselines (mmbert-base, xlm-r-base, ...). docs/results.md explains the methods.
    """
    from mmbert import storage
    from mmbert.evaluation import published
    from mmbert.evaluation.results.compare import compare
    from mmbert.evaluation.results.scorecard import PUBLISHED
    from mmbert.evaluation.results.sides import scorecard_of
    from mmbert.evaluation.results.text import comparison_json, comparison_text
    from mmbert.tracking import connect_registry

    if out and not out.endswith(".html"):
        raise UserError(f"--out {out}: the page is an HTML file; give a name that ends in .html")
    if out in {before, after}:
        raise UserError(f"--out {out} would overwrite what is compared; give another name")
    beside = published.baseline(baseline) if baseline else None
    sides = [scorecard_of(named, connect_registry) for named in (before, after)]
    if sides[0].model == sides[1].model:
        sides = [replace(side, model=named) for side, named in zip(sides, (before, after), strict=True)]
    if beside or any(side.kind == PUBLISHED for side in sides):
        sides = [published.with_columns(side) for side in sides]
    found = compare(*sides)
    if not found.differences:
        raise UserError(
            f"{before} and {after} have no score in common: {_suites(found.before)}; {_suites(found.after)}"
        )
    if as_json:
        echo_json(comparison_json(found, beside, significance))
    else:
        click.echo(comparison_text(found, beside, significance))
    if out:
        from mmbert.evaluation.results.page import comparison_page

        storage.write_bytes(out, comparison_page(found, beside, significance).encode())
        click.echo(f"wrote {out}", err=True)


def _suites(card: Scorecard) -> str:
    return f"{card.model} has {', '.join(card.suites()) or 'none'}"
