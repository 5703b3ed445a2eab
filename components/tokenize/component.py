from __future__ import annotations

from typing import Annotated

from components.contract import RECIPE_HELP, Input, component
from components.runtime import Work


@component(produces="shards", version=1, image="data", resources="data", reads=("shards", "model.vocab_size"))
def tokenize(
    work: Work,
    recipe: Annotated[str, RECIPE_HELP, Input("recipe")],
    documents: Annotated[str, "URI of curated documents", Input("documents")],
    tokenizer: Annotated[str, "URI of the tokenizer", Input("tokenizer")],
) -> None:
    """Tokenize curated training documents into MDS shards, one data set a source.

    The output holds `<source>/` (MDS, uint32 tokens in long rows with document boundaries), `<source>/languages.json`
    (where each language's rows lie) and `counts.json`.
    """
    from mmbert.data.tokenization import tokenize_documents

    out = work.scratch / "shards"
    (source,) = work.fetch_folders([documents], "documents", "train/")
    (folder,) = work.fetch_folders([tokenizer], "tokenizer")
    counts = tokenize_documents(source, folder, work.recipe.shards, work.recipe.model.vocab_size, out)
    work.output.add_folder("", out)
    work.output.outputs["label"] = work.open(documents).outputs["label"]
    work.run.log_metrics(counts.metrics(), step=0)
