"""MDS shards of token rows, as the streaming library's MDSWriter writes them, without importing it.

The streaming library brings torch and transformers (seconds a process) and encodes one sample at a time. The format is
that of mosaicml-streaming 0.13 (streaming/base/format/mds): number of samples, offsets, configuration, samples; the
tests hold the two against each other byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
import zstandard

from mmbert.data.rows import Ids

COLUMNS = {"lengths": "ndarray:uint32", "tokens": "ndarray:uint32"}
HASH = "xxh64"
_OFFSET_BYTES = 4


@dataclass(frozen=True)
class ShardFormat:
    """How shards are written. `size_limit` is in bytes before compression."""

    compression: str | None
    size_limit: int

    def config(self) -> dict[str, Any]:
        return {
            "version": 2,
            "format": "mds",
            "compression": self.compression,
            "hashes": [HASH],
            "size_limit": self.size_limit,
            "column_names": list(COLUMNS),
            "column_encodings": list(COLUMNS.values()),
            "column_sizes": [None] * len(COLUMNS),
        }

    def config_bytes(self) -> bytes:
        return json.dumps(self.config(), sort_keys=True).encode()

    def file_suffix(self) -> str:
        """What a shard's file is called beyond its raw name."""
        return ".zstd" if self.compression else ""


class ShardBuffer:
    """The rows of one shard in the making."""

    def __init__(self, settings: ShardFormat) -> None:
        self._format = settings
        self._parts: list[bytes | memoryview] = []
        self._sizes: list[int] = []
        self._bytes = 2 * _OFFSET_BYTES + len(settings.config_bytes())

    def __len__(self) -> int:
        return len(self._sizes)

    def add(self, tokens: Ids, lengths: Ids) -> bool:
        """Take a row: tokens [T], lengths [pieces]. False where the shard would grow over its limit; it is not taken
        then (a first row always is)."""
        head, middle = _array_head(lengths), _array_head(tokens)
        sizes = (len(head) + lengths.nbytes, len(middle) + tokens.nbytes)
        size = 4 * len(sizes) + sum(sizes)
        if self._sizes and self._bytes + size + _OFFSET_BYTES > self._format.size_limit:
            return False
        self._parts += [np.array(sizes, np.uint32).tobytes() + head, lengths.data, middle, tokens.data]
        self._sizes.append(size)
        self._bytes += size + _OFFSET_BYTES
        return True

    def to_bytes(self) -> bytes:
        """The shard before compression."""
        config = self._format.config_bytes()
        begin = _OFFSET_BYTES * (len(self._sizes) + 2) + len(config)
        offsets = np.cumsum([begin, *self._sizes]).astype(np.uint32)
        return b"".join([np.uint32(len(self._sizes)).tobytes(), offsets.tobytes(), config, *self._parts])


def finish_shard(shard: ShardBuffer, settings: ShardFormat, name: str) -> tuple[dict[str, Any], bytes]:
    """A shard's entry in index.json and the bytes of its file, which is called `name` plus `settings.file_suffix()`."""
    data = raw = shard.to_bytes()
    zipped = None
    if settings.compression:
        _, _, level = settings.compression.partition(":")
        data = zstandard.ZstdCompressor(level=int(level)).compress(raw)
        zipped = _file(data, name + settings.file_suffix())
    return {**settings.config(), "raw_data": _file(raw, name), "zip_data": zipped, "samples": len(shard)}, data


def index_bytes(entries: Sequence[dict[str, Any]]) -> bytes:
    """index.json of a data set."""
    return json.dumps({"version": 2, "shards": list(entries)}, sort_keys=True).encode()


def _file(data: bytes, name: str) -> dict[str, Any]:
    return {"basename": name, "bytes": len(data), "hashes": {HASH: xxhash.xxh64(data).hexdigest()}}


def _array_head(values: Ids) -> bytes:
    """What stands before an array of one dimension: (dimensions << 2 | log2 of the bytes of its size), its size."""
    count = len(values)
    power = 0 if count < 2**8 else 1 if count < 2**16 else 2
    return bytes([1 << 2 | power]) + count.to_bytes(2**power, "little")


def decode_row(sample: bytes) -> tuple[Ids, Ids]:
    """Tokens [T] and lengths [documents] of a row as it lies in a shard, uint32 each. Raises ValueError where it is no
    such row."""
    sizes = np.frombuffer(sample, "<u4", len(COLUMNS))
    begin = sizes.nbytes
    if begin + int(sizes.sum()) != len(sample):
        raise ValueError("its columns do not add up to its size")
    middle = begin + int(sizes[0])
    return _array(sample, middle, len(sample)), _array(sample, begin, middle)


def _array(sample: bytes, begin: int, end: int) -> Ids:
    power = sample[begin] & 3
    first = begin + 1 + 2**power
    count = int.from_bytes(sample[begin + 1 : first], "little")
    if sample[begin] >> 2 != 1 or first + 4 * count != end:
        raise ValueError("a column is not a uint32 array of one dimension")
    return np.frombuffer(sample, "<u4", count, first)
