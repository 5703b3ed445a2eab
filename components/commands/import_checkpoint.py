"""`mmbert import`: a model of elsewhere as a checkpoint that training starts from."""

from __future__ import annotations

from typing import Literal

import click

from mmbert import logs


@click.command(name="import")
@click.argument("source")
@click.argument("out")
@click.option(
    "--phase", type=click.Choice(["pretrain", "extend", "decay"]), default="pretrain", show_default=True,
    help="the phase that it was saved in",
)  # fmt: skip
@click.option(
    "--then", type=click.Choice(["next", "continue"]), default="next", show_default=True,
    help="next: that phase counts as done; continue: training goes on within it, at the source's token count",
)  # fmt: skip
@click.option("--recipe", default="", help="hold it against this recipe: model, rotary bases of the phase, its tokens")
@click.option(
    "--max-seq-len", type=click.IntRange(min=2), help="the context of that phase, in tokens; the recipe's, where given"
)
def import_command(
    source: str, out: str, phase: str, then: Literal["next", "continue"], recipe: str, max_seq_len: int | None
) -> None:
    """Make of SOURCE a checkpoint OUT, from which `mmbert run train --checkpoint OUT` goes on.

    SOURCE is a folder with config.json and model.safetensors of a ModernBERT (or its name on the Hugging Face hub), a
    Composer checkpoint (.pt) of the original training code or of this project, or a checkpoint artifact; a path or an
    s3:// URI. OUT must be new or empty; it is there whole or not at all.
    """
    from components.planning import read_recipe
    from mmbert.release.importing import import_to_folder

    with logs.results_apart():
        state = import_to_folder(source, out, read_recipe(recipe) if recipe else None, phase, then, max_seq_len)
    where = "done" if state["finished"] else f"to be gone on with at {state['tokens']:,} tokens"
    click.echo(f"{out}: a checkpoint of phase '{phase}', {where}, context {state['max_seq_len']:,} tokens")
