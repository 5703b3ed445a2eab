"""`mmbert merge`: several checkpoints of one model as one."""

from __future__ import annotations

import math

import click

from components.commands.as_json import echo_json, json_option
from mmbert import logs
from mmbert.errors import UserError


@click.command(name="merge")
@click.argument("variants", metavar="VARIANT VARIANT ...", nargs=-1, required=True)
@click.option("--method", type=click.Choice(["linear", "ema", "ties"]), required=True)
@click.option("--out", required=True, help="the .pt or .safetensors file to write, or a new folder")
@click.option("--base", default="", help="the checkpoint that the variants started from; ties needs it")
@click.option("--weights", multiple=True, metavar="W,W,...", help="ties, linear: weight of each variant; else equal")
@click.option(
    "--density",
    type=click.FloatRange(0, 1, min_open=True),
    help="ties: share of each variant's changes that is kept; default 0.5",
)
@click.option(
    "--decay",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="ema: weight of the running average against the next; default 0.5",
)
@json_option()
def merge_command(
    variants: tuple[str, ...],
    method: str,
    out: str,
    base: str,
    weights: tuple[str, ...],
    density: float | None,
    decay: float | None,
    as_json: bool,
) -> None:
    """Merge checkpoints of one model, the VARIANTs, into one.

    Each is a Composer checkpoint (.pt) of the original training code or of this project, a released folder, a
    .safetensors file, or an artifact; a path or an s3:// URI. OUT gets the form of the first, and is there whole or not
    at all. With ema the oldest comes first. docs/merging.md defines the methods and the report.
    """
    from mmbert.release.merge_report import merge_table
    from mmbert.release.merging import MergeSettings, merge_files, report_place

    given = {"density": density, "decay": decay}
    for option, only in (("density", "ties"), ("decay", "ema")):
        if given[option] is not None and method != only:
            raise UserError(f"--{option} belongs to --method {only}, and {method} has none")
    chosen = {name: value for name, value in given.items() if value is not None}
    settings = MergeSettings(method, _numbers(weights), **chosen)  # type: ignore[arg-type] # click checked it
    with logs.results_apart():
        report = merge_files(settings, variants, base, out)
    if as_json:
        echo_json({"out": out, "report": report_place(out), **report})
        return
    if table := merge_table(report):
        click.echo(table)
    click.echo(f"wrote {out}; the report is {report_place(out)}")


def _numbers(values: tuple[str, ...]) -> tuple[float, ...]:
    try:
        numbers = tuple(float(number) for value in values for number in value.split(","))
    except ValueError as error:
        raise UserError(f"--weights: {error}; give numbers, like 1,1,0.5") from error
    if not all(0 < number < math.inf for number in numbers):
        raise UserError(f"--weights {','.join(values)}: each must be above 0")
    return numbers
