"""`mmbert plan`: time, memory, storage and cost of a recipe on given hardware."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from components.commands.as_json import echo_json, json_option
from mmbert.errors import UserError

if TYPE_CHECKING:
    from mmbert.planning.utilization import Measured


_MOST = 1_000_000
"""GPUs in all."""


@click.command(name="plan")
@click.option(
    "--preset", "--recipe", "source", default="base", show_default=True, help="a preset's name or a recipe file"
)
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="override a key, like phases.decay.tokens=1M"
)
@click.option("--gpu", required=True, help="like h100, h200, a100; cpu for cores")
@click.option(
    "--gpus", type=int, default=8, show_default=True,
    help="in all, on nodes of eight; with --nodes, of each node. With --gpu cpu, cores",
)  # fmt: skip
@click.option("--nodes", type=int, help="nodes of --gpus GPUs each")
@click.option(
    "--mfu", type=float, help="utilisation to plan with, a share of the peak like 0.3; else a range from runs"
)
@click.option("--calibrate", is_flag=True, help="learn utilisation from the training runs in MLflow")
@click.option("--price", type=float, help="US dollars for an hour of one GPU (or core); without, a known one or none")
@json_option("print JSON; docs/planning.md describes its keys")
def plan_command(
    source: str,
    overrides: tuple[str, ...],
    gpu: str,
    gpus: int,
    nodes: int | None,
    mfu: float | None,
    calibrate: bool,
    price: float | None,
    as_json: bool,
) -> None:
    """Plan a recipe on given hardware: days by phase, memory and microbatch, storage, CPU hours for the data, cost.

    Figures are ranges: what is published of such trainings, or with --calibrate what your own runs showed. Days are for
    one decay variant. docs/planning.md says how each figure is made and what was checked.
    """
    from mmbert.planning.gpus import get_device
    from mmbert.planning.plan import plan_run
    from mmbert.planning.text import as_text, as_values
    from mmbert.planning.throughput import GPUS_A_NODE, Cluster
    from mmbert.recipe import load_recipe

    _check("--gpus", gpus, 1, _MOST)
    _check("--nodes", nodes, 1, 100_000)
    _check("--mfu", mfu, 0.001, 1)
    _check("--price", price, 0.001, 10_000)
    if mfu is not None and calibrate:
        raise UserError("--mfu and --calibrate both say the utilisation; give one")
    device = get_device(gpu)
    if nodes is None:
        nodes = 1 if device.is_cpu else math.ceil(gpus / GPUS_A_NODE)
        total = gpus
    else:
        total = gpus * nodes
        _check("--gpus x --nodes", total, 1, _MOST)
    recipe = load_recipe(source, overrides)
    runs = _measured_runs(device.name) if calibrate else []
    plan = plan_run(recipe, Cluster(device, total, nodes), mfu=mfu, price=price, runs=runs)
    if as_json:
        echo_json(as_values(plan))
    else:
        click.echo(as_text(plan))


def _check(option: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:
        hint = "; 30% is 0.3" if option == "--mfu" else ""
        raise UserError(f"{option} {value:,.15g}: give a number from {low:,.15g} to {high:,.15g}{hint}")


def _measured_runs(device: str) -> Sequence[Measured]:
    """Of this kind of device; what was found goes to standard error."""
    from mmbert.planning.calibration import measured
    from mmbert.tracking.finished import finished_runs

    finished = finished_runs("train")
    runs = [run for run in measured(finished) if run.device == device]
    click.echo(f"calibration: {len(runs)} of {len(finished)} finished training runs were on {device}", err=True)
    if not runs:
        raise UserError(
            f"--calibrate: no finished training run on {device} in MLflow says how fast it was; train for some minutes "
            "there first, or leave --calibrate out"
        )
    ratios = [r.tokens_per_second / r.planned_tokens_per_second for r in runs if r.planned_tokens_per_second]
    if ratios:
        click.echo(
            f"plan against actual: {statistics.median(ratios):.2f} of the tokens/s that was planned for each when it "
            f"ran ({min(ratios):.2f} to {max(ratios):.2f}, {len(ratios)} runs)",
            err=True,
        )
    return runs
