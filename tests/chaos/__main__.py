"""`make chaos`: try every fault, print the table. Exit code 0 where all were survived, 1 where not, 2 for wrong use."""

from __future__ import annotations

import secrets
import shutil
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import click

from tests.chaos.faults import FAULTS
from tests.chaos.matrix import Fault, Setting, table, try_all


@click.command()
@click.option("--quick", is_flag=True, help="a sample of each fault's places, in at most ten minutes")
@click.option("--seed", type=int, default=None, help="what chance decides; printed, so that a trial can be repeated")
@click.option("--only", default="*", show_default=True, help="a pattern of the names of trials")
@click.option("--keep", is_flag=True, help="leave the folder, with what each trial made and its logs")
def main(quick: bool, seed: int | None, only: str, keep: bool) -> None:
    """Break everything, everywhere; what was made must be the same to the byte."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # servers end with it
    drawn = secrets.randbelow(10**6) if seed is None else seed
    click.echo(f"seed {drawn}")
    with ExitStack() as lasting:
        folder = tempfile.mkdtemp(prefix="mmbert-chaos-")
        if keep:
            click.echo(f"everything is kept in {folder}")
        else:
            lasting.callback(shutil.rmtree, folder)

        def setting(fault: Fault) -> Setting:
            own = Path(folder, fault.name)
            own.mkdir()
            return Setting(own, quick, drawn, ExitStack(), lasting)

        try:
            outcomes = try_all(FAULTS, setting, only, click.echo)
        except LookupError as error:
            raise click.UsageError(str(error)) from error
    for line in table(outcomes):
        click.echo(line)
    sys.exit(int(any(outcome.seconds is None for outcome in outcomes)))


if __name__ == "__main__":
    main()
