"""What lies in object storage, what travels, and what the data need of CPUs before and while they are trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mmbert.model.config import EncoderConfig
from mmbert.planning.memory import parameter_count
from mmbert.planning.ranges import Range
from mmbert.planning.throughput import Cluster
from mmbert.recipe import Recipe
from mmbert.recipe.schema import TokenizedSource, TrainedTokenizer

_TOKEN_BYTES = 4
# Of Gemma 2's tokens in 60 languages, zstd level 3, 0.39 was measured (docs/scale.md); zstd:1 takes a tenth more room.
_COMPRESSED = {"zstd:1": 0.43, "zstd:3": 0.39, "zstd:7": 0.39, None: 1.0}
# boto3's parts are 8 MiB; an upload has two requests more than parts, a download one (docs/scale.md).
_PART_BYTES = 8 * 2**20
_PUT_MORE, _GET_MORE = 2, 1
# The documents of benchmarks/bench_tokenize.py: 1,700 bytes are 500 of Gemma 2's tokens.
_BYTES_A_TOKEN = 3.4
# benchmarks/bench_cleaning.py: all steps but deduplication, 1.65 MB/s a core (docs/curation.md). The ends are assumed:
# reading, writing and near duplicates besides; settings that leave steps out.
_CURATION_BYTES_A_SECOND = Range(0.8e6, 1.3e6, 2.0e6)
# benchmarks/bench_tokenize.py, text to uploaded shards: 7.9M tokens/s on two cores; down to 5 on a busy machine.
_FAST_TOKENS_A_SECOND = Range(2.5e6, 3.9e6, 4.5e6)
# The tokenizers library there: 1.9M tokens/s on two cores.
_REFERENCE_TOKENS_A_SECOND = Range(0.5e6, 0.9e6, 1.1e6)
# benchmarks/bench_loader.py: 3.8M tokens/s on an overloaded machine, 7.8M in the middle, 10.2M at best.
_LOADER_TOKENS_A_SECOND = Range(3.8e6, 7.8e6, 10.2e6)


@dataclass(frozen=True)
class Checkpoints:
    """Bytes in the store. `resume`: one of them; `resume_kept`: those of a running phase. `permanent`: all that one
    phase after the other leaves for good, of all variants. `artifacts`: what finished phases leave."""

    resume: float
    resume_kept: float
    permanent: float
    artifacts: float


@dataclass(frozen=True)
class Shards:
    """`tokens` are those of the text once. Bytes and requests of writing them, and of every node reading all that a
    run draws."""

    tokens: int
    bytes: float
    objects: int
    puts: int
    read_bytes_a_node: float
    read_bytes: float
    gets: int


@dataclass(frozen=True)
class DataWork:
    """Core-hours of the data stage; None where all sources are tokenized already."""

    text_bytes: float
    curation_core_hours: Range | None
    tokenization_core_hours: Range


def checkpoints(recipe: Recipe, config: EncoderConfig) -> Checkpoints:
    """Weights and two moments in fp32 are 12 bytes a weight; a finished phase also holds them in Composer's form."""
    weights = parameter_count(config)
    training, phases = recipe.training, recipe.phases
    variants = len(phases.decay.variants)
    permanent = 0
    if (every := training.permanent_checkpoint_tokens) is not None:
        permanent = phases.pretrain.tokens // every + phases.extend.tokens // every
        permanent += variants * (phases.decay.tokens // every)
    finished = 24 * weights * (2 + variants) + 4 * weights * (recipe.merge.snapshots - 1) * variants
    return Checkpoints(
        resume=12 * weights,
        resume_kept=12 * weights * training.keep_checkpoints,
        permanent=12 * weights * permanent,
        artifacts=finished,
    )


def shards(recipe: Recipe, cluster: Cluster) -> Shards:
    """Every node reads the shards of all that is drawn with one decay variant (docs/scale.md)."""
    phases, settings = recipe.phases, recipe.shards
    unique = unique_tokens(recipe)
    drawn = phases.pretrain.tokens + phases.extend.tokens + phases.decay.tokens
    ratio = _COMPRESSED[settings.compression]
    raw_shard = settings.shard_size_mb * 2**20
    parts = math.ceil(raw_shard * ratio / _PART_BYTES)
    objects = math.ceil(unique * _TOKEN_BYTES / raw_shard)
    read_objects = math.ceil(drawn * _TOKEN_BYTES / raw_shard)
    a_node = drawn * _TOKEN_BYTES * ratio
    return Shards(
        tokens=unique,
        bytes=unique * _TOKEN_BYTES * ratio,
        objects=objects,
        puts=objects * (parts + _PUT_MORE),
        read_bytes_a_node=a_node,
        read_bytes=a_node * cluster.nodes,
        gets=read_objects * (parts + _GET_MORE) * cluster.nodes,
    )


def unique_tokens(recipe: Recipe) -> int:
    """Of the text, each once: those of the largest phase, which draws every text about once.

    What is published of the data set counts, where the recipe states it.
    """
    settings = (recipe.phases.pretrain, recipe.phases.extend, recipe.phases.decay)
    return max(phase.published_tokens or phase.tokens for phase in settings)


def data_work(recipe: Recipe) -> DataWork:
    tokens = unique_tokens(recipe)
    text = tokens * _BYTES_A_TOKEN
    reference = recipe.shards.engine == "reference" or isinstance(recipe.tokenizer, TrainedTokenizer)
    speed = _REFERENCE_TOKENS_A_SECOND if reference else _FAST_TOKENS_A_SECOND
    tokenized = all(isinstance(source, TokenizedSource) for source in recipe.sources.values())
    return DataWork(
        text_bytes=text,
        curation_core_hours=None if tokenized else _CURATION_BYTES_A_SECOND.through(lambda rate: text / rate / 3600),
        tokenization_core_hours=speed.through(lambda rate: tokens / rate / 3600),
    )


def loader_workers(tokens_a_second: float) -> int:
    """Loader processes that one training process needs, by the slowest figure seen."""
    return max(1, math.ceil(tokens_a_second / _LOADER_TOKENS_A_SECOND.low))
