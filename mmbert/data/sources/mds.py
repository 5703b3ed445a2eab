"""MDS shards in a data set of the hub: fetched one at a time, read by the streaming library."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from mmbert import hub, storage
from mmbert.data.sources.reader import UnreadableError
from mmbert.data.sources.rows import Row
from mmbert.places import scratch_folder
from mmbert.recipe.schema import TokenSpans


def read_samples(dataset: str, commit: str, index: str) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """(shard's path, number of the sample in it from 1, sample) of the shards that an index.json lists.

    One shard is on disk at a time. Raises UnreadableError for an index or a shard that is broken or of an unsafe type.
    """
    from streaming.base.format import reader_from_json

    folder = index.rpartition("/")[0]
    try:
        with hub.open_file(dataset, commit, index) as stream:
            shards = json.loads(stream.read())["shards"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UnreadableError("not_mds", f"not an index of MDS shards: {error}") from error
    for shard in shards:
        with scratch_folder() as local:
            path = f"{folder}/{_fetch(dataset, commit, folder, shard, local)}"
            try:
                reader = reader_from_json(str(local), "", shard)
                reader.validate(False)
                for number in range(reader.samples):
                    yield path, number + 1, reader.get_item(number)
            except (ValueError, IndexError, OSError) as error:
                raise UnreadableError("not_mds", f"{path}: not an MDS shard that can be read: {error}") from error


def _fetch(dataset: str, commit: str, folder: str, shard: Any, local: Path) -> str:
    """Bring a shard's file here, decompressed; returns its name in the data set."""
    raw, compressed = shard["raw_data"], shard.get("zip_data") if shard.get("compression") else None
    name = str((compressed or raw)["basename"])
    for basename in (name, raw["basename"]):
        if not storage.stays_below(basename):
            raise UnreadableError("not_mds", f"a shard is named {basename!r}, which leaves its folder")
    target = local / raw["basename"]
    target.parent.mkdir(parents=True, exist_ok=True)
    with hub.open_file(dataset, commit, f"{folder}/{name}") as stream:
        data = stream.read()
    target.write_bytes(_decompressed(shard["compression"], data, raw["bytes"]) if compressed else data)
    return name


def _decompressed(compression: str, data: bytes, size: int) -> bytes:
    """No more than the index says, where that is known before: repeated text expands ten thousandfold."""
    from streaming.base.compression import decompress

    if compression.partition(":")[0] != "zstd":
        return bytes(decompress(compression, data))
    with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as stream:
        return stream.read(size)


def read_texts(
    dataset: str, commit: str, index: str, spans: TokenSpans, text_field: str
) -> Iterator[Row | UnreadableError]:
    """Rows of token ids as texts again, each with its text in `text_field`."""
    from huggingface_hub import hf_hub_download
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(hf_hub_download(spans.tokenizer, "tokenizer.json", revision=spans.revision))
    count = 0
    try:
        for path, number, sample in read_samples(dataset, commit, index):
            tokens = np.asarray(sample[spans.tokens_field])
            if int(tokens.max(initial=0)) >= tokenizer.get_vocab_size():
                raise UnreadableError(
                    "not_mds", f"token {tokens.max()} is not one of {spans.tokenizer}", f"row {number}"
                )
            bounds = sample[spans.spans_field] if spans.spans_field else [(0, len(tokens))]
            for begin, end in np.asarray(bounds).reshape(-1, 2).tolist():
                count += 1
                text = tokenizer.decode(tokens[begin:end].tolist(), skip_special_tokens=True)
                yield Row(count, f"{path}, row {number}", {text_field: text})
    except KeyError as error:
        yield UnreadableError("missing_field", f"no column {error}", "row 1")
    except UnreadableError as problem:
        yield UnreadableError(problem.reason, problem.detail, problem.where or f"after document {count}")
