"""`mmbert results`: what the results store holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from components.commands.as_json import echo_json, json_option
from mmbert.errors import UserError

if TYPE_CHECKING:
    from mmbert.evaluation.results.scorecard import Scorecard


@click.command(name="results")
@click.option("--root", default=None, help="where artifacts are kept; default MMBERT_ROOT or ./artifacts")
@click.option("--model", default="", help="only models whose label or digest begins so")
@click.option("--suite", default="", help="only this suite")
@click.option("--languages", is_flag=True, help="the scores of single languages too")
@json_option()
def results_command(root: str | None, model: str, suite: str, languages: bool, as_json: bool) -> None:
    """List every score kept below ROOT/results, the oldest evaluation first."""
    from components.runtime import root_uri
    from mmbert.evaluation.results.store import history
    from mmbert.evaluation.results.text import value_text
    from mmbert.tables import table

    where = root or root_uri()
    kept = history(where)
    if not kept:
        raise UserError(f"{where}/results: no results yet; `mmbert run evaluate` and the workflows keep theirs there")
    cards = [c for c in kept if suite in ("", c.suite) and any(n.startswith(model) for n in (c.model, c.model_digest))]
    if not cards:
        there = dict.fromkeys(f"{c.model} ({c.model_digest[:12] or '-'}): {c.suite}" for c in kept)
        asked = " and ".join(f"{option} {value}" for option, value in (("--model", model), ("--suite", suite)) if value)
        raise UserError(f"{where}/results: nothing for {asked}; there are\n" + "\n".join(there))
    if as_json:
        echo_json([_card(c, languages) for c in cards])
        return
    rows = [
        [c.when[:16], c.model, c.model_digest[:12] or "-", s.name, value_text(s), s.data_revision[:8] or "-"]
        for c in cards
        for s in c.scores
        if languages or s.language is None
    ]
    click.echo(table(["when", "model", "digest", "score", "value (95% interval)", "data"], rows, left=4))


def _card(card: Scorecard, languages: bool) -> dict[str, Any]:
    """As in `scores.json`, without the units, which are thousands of numbers."""
    told = card.to_json()
    told["scores"] = [
        {key: value for key, value in score.items() if key != "units"}
        for score in told["scores"]
        if languages or score["language"] is None
    ]
    return told
