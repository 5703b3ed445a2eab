"""Tokenization: documents, or text that was tokenized elsewhere, to MDS shards, one data set a source."""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import orjson
import zstandard
from tokenizers import Tokenizer

from mmbert.artifacts import Artifact, ArtifactWriter
from mmbert.data.documents import TRAIN, zstd_lines
from mmbert.data.encoding import Encoder, EngineName, byte_tokens, token_text_bytes
from mmbert.data.mds import ShardFormat
from mmbert.data.rows import Ids, Integers, Place, TokenBatch
from mmbert.data.shard_sets import TokenCounts, write_shard_sets
from mmbert.data.shard_units import Part, Reader, RowSettings
from mmbert.data.tokenizer import read_tokenizer
from mmbert.errors import UserError

if TYPE_CHECKING:  # pydantic and the recipe cost each process half a second
    from mmbert.recipe.schema import Model, Shards

T = TypeVar("T")

SAMPLE_DOCUMENTS = 16
SAMPLE_EVERY = 4096
_BATCH_BYTES = 2_000_000
_BATCH_TOKENS = 500_000


def tokenize_documents(
    documents: Artifact,
    tokenizer: Path,
    shards: Shards,
    model: Model,
    output: ArtifactWriter,
    scratch: Path,
    processes: int = 1,
) -> TokenCounts:
    """Tokenize the training documents of an artifact into `output`.

    Writes `<source>/` (MDS: a row's tokens, and the lengths of the pieces in it), `<source>/languages.json` and
    `counts.json`. A row holds whole documents of one language, in their order, up to `shards.row_tokens` tokens; a
    longer document is cut into pieces without losing a token. Parts are fetched into `scratch` one ahead and deleted
    when they are read. Raises UserError for documents that cannot be read, a tokenizer with another template than
    `<bos> text <eos>` or ids beyond the vocabulary, and EngineDifferenceError where the fast engine differs from the
    reference in a sample of a language; finished shards then stay for the next attempt.
    """
    parts = []
    for path in documents.paths(f"{TRAIN}/"):
        _, source, language, _ = path.split("/")
        parts.append(Part(source, language, path, documents.file(path).size))
    settings = _Settings.of(shards, model)
    open_reader = functools.partial(_open_documents, documents, tokenizer, settings, scratch)
    return write_shard_sets(parts, open_reader, settings.format.size_limit, output, processes)


ReadTokens = Callable[[Part, int], Iterable[Ids]]
"""A part, and how many documents of it to skip -> uint32 ids of each document after them, with or without bos and eos.
It is called in other processes, so it can be pickled."""


def write_token_shards(
    parts: Sequence[Part],
    read: ReadTokens,
    tokenizer: Path,
    shards: Shards,
    model: Model,
    output: ArtifactWriter,
    processes: int = 1,
    before: TokenCounts | None = None,
) -> TokenCounts:
    """Write text that was tokenized elsewhere as `tokenize_documents` writes its own.

    `before`: the counts of what the artifact holds already.
    bos and eos at a document's ends are taken off and put on as the recipe says; bytes of text are those that the
    tokens stand for. Raises UserError for ids beyond the vocabulary.
    """
    settings = _Settings.of(shards, model)
    open_reader = functools.partial(_open_tokens, read, tokenizer, settings)
    return write_shard_sets(parts, open_reader, settings.format.size_limit, output, processes, before)


@dataclass(frozen=True)
class _Settings:
    """What the processes need of the recipe, as plain values."""

    engine: EngineName
    vocab_size: int
    bos_token_id: int
    eos_token_id: int
    add_bos: bool
    add_eos: bool
    row_tokens: int
    format: ShardFormat

    @classmethod
    def of(cls, shards: Shards, model: Model) -> _Settings:
        return cls(
            shards.engine,
            model.vocab_size,
            model.bos_token_id,
            model.eos_token_id,
            shards.add_bos,
            shards.add_eos,
            shards.row_tokens,
            ShardFormat(shards.compression, int(shards.shard_size_mb * 2**20)),
        )

    def rows(self, tokenizer: Tokenizer) -> RowSettings:
        return RowSettings(
            row_tokens=self.row_tokens,
            format=self.format,
            bos=self.bos_token_id if self.add_bos else None,
            eos=self.eos_token_id if self.add_eos else None,
            byte_tokens=byte_tokens(tokenizer, self.vocab_size),
        )


def _open_documents(
    documents: Artifact, tokenizer: Path, settings: _Settings, scratch: Path, warn: bool
) -> tuple[Reader, RowSettings]:
    encoder = Encoder(tokenizer, settings.engine, settings.vocab_size)
    template = encoder.reference.encode("").ids
    if template != [settings.bos_token_id, settings.eos_token_id]:
        raise UserError(
            f"tokenizer {tokenizer}: its template adds the ids {template}; it must be '<bos> text <eos>' with "
            f"model.bos_token_id {settings.bos_token_id} and model.eos_token_id {settings.eos_token_id}"
        )
    if warn and encoder.fallback:
        print(
            "tokenized by the reference engine, at about a sixth of the fast one's speed: the fast one cannot load "
            f"this tokenizer ({encoder.fallback})",
            flush=True,
        )
    return _DocumentReader(documents, encoder, scratch), settings.rows(encoder.reference)


def _open_tokens(
    read: ReadTokens,
    tokenizer: Path,
    settings: _Settings,
    warn: bool,  # noqa: ARG001 - there is nothing to warn of
) -> tuple[Reader, RowSettings]:
    reference = read_tokenizer(tokenizer)
    text_bytes = token_text_bytes(reference, settings.vocab_size)
    return _TokenReader(read, settings, text_bytes), settings.rows(reference)


@dataclass(frozen=True, slots=True)
class _Text:
    """Document `number` of part `part`; `text` is UTF-8."""

    part: int
    number: int
    id: str
    text: bytes


class _DocumentReader:
    """Reads and encodes parts of a documents artifact, fetching one ahead."""

    def __init__(self, documents: Artifact, encoder: Encoder, scratch: Path) -> None:
        self._documents = documents
        self._encoder = encoder
        self._scratch = scratch

    def __call__(self, parts: Sequence[Part], begin: Place) -> Iterator[TokenBatch]:
        read: Counter[str] = Counter()
        # Batches go across parts: the engine is slower by an eighth on a tenth of the text.
        for texts in in_batches(self._texts(parts, begin), lambda t: len(t.text), _BATCH_BYTES):
            ids, lengths = self._encoder.encode([text.text for text in texts])
            ends = np.cumsum(lengths)
            if self._encoder.is_fast:
                self._compare(texts, ids, ends, parts, read)
            text_bytes = np.array([len(text.text) for text in texts], np.int64)
            first = token = 0
            for part, group in itertools.groupby(texts, lambda t: t.part):
                last = first + len(list(group))
                own = slice(first, last)
                yield TokenBatch(
                    parts[part].language,
                    part,
                    texts[first].number,
                    ids[token : ends[last - 1]],
                    lengths[own],
                    text_bytes[own],
                )
                first, token = last, int(ends[last - 1])

    def _texts(self, parts: Sequence[Part], begin: Place) -> Iterator[_Text]:
        with (
            tempfile.TemporaryDirectory(dir=self._scratch, prefix="parts-") as folder,
            ThreadPoolExecutor(1) as fetcher,
        ):
            waiting = [(n, part, Path(folder, str(n))) for n, part in enumerate(parts) if n >= begin.part]
            fetched = (fetcher.submit(self._documents.download, part.path, file) for _, part, file in waiting)
            for (number, part, file), fetching in zip(waiting, one_ahead(fetched), strict=True):
                fetching.result()
                yield from self._texts_of(file, part, number, begin.document if number == begin.part else 0)
                file.unlink()

    def _texts_of(self, file: Path, part: Part, part_number: int, skip: int) -> Iterator[_Text]:
        number = -1
        try:
            with file.open("rb") as stream:
                for number, line in enumerate(zstd_lines(stream)):
                    if number >= skip:
                        fields = orjson.loads(line)
                        yield _Text(part_number, number, fields["id"], fields["text"].encode())
        except (ValueError, KeyError, TypeError, AttributeError, zstandard.ZstdError) as error:
            # A broken frame breaks behind the last line that was read, a broken line at itself.
            line_number = number + 1 + isinstance(error, zstandard.ZstdError)
            raise UserError(
                f"{self._documents.uri}: '{part.path}', line {line_number}: not a document ({error}); curate it again"
            ) from error

    def _compare(
        self, texts: Sequence[_Text], ids: Ids, ends: Integers, parts: Sequence[Part], read: Counter[str]
    ) -> None:
        begin = 0
        for text, end in zip(texts, ends.tolist(), strict=True):
            language = parts[text.part].language
            read[language] += 1
            if _is_sampled(read[language], text.number):
                self._encoder.compare(text.text, ids[begin:end], language, text.id)
            begin = end


def _is_sampled(read: int, number: int) -> bool:
    """Whether a document is compared with the reference: the `read`th of its language that this unit reads, document
    `number` of its part. Which ones are does not depend on how units fall to processes."""
    return read <= SAMPLE_DOCUMENTS or number % SAMPLE_EVERY == 0


class _TokenReader:
    """Reads parts whose documents are tokens already."""

    def __init__(self, read: ReadTokens, settings: _Settings, token_bytes: Integers) -> None:
        self._read = read
        self._settings = settings
        self._token_bytes = token_bytes

    def __call__(self, parts: Sequence[Part], begin: Place) -> Iterator[TokenBatch]:
        for number, part in enumerate(parts):
            if number < begin.part:
                continue
            first = begin.document if number == begin.part else 0
            for documents in in_batches(self._read(part, first), len, _BATCH_TOKENS):
                yield self._batch(documents, part, number, first)
                first += len(documents)

    def _batch(self, documents: Sequence[Ids], part: Part, number: int, first: int) -> TokenBatch:
        stripped = [self._stripped(document) for document in documents]
        lengths = np.array([len(document) for document in stripped], np.int64)
        ids = np.concatenate(stripped).astype(np.uint32, copy=False)
        if ids.size and (largest := int(ids.max())) >= self._settings.vocab_size:
            raise UserError(
                f"{part.path}: it holds token {largest}, but model.vocab_size is {self._settings.vocab_size}; "
                "was it made with another tokenizer?"
            )
        totals = np.concatenate([[0], np.cumsum(self._token_bytes[ids])])
        ends = np.cumsum(lengths)
        return TokenBatch(part.language, number, first, ids, lengths, totals[ends] - totals[ends - lengths])

    def _stripped(self, document: Ids) -> Ids:
        if len(document) and document[0] == self._settings.bos_token_id:
            document = document[1:]
        if len(document) and document[-1] == self._settings.eos_token_id:
            document = document[:-1]
        return document


def in_batches(items: Iterable[T], size: Callable[[T], int], at_least: int) -> Iterator[list[T]]:
    """Consecutive items, as many as reach `at_least` by their sizes."""
    batch: list[T] = []
    total = 0
    for item in items:
        batch.append(item)
        total += size(item)
        if total >= at_least:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """The same items; each is made before the one before it is given out."""
    ahead, behind = itertools.tee(items)
    next(ahead, None)
    for item in behind:
        next(ahead, None)
        yield item
