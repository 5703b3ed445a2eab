from __future__ import annotations

import functools
import time
from typing import Annotated

from components import profiles
from components.contract import RECIPE_HELP, Input, component
from components.runtime import Work

TOKENIZED_FILE = "tokenized.json"


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
    from mmbert.data.sources.tokenized import TokenizedUnits
    from mmbert.data.tokenization import tokenize_documents, write_token_shards

    (folder,) = work.fetch_folders([tokenizer], "tokenizer")
    source = work.open(documents, "documents")
    model, processes = work.recipe.model, profiles.own_threads()
    begin = time.monotonic()
    counts = tokenize_documents(
        source,
        folder,
        work.recipe.shards,
        model,
        work.output,
        work.scratch,
        processes,
    )
    if TOKENIZED_FILE in source.paths():
        tokenized = TokenizedUnits.from_json(source.read_json(TOKENIZED_FILE))
        read = functools.partial(tokenized.read, model.vocab_size)
        counts = write_token_shards(
            tokenized.parts(), read, folder, work.recipe.shards, model, work.output, processes, counts
        )
    work.output.outputs["label"] = source.outputs["label"]
    metrics = counts.metrics()
    rate = metrics["tokens"] / (time.monotonic() - begin)
    work.run.log_metrics(metrics | {"tokens_per_second": rate}, step=0)
