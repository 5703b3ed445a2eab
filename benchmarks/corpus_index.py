"""An index-only corpus of any size: the files that describe a tokenized corpus, without its shards.

Fifteen sources in the proportions of mmBERT's published mixtures; in the multilingual ones, languages by the published
token counts. A source's index.json is what MDSWriter writes, its shards' entries multiplied.
"""

from __future__ import annotations

import json
import math
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmbert.data.mds import COLUMNS, HASH
from mmbert.data.shard_sets import LANGUAGES_FILE
from mmbert.recipe.languages import CODE, language_table
from mmbert.recipe.schema import Shards

TOKEN_BYTES = np.dtype(np.uint32).itemsize
DOCUMENT_TOKENS = 500
ZIPPED = 0.39
"""Compressed over raw bytes of a shard: measured with zstd level 3 on Gemma 2's uint32 tokens of eld's 60 languages."""

# Billions of tokens: those of phase 1, and the decay's sources, as published; the two filtered subsets are assumed.
BILLIONS = {
    "fineweb2": 1196.6,
    "dclm": 600.0,
    "starcoder": 100.6,
    "arxiv": 27.8,
    "stackexchange": 18.6,
    "tulu_flan": 15.3,
    "dolmino_math": 11.2,
    "pes2o": 8.4,
    "wikipedia": 4.7,
    "books": 4.3,
    "textbooks": 3.1,
    "prolong_code": 2.8,
    "dclm_dolmino": 2.0,
    "stackexchange_filtered": 5.0,
    "fineweb2_hq": 120.0,
}
_LANGUAGES = {"fineweb2": 1_833, "wikipedia": 320, "fineweb2_hq": 20}
_CODE_SOURCES = ("starcoder", "prolong_code")


@dataclass(frozen=True)
class CorpusIndex:
    """What was written: `uris` by source; totals; bytes of the index files."""

    uris: dict[str, str]
    tokens: int
    rows: int
    shards: int
    index_bytes: int


def mean_zipped_bytes(corpus: CorpusIndex) -> float:
    """Bytes of a shard as it lies in object storage."""
    return corpus.tokens * TOKEN_BYTES * ZIPPED / corpus.shards


def write_corpus_index(folder: Path, tokens: int, shards: Shards, seed: int = 17) -> CorpusIndex:
    """Write `<source>/index.json` and `<source>/languages.json` for a corpus of about `tokens` tokens."""
    entry = _entry()
    rng = random.Random(seed)
    total = sum(BILLIONS.values())
    uris, sums = {}, np.zeros(4, np.int64)
    for source, billions in BILLIONS.items():
        place = folder / source
        place.mkdir(parents=True)
        languages = _languages(_sizes(source, tokens * billions / total), shards.row_tokens)
        rows = sum(language["rows"] for language in languages.values())
        source_tokens = sum(language["tokens"] for language in languages.values())
        index = _index(entry, rows, source_tokens, shards, rng)
        # As MDSWriter and the component tokenize write them.
        text = json.dumps({"version": 2, "shards": index}, sort_keys=True)
        (place / "index.json").write_text(text)
        table = json.dumps(languages, indent=1)
        (place / LANGUAGES_FILE).write_text(table)
        uris[source] = str(place)
        sums += [source_tokens, rows, len(index), len(text) + len(table)]
    return CorpusIndex(uris, *(int(value) for value in sums))


def _sizes(source: str, tokens: float) -> dict[str, int]:
    """Tokens by language. The sizes that phase 1's temperature of 0.7 tells, or the published counts where it has
    none."""
    if source not in _LANGUAGES:
        return {CODE if source in _CODE_SOURCES else "eng_Latn": max(1, int(tokens))}
    counts = {code: entry.tokens for code, entry in language_table().items() if code != CODE}
    known = {
        code: (found["pretrain"] / 1e8) ** (1 / 0.7) * 1e8 if found["pretrain"] else float(found["decay-all"])
        for code, found in counts.items()
        if found["decay-all"]
    }
    largest = sorted(known, key=lambda code: (-known[code], code))[: _LANGUAGES[source]]
    total = sum(known[code] for code in largest)
    return {code: max(1, int(tokens * known[code] / total)) for code in sorted(largest)}


def _languages(sizes: dict[str, int], row_tokens: int) -> dict[str, dict[str, Any]]:
    languages, begin = {}, 0
    for code, tokens in sizes.items():
        rows = math.ceil(tokens / row_tokens)
        languages[code] = {
            "row_begin": begin,
            "rows": rows,
            "tokens": tokens,
            "documents": math.ceil(tokens / DOCUMENT_TOKENS),
            "bytes": 4 * tokens,
            "bytes_per_token": 4.0,
        }
        begin += rows
    return languages


def _entry() -> dict[str, Any]:
    """A shard's entry of index.json, as the real writer makes it."""
    from streaming.base.format.mds.writer import MDSWriter

    with tempfile.TemporaryDirectory() as name:
        with MDSWriter(columns=COLUMNS, out=f"{name}/set", compression="zstd:1", hashes=[HASH]) as writer:
            writer.write({"tokens": np.zeros(9, np.uint32), "lengths": np.array([9], np.uint32)})
        entry: dict[str, Any] = json.loads(Path(name, "set", "index.json").read_text())["shards"][0]
    return entry


def _index(entry: dict[str, Any], rows: int, tokens: int, shards: Shards, rng: random.Random) -> list[dict[str, Any]]:
    limit = int(shards.shard_size_mb * 2**20)
    count = max(1, math.ceil(tokens * TOKEN_BYTES / limit))
    begins = np.linspace(0, rows, count + 1).astype(int)
    entries = []
    for number, samples in enumerate(np.diff(begins).tolist()):
        name = f"shard.{number:05}.mds"
        raw = {"basename": name, "bytes": limit - rng.randrange(2**16), "hashes": {HASH: f"{rng.getrandbits(64):016x}"}}
        zipped = {
            "basename": f"{name}.zstd",
            "bytes": int(raw["bytes"] * ZIPPED),
            "hashes": {HASH: f"{rng.getrandbits(64):016x}"},
        }
        entries.append({**entry, "raw_data": raw, "zip_data": zipped, "samples": samples, "size_limit": limit})
    return entries
