"""Tokenization: from documents to MDS shards, one data set a source, each language one contiguous run of rows."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from mmbert.data.documents import TRAIN, DocumentFile, document_files, read_documents
from mmbert.data.tokenizer import read_tokenizer
from mmbert.errors import UserError
from mmbert.recipe.schema import Shards

COLUMNS = {"tokens": "ndarray:uint32", "lengths": "ndarray:uint32"}
LANGUAGES_FILE = "languages.json"
COUNTS_FILE = "counts.json"
HASH = "xxh64"
_BATCH_CHARACTERS = 1_000_000

Ids = NDArray[np.uint32]


@dataclass
class LanguageShards:
    """Where a language's rows lie in its source's data set, and what they hold.

    `bytes` are of UTF-8 text; `tokens` count the special ones too.
    """

    row_begin: int
    rows: int = 0
    tokens: int = 0
    documents: int = 0
    bytes: int = 0

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / max(1, self.tokens)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "bytes_per_token": round(self.bytes_per_token, 4)}


@dataclass
class TokenCounts:
    """Counts by source and language. `seconds` is a wall time, so it is no part of what is written."""

    sources: dict[str, dict[str, LanguageShards]] = field(default_factory=dict)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return {source: _to_json(languages) for source, languages in self.sources.items()}

    def metrics(self) -> dict[str, float]:
        """Totals, for tracking."""
        found = [counts for languages in self.sources.values() for counts in languages.values()]
        totals = {
            name: float(sum(getattr(c, name) for c in found)) for name in ("tokens", "documents", "bytes", "rows")
        }
        rates = {
            "bytes_per_token": totals["bytes"] / max(1.0, totals["tokens"]),
            "tokens_per_second": totals["tokens"] / max(1e-9, self.seconds),
        }
        return totals | rates


def tokenize_documents(documents: Path, tokenizer: Path, shards: Shards, vocab_size: int, out: Path) -> TokenCounts:
    """Tokenize the training split of a folder of documents.

    Writes `<source>/` (MDS with the columns of `COLUMNS`: a row's tokens, and the lengths of the documents in it),
    `<source>/languages.json` and `counts.json` into `out`; the same input gives the same bytes. A row holds whole
    documents of one language, in their order, up to `shards.row_tokens` tokens; a longer document is cut into rows
    without losing a token. Each document, and each piece of a cut one, is `<bos> ... <eos>`. Raises UserError where the
    tokenizer's template is another, or its ids go beyond `vocab_size`.
    """
    begin = time.monotonic()
    encoder = Encoder(read_tokenizer(tokenizer), shards.row_tokens, vocab_size, str(tokenizer))
    counts = TokenCounts()
    out.mkdir(parents=True, exist_ok=True)
    for source, files in itertools.groupby(document_files([documents], TRAIN), key=lambda f: f.source):
        languages = _write_source(files, encoder, shards, out / source)
        counts.sources[source] = languages
        (out / source / LANGUAGES_FILE).write_text(json.dumps(_to_json(languages), indent=1) + "\n")
    (out / COUNTS_FILE).write_text(json.dumps(counts.to_json(), indent=1) + "\n")
    counts.seconds = time.monotonic() - begin
    return counts


def _to_json(languages: dict[str, LanguageShards]) -> dict[str, Any]:
    return {language: counts.to_json() for language, counts in languages.items()}


def _write_source(
    files: Iterable[DocumentFile], encoder: Encoder, shards: Shards, out: Path
) -> dict[str, LanguageShards]:
    # The streaming library imports torch and transformers.
    from streaming.base.format.mds.writer import MDSWriter

    languages: dict[str, LanguageShards] = {}
    row = 0
    with MDSWriter(
        columns=COLUMNS,
        out=str(out),
        compression=shards.compression,
        hashes=[HASH],
        size_limit=int(shards.shard_size_mb * 2**20),
        exist_ok=True,
    ) as writer:
        for file in files:
            counts = languages[file.language] = LanguageShards(row_begin=row)
            for pieces in pack_rows(encoder.pieces(file.path, counts), shards.row_tokens):
                tokens = np.concatenate(pieces)
                writer.write({"tokens": tokens, "lengths": np.array([len(piece) for piece in pieces], np.uint32)})
                counts.rows += 1
                counts.tokens += len(tokens)
            row += counts.rows
    return languages


class Encoder:
    """Documents to token ids, in batches."""

    def __init__(self, tokenizer: Tokenizer, row_tokens: int, vocab_size: int, name: str) -> None:
        template = tokenizer.encode("").ids
        if len(template) != 2:
            raise UserError(
                f"tokenizer {name}: its template adds {len(template)} tokens; it must be '<bos> text <eos>'"
            )
        if row_tokens < 3:
            raise UserError(f"shards.row_tokens = {row_tokens}: a row must hold <bos>, a token and <eos>")
        self.tokenizer = tokenizer
        self.begin, self.end = (np.array([number], np.uint32) for number in template)
        self.piece_tokens = row_tokens - len(template)
        self.vocab_size = vocab_size
        self.name = name

    def pieces(self, path: Path, counts: LanguageShards) -> Iterator[Ids]:
        """The documents of a file, each cut into pieces that fit a row; adds documents and bytes to `counts`."""
        for texts in _batches(document.text for document in read_documents(path)):
            for text, encoding in zip(
                texts, self.tokenizer.encode_batch_fast(texts, add_special_tokens=False), strict=True
            ):
                ids = np.array(encoding.ids, np.uint32)
                if ids.size and ids.max() >= self.vocab_size:
                    raise UserError(
                        f"tokenizer {self.name}: it gives id {ids.max()}, but model.vocab_size is {self.vocab_size}; "
                        "take the tokenizer that belongs to the model, or set model.vocab_size"
                    )
                counts.documents += 1
                counts.bytes += len(text.encode())
                for start in range(0, max(1, len(ids)), self.piece_tokens):
                    yield np.concatenate([self.begin, ids[start : start + self.piece_tokens], self.end])


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def pack_rows(pieces: Iterable[Ids], row_tokens: int) -> Iterator[list[Ids]]:
    """Consecutive pieces, as many as fit into `row_tokens` tokens; no piece may be longer."""
    row: list[Ids] = []
    used = 0
    for piece in pieces:
        if row and used + len(piece) > row_tokens:
            yield row
            row, used = [], 0
        row.append(piece)
        used += len(piece)
    if row:
        yield row
