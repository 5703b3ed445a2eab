from __future__ import annotations

from typing import Annotated

from components.contract import RECIPE_HELP, Input, component
from components.runtime import Work


@component(
    produces="model",
    version=2,
    image="train",
    resources="eval",
    reads=("seed", "description", "model", "phases", "language_sets", "release"),
    operational=("release.gate",),
)
def convert(
    work: Work,
    recipe: Annotated[str, RECIPE_HELP, Input("recipe")],
    checkpoint: Annotated[str, "URI of the checkpoint to release", Input("checkpoint")],
    tokenizer: Annotated[str, "URI of its tokenizer", Input("tokenizer")],
    documents: Annotated[list[str], "URIs of curated documents; held-out text for the parity gate", Input("documents")],
) -> None:
    """Convert a checkpoint into a Hugging Face folder that plain transformers load.

    A parity gate runs the exported model beside the training model on held-out text; above the recipe's tolerance
    nothing is released.
    """
    from mmbert.release.conversion import convert_checkpoint

    out = work.scratch / "model"
    held_out = work.fetch_folders(documents, "documents", "heldout/")
    (folder,) = work.fetch_folders([tokenizer], "tokenizer")
    artifact = work.open(checkpoint, "checkpoint")
    report = convert_checkpoint(work.recipe, artifact, folder, held_out, work.cache / "files", out)
    work.output.add_folder("", out)
    work.output.outputs |= {"label": "released model", "parity": report}
    work.run.log_metrics(report, step=0)
