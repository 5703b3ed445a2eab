from __future__ import annotations

from pathlib import Path
from typing import Annotated

from components.contract import RECIPE_HELP, Input, component
from components.runtime import Work
from mmbert.errors import UserError


@component(
    produces="tokenizer",
    version=1,
    image="data",
    resources="data",
    reads=("tokenizer", "model.vocab_size", "model.pad_token_id", "model.eos_token_id", "model.bos_token_id",
           "model.unk_token_id", "model.mask_token_id"),
)  # fmt: skip
def tokenizer(
    work: Work,
    recipe: Annotated[str, RECIPE_HELP, Input("recipe")],
    documents: Annotated[list[str], "URIs of all curated documents", Input("documents")],
    checkpoint: Annotated[str, "URI of the imported checkpoint whose tokenizer is taken, where the recipe says so",
                          Input("checkpoint")] = "",
) -> None:  # fmt: skip
    """Train the run's tokenizer on its curated text, or fetch the one that the recipe or the checkpoint has.

    The output is a folder that AutoTokenizer loads. Held-out text is never seen.
    """
    from mmbert.data.tokenizer import load_pretrained, train_bpe
    from mmbert.recipe.schema import CheckpointTokenizer, PretrainedTokenizer

    out = work.scratch / "tokenizer"
    settings = work.recipe.tokenizer
    if isinstance(settings, CheckpointTokenizer):
        load_pretrained(str(_of_checkpoint(work, checkpoint)), "", out, work.recipe.model)
    elif isinstance(settings, PretrainedTokenizer):
        load_pretrained(settings.name, settings.revision, out, work.recipe.model)
    else:
        folders = work.fetch_folders(documents, "documents", "train/")
        train_bpe(folders, work.recipe.model, settings.max_bytes_per_language, out, prefix_space=settings.prefix_space)
    work.output.add_folder("", out)


def _of_checkpoint(work: Work, uri: str) -> Path:
    if not uri:
        raise UserError("the recipe's tokenizer is the checkpoint's, and no --checkpoint was given")
    artifact, name = work.open(uri, "checkpoint"), "tokenizer.json"
    if name not in artifact.paths():
        raise UserError(
            f"{uri}: this checkpoint carries no tokenizer; name its own with "
            "tokenizer={kind: pretrained, name: FOLDER or a name of the hub}"
        )
    return artifact.fetch(name, work.cache / "files")
