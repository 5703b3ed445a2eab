from __future__ import annotations

import os
import time
from typing import Annotated

from components.contract import RECIPE_HELP, Input, component
from components.runtime import Work


@component(
    produces="shards",
    version=2,
    image="data",
    resources="data",
    reads=("shards", "model.vocab_size", "model.bos_token_id", "model.eos_token_id"),
)
def tokenize(
    work: Work,
    recipe: Annotated[str, RECIPE_HELP, Input("recipe")],
    documents: Annotated[str, "URI of curated documents", Input("documents")],
    tokenizer: Annotated[str, "URI of the tokenizer", Input("tokenizer")],
) -> None:
    """Tokenize curated training documents into MDS shards, one data set a source.

    The output holds `<source>/` (MDS, uint32 tokens in long rows with document boundaries), `<source>/languages.json`
    (where each language's rows lie) and `counts.json` (documents, tokens, bytes, byte-fallback share). A killed run
    goes on at the last shard that was uploaded. It works in as many processes as its profile gives it threads.
    """
    from mmbert.data.tokenization import tokenize_documents

    (folder,) = work.fetch_folders([tokenizer], "tokenizer")
    source = work.open(documents, "documents")
    begin = time.monotonic()
    counts = tokenize_documents(
        source,
        folder,
        work.recipe.shards,
        work.recipe.model,
        work.output,
        work.scratch,
        processes=int(os.environ.get("OMP_NUM_THREADS", "1")),
    )
    work.output.outputs["label"] = source.outputs["label"]
    metrics = counts.metrics()
    rate = metrics["tokens"] / (time.monotonic() - begin)
    work.run.log_metrics(metrics | {"tokens_per_second": rate}, step=0)
