"""`mmbert mixture`: plan a mixture from a table of token counts, without a recipe or artifacts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from components.commands.as_json import json_option
from mmbert.errors import UserError

if TYPE_CHECKING:
    from mmbert.data.mixture import Key, MixturePlan
    from mmbert.recipe.schema import Mixture

_TABLE_ROWS = 60


@click.command(name="mixture")
@click.option("--counts", required=True, help="a CSV with the columns language, tokens and, if wanted, source")
@click.option("--temperature", required=True, type=float, help="p ~ size^temperature over languages; above 0, up to 1")
@click.option("--tokens", required=True, help="tokens to draw, like 600B")
@click.option(
    "--source-shares",
    multiple=True,
    metavar="SOURCE=SHARE,...",
    help="share of the tokens of each source; they add up to 1. Without, sources share by size",
)
@click.option("--share", "shares", multiple=True, metavar="LANGUAGE=SHARE,...", help="fix a language's share")
@click.option("--max-epochs", type=float, help="how often a text may repeat at most; without, as often as it comes")
@click.option("--out", required=True, help="the JSON file to write")
@click.option("--plot", default="", help="the plot to write (HTML); default: beside --out, ending in .html")
@json_option("print what is written to OUT")
def mixture_command(
    counts: str,
    temperature: float,
    tokens: str,
    source_shares: tuple[str, ...],
    shares: tuple[str, ...],
    max_epochs: float | None,
    out: str,
    plot: str,
    as_json: bool,
) -> None:
    """Plan how many tokens of each language a phase draws: share, tokens and epochs, and which caps bind.

    Writes OUT (JSON) and a plot, and prints a table. Any label in the table of counts is accepted as a language; the
    arithmetic is that of the component `mixture`. docs/mixture.md explains it.
    """
    from mmbert import storage
    from mmbert.data.mixture import plan_mixture
    from mmbert.data.mixture_counts import read_counts
    from mmbert.data.mixture_report import mixture_plot, mixture_table

    plot = plot or f"{out.removesuffix('.json')}.html"
    if counts in {out, plot}:
        raise UserError(f"--counts {counts} would be overwritten; give --out and --plot other names")
    if plot == out:
        raise UserError(f"--out and --plot are both {out}; give the plot another name")
    sizes = read_counts(counts)
    total = _tokens(tokens)
    mixture = _mixture(temperature, max_epochs, _parse("--source-shares", source_shares), _parse("--share", shares))
    _check_names(counts, sizes, mixture)
    plan = plan_mixture(sizes, mixture, sorted({language for _, language in sizes}), total)
    warnings = [*_left_out(sizes, mixture), *plan.warnings]
    settings = {"counts": counts, "tokens": total, **mixture.model_dump(exclude={"languages"})}
    title = f"{total:,} tokens at temperature {temperature:g}"
    text, page = (
        json.dumps(_result(plan, sizes, settings, warnings), indent=1, ensure_ascii=False),
        mixture_plot(plan, title),
    )
    storage.write_bytes(out, f"{text}\n".encode())
    storage.write_bytes(plot, page.encode())
    click.echo(text if as_json else mixture_table(plan, _TABLE_ROWS))
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"wrote {out} and {plot}", err=as_json)


def _result(
    plan: MixturePlan, sizes: Mapping[tuple[str, str], int], settings: dict[str, Any], warnings: Sequence[str]
) -> dict[str, Any]:
    """`caps` lists the languages that each cap binds; `rows` has every source and language apart."""
    from mmbert.data.mixture import FIXED_SHARE, MAX_EPOCHS, LanguageShare

    nothing = LanguageShare(0.0, 0, 0.0, 0, ())
    languages = {language: nothing for _, language in sizes} | plan.languages()
    sources: dict[str, dict[str, float]] = {}
    for row in plan.rows:
        source = sources.setdefault(row.source, {"share": 0.0, "tokens": 0})
        source["share"] += row.share
        source["tokens"] += row.tokens
    return {
        "languages": {name: asdict(language) for name, language in languages.items()},
        "caps": {
            cap: sorted(n for n, found in languages.items() if cap in found.caps) for cap in (FIXED_SHARE, MAX_EPOCHS)
        },
        "sources": sources,
        "rows": plan.to_json(),
        "settings": settings,
        "warnings": list(warnings),
    }


def _tokens(value: str) -> int:
    from mmbert.recipe.schema import parse_tokens

    try:
        tokens = int(parse_tokens(value))
    except ValueError as error:
        raise UserError(f"--tokens: {error}") from error
    if not tokens:
        raise UserError("--tokens is 0; give the number of tokens to draw, like 600B")
    return tokens


def _parse(option: str, values: Iterable[str]) -> dict[str, float]:
    """`("web=0.8,wiki=0.2",)` -> `{"web": 0.8, "wiki": 0.2}`. A name may hold `=`: the last one counts."""
    found: dict[str, float] = {}
    for item in (part for value in values for part in value.split(",")):
        name, _, number = item.rpartition("=")
        name = name.strip()
        if not name:
            raise UserError(f"{option} '{item}' is not of the form NAME=SHARE")
        if name in found:
            raise UserError(f"{option}: '{name}' stands there twice")
        try:
            found[name] = float(number)
        except ValueError as error:
            raise UserError(f"{option} {name}: '{number}' is not a number; a share lies between 0 and 1") from error
    return found


def _mixture(
    temperature: float, max_epochs: float | None, source_shares: dict[str, float], shares: dict[str, float]
) -> Mixture:
    from pydantic import ValidationError

    from mmbert.recipe.schema import Mixture

    options = {"temperature": "--temperature", "max_epochs": "--max-epochs", "source_shares": "--source-shares",
               "language_shares": "--share"}  # fmt: skip
    try:
        return Mixture(
            languages="all",
            temperature=temperature,
            max_epochs=max_epochs,
            source_shares=source_shares,
            language_shares=shares,
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:
            raise UserError(
                message.replace("source_shares", "--source-shares").replace("language_shares", "--share")
            ) from error
        name, *key = (str(part) for part in first["loc"])
        raise UserError(f"{' '.join([options[name], *key])} = {first['input']}: {message}") from error


def _check_names(counts: str, sizes: dict[Key, int], mixture: Mixture) -> None:
    sources, languages = {source for source, _ in sizes}, {language for _, language in sizes}
    for source in mixture.source_shares:
        if source not in sources:
            raise UserError(
                f"--source-shares {source}: {counts} has no such source (column 'source'); "
                f"there are {', '.join(sorted(sources))}"
            )
    for language in mixture.language_shares:
        if language not in languages:
            raise UserError(f"--share {language}: {counts} has no such language; write it as in the table")


def _left_out(sizes: dict[Key, int], mixture: Mixture) -> list[str]:
    left = sorted({source for source, _ in sizes if not mixture.source_shares.get(source)})
    if not mixture.source_shares or not left:
        return []
    return [f"sources without a share are left out: {', '.join(left)}"]
