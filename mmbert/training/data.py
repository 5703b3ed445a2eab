"""A phase's loader settings and streams, from the recipe, the mixture and the shards."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from mmbert.artifacts import Artifact
from mmbert.errors import UserError
from mmbert.loader.batch import BatchShape, microbatch_shape
from mmbert.loader.loader import LoaderSettings, MixtureStream
from mmbert.loader.masking import MaskingRule
from mmbert.recipe import Recipe
from mmbert.recipe.schema import Model, PhaseTraining
from mmbert.training.schedules import Batch as BatchSizes
from mmbert.training.schedules import global_batch_size_at

INDEX = "index.json"
LANGUAGE_INDEX = "languages.json"


def mixture_streams(rows: Sequence[Mapping[str, Any]], shards: Sequence[Artifact]) -> list[MixtureStream]:
    """The streams of a mixture, in its order. Raises UserError where no shards hold one of them."""
    places: dict[tuple[str, str], tuple[str, tuple[str, str]]] = {}
    for artifact in shards:
        for path in artifact.paths():
            source, _, name = path.rpartition("/")
            if name == LANGUAGE_INDEX:
                digests = artifact.file(f"{source}/{INDEX}").sha256, artifact.file(path).sha256
                for language in artifact.read_json(path):
                    places[source, language] = artifact.remote_folder(source), digests
    streams = []
    for row in rows:
        place = places.get((row["source"], row["language"]))
        if place is None:
            raise UserError(
                f"the mixture draws from {row['source']}/{row['language']}, and no shards hold it; "
                "were some shards left out?"
            )
        uri, digests = place
        streams.append(MixtureStream(row["source"], row["language"], uri, row["share"], digests))
    return streams


def phase_shape(model: Model, settings: PhaseTraining) -> BatchShape:
    """The constant shape of a phase's microbatches."""
    return microbatch_shape(
        settings.batch.microbatch_size, settings.max_seq_len, settings.mask_probability, model.pad_token_id
    )


def special_token_ids(model: Model) -> tuple[int, ...]:
    return (model.pad_token_id, model.eos_token_id, model.bos_token_id, model.unk_token_id, model.mask_token_id)


def loader_settings(recipe: Recipe, phase: str, cache: Path, begin_rows: int = 0) -> LoaderSettings:
    """`begin_rows`: rows that the phase has had before the loader's first, where it goes on in the middle."""
    settings = getattr(recipe.phases, phase)
    model, lanes = recipe.model, recipe.training.lanes
    return LoaderSettings(
        seed=recipe.seed,
        lanes=lanes,
        max_seq_len=settings.max_seq_len,
        batch_rows=functools.partial(_batch_rows, settings.batch, lanes, begin_rows * settings.max_seq_len),
        masking=MaskingRule(settings.mask_probability, model.vocab_size, model.mask_token_id, special_token_ids(model)),
        cache=cache,
        buffer_tokens=recipe.training.shuffle_tokens,
        cache_limit_bytes=int(recipe.training.cache_gb * 10**9),
    )


def check_tokenizer(folder: Path, model: Model) -> None:
    """Raises UserError where the tokenizer in `folder` has ids that the model has no embedding for."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values())
    if largest >= model.vocab_size:
        raise UserError(
            f"the tokenizer's largest id is {largest}, but model.vocab_size is {model.vocab_size}; give training the "
            f"tokenizer that the model was made for, or set model.vocab_size to {largest + 1} or more"
        )


def _batch_rows(batch: BatchSizes, lanes: int, begin: int, tokens: int) -> int:
    return global_batch_size_at(begin + tokens, batch, lanes)
