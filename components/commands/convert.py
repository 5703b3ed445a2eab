"""`mmbert convert`: a checkpoint as a model that plain transformers load."""

from __future__ import annotations

from dataclasses import asdict

import click

from components.commands.as_json import echo_json, json_option
from mmbert import logs


@click.command(name="convert")
@click.argument("checkpoint")
@click.argument("out_dir")
@click.option(
    "--tokenizer", default="", help="folder of its tokenizer; not needed where the checkpoint carries it itself"
)
@click.option(
    "--recipe", default="", help="the recipe it was trained with, where the checkpoint does not say its shape"
)
@click.option("--max-seq-len", type=click.IntRange(min=2), help="the longest context it was trained for, in tokens")
@json_option()
def convert_command(
    checkpoint: str, out_dir: str, tokenizer: str, recipe: str, max_seq_len: int | None, as_json: bool
) -> None:
    """Convert CHECKPOINT into a Hugging Face folder OUT_DIR that plain transformers load.

    CHECKPOINT is a Composer checkpoint (.pt) of the original training code or of this project, a weights.safetensors
    with its training_state.json, or a checkpoint artifact; a path or an s3:// URI. OUT_DIR must be new or empty; it is
    there only once the converted model was run beside the training model and agreed.
    """
    from components.planning import read_recipe
    from mmbert.release.conversion import convert_to_folder

    with logs.results_apart():
        report = convert_to_folder(checkpoint, out_dir, tokenizer, read_recipe(recipe) if recipe else None, max_seq_len)
    if as_json:
        echo_json({"out": out_dir, **asdict(report)})
        return
    click.echo(
        f"{out_dir}: largest difference from the training model {report.max_logit_difference:.2g} in logits, "
        f"{report.max_hidden_difference:.2g} in hidden states, over {report.tokens:,} tokens in {report.samples} "
        f"samples, the longest of {report.longest:,} (the comparison took {report.seconds:.1f} s)"
    )
