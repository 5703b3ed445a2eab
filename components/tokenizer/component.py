from __future__ import annotations

from typing import Annotated

from components.contract import RECIPE_HELP, Input, component
from components.runtime import Work


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
) -> None:
    """Train the run's tokenizer on its curated text, or fetch the one that the recipe names.

    The output is a folder that AutoTokenizer loads. Held-out text is never seen.
    """
    from mmbert.data.tokenizer import load_pretrained, train_bpe
    from mmbert.recipe.schema import PretrainedTokenizer

    out = work.scratch / "tokenizer"
    settings = work.recipe.tokenizer
    if isinstance(settings, PretrainedTokenizer):
        load_pretrained(settings.name, settings.revision, out, work.recipe.model)
    else:
        folders = work.fetch_folders(documents, "documents", "train/")
        train_bpe(folders, work.recipe.model, settings.max_bytes_per_language, out, prefix_space=settings.prefix_space)
    work.output.add_folder("", out)
