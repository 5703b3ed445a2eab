"""Data sets of shards: units written by several processes, then put together, one MDS data set a source."""

from __future__ import annotations

import functools
import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from typing import Any

from mmbert import storage
from mmbert.artifacts import ArtifactWriter
from mmbert.data.mds import index_bytes
from mmbert.data.rows import Place, TokenBatch
from mmbert.data.shard_units import (
    PROGRESS,
    LanguageCounts,
    Part,
    Progress,
    Reader,
    RowSettings,
    Shard,
    Unit,
    plan_units,
    write_unit,
)
from mmbert.progress import BYTES, Advance, shown
from mmbert.workers import lost, start_worker

INDEX_FILE = "index.json"
LANGUAGES_FILE = "languages.json"
COUNTS_FILE = "counts.json"

OpenReader = Callable[[bool], tuple[Reader, RowSettings]]
"""Makes a process's reader and the row settings; told whether to print warnings (one process of all is)."""


@dataclass(slots=True)
class LanguageShards(LanguageCounts):
    """Where a language's rows lie in its source's data set, and what they hold."""

    row_begin: int = 0

    def to_json(self) -> dict[str, Any]:
        tokens = max(1, self.tokens)
        shares = {"bytes_per_token": self.bytes / tokens, "byte_fallback_share": self.byte_tokens / tokens}
        return asdict(self) | {name: round(value, 4) for name, value in shares.items()}


@dataclass
class TokenCounts:
    """Counts by source and language."""

    sources: dict[str, dict[str, LanguageShards]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {source: _to_json(languages) for source, languages in self.sources.items()}

    def metrics(self) -> dict[str, float]:
        """Totals, for tracking."""
        total = LanguageShards()
        for languages in self.sources.values():
            for counts in languages.values():
                total.add(counts)
        return {name: float(value) for name, value in total.to_json().items() if name != "row_begin"}


def _to_json(languages: dict[str, LanguageShards]) -> dict[str, Any]:
    return {language: counts.to_json() for language, counts in languages.items()}


def write_shard_sets(
    parts: Sequence[Part],
    open_reader: OpenReader,
    shard_bytes: int,
    output: ArtifactWriter,
    processes: int,
    before: TokenCounts | None = None,
) -> TokenCounts:
    """Tokenize parts into `<source>/` (MDS shards, index.json, languages.json) and `counts.json` of an artifact.

    `before`: the counts of other sources that this artifact holds already.

    What an earlier attempt at the artifact finished is not made again. The bytes do not depend on that, nor on the
    number of processes. Raises what readers and the store raise; then finished shards stay for the next attempt.
    """
    units = plan_units(parts, shard_bytes)
    progress = Progress(output.kept_uri, storage.list_files(output.kept_uri))
    with ThreadPoolExecutor(8) as pool:
        finished = list(pool.map(progress.unit, units))
    left = [unit for unit, shards in zip(units, finished, strict=True) if shards is None]
    if len(left) < len(units):
        print(f"{len(units) - len(left)} of {len(units)} units are done already", flush=True)
    with shown("tokenization", sum(unit.size for unit in left), BYTES) as advance:
        written = _write_units(left, open_reader, progress, output.kept_uri, processes, advance)
    made = dict(zip(left, written, strict=True))
    counts = TokenCounts(dict(before.sources) if before else {})
    for source in sorted({unit.source for unit in units}):
        of_source = [(unit, shards) for unit, shards in zip(units, finished, strict=True) if unit.source == source]
        counts.sources[source] = _put_together(source, [made[u] if s is None else s for u, s in of_source], output)
    output.add_json(COUNTS_FILE, counts.to_json())
    output.after_commit.append(lambda: storage.delete_tree(storage.join(output.kept_uri, PROGRESS)))
    return counts


def _put_together(source: str, units: Sequence[list[Shard]], output: ArtifactWriter) -> dict[str, LanguageShards]:
    languages: dict[str, LanguageShards] = {}
    row = 0
    entries = []
    for shard in (shard for shards in units for shard in shards):
        entries.append(shard.entry)
        output.adopt(shard.path, shard.sha256, shard.size)
        for language, counts in shard.languages.items():
            languages.setdefault(language, LanguageShards(row_begin=row)).add(counts)
            row += counts.rows
    text = json.dumps(_to_json(languages), indent=1) + "\n"
    for name, data in ((INDEX_FILE, index_bytes(entries)), (LANGUAGES_FILE, text.encode())):
        path = f"{source}/{name}"
        storage.write_bytes(storage.join(output.kept_uri, path), data)
        output.adopt(path, hashlib.sha256(data).hexdigest(), len(data))
    return languages


def _write_units(
    units: Sequence[Unit], open_reader: OpenReader, progress: Progress, uri: str, processes: int, advance: Advance
) -> list[list[Shard]]:
    if not units:
        return []
    processes = min(processes, len(units))
    if processes == 1:
        reader, settings = open_reader(True)
        written = []
        for unit in units:
            written.append(write_unit(unit, reader, settings, progress, uri))
            advance(unit.size)
        return written
    # Fresh processes: MLflow's and S3's threads of this one must not be forked.
    context = multiprocessing.get_context("spawn")
    # Without a lock, which a killed process may hold for ever.
    stop, warn = context.RawValue("b", False), context.Semaphore(1)
    arguments = (open_reader, progress, uri, stop, warn)
    with ProcessPoolExecutor(processes, context, initializer=_start_worker, initargs=arguments) as pool:
        try:
            futures = [pool.submit(_work, unit) for unit in units]
            for unit, future in zip(units, futures, strict=True):
                future.add_done_callback(functools.partial(_tell_size, advance, unit.size))
            wait(futures, return_when=FIRST_EXCEPTION)
            failed = [f for f in futures if f.done() and f.exception()]
            if failed:
                stop.value = True
                pool.shutdown(cancel_futures=True)
                # Those that were told to stop say so; the first that failed of itself is the reason.
                raise next(e for f in failed if (e := f.exception()) and not isinstance(e, _StoppedError))
            return [future.result() for future in futures]
        except BrokenProcessPool as error:
            raise lost("tokenization", "fewer threads or smaller shards (shards.shard_size_mb)") from error
        except BaseException:
            stop.value = True
            pool.shutdown(cancel_futures=True)
            raise


def _tell_size(advance: Advance, size: int, _: Future[list[Shard]]) -> None:
    advance(size)


class _StoppedError(Exception):
    """Another process failed."""


class _Worker:
    """One process's part in the work; the reader is opened at its first unit."""

    def __init__(self, open_reader: OpenReader, progress: Progress, uri: str, stop: Any, warn: Any) -> None:
        self._open_reader = open_reader
        self._progress = progress
        self._uri = uri
        self._stop = stop
        self._warn = warn
        self._opened: tuple[Reader, RowSettings] | None = None

    def write(self, unit: Unit) -> list[Shard]:
        if self._opened is None:
            self._opened = self._open_reader(self._warn.acquire(block=False))
        reader, settings = self._opened

        def read(parts: Sequence[Part], begin: Place) -> Iterator[TokenBatch]:
            for batch in reader(parts, begin):
                if self._stop.value:
                    raise _StoppedError
                yield batch

        return write_unit(unit, read, settings, self._progress, self._uri)


_worker: list[_Worker] = []


def _start_worker(*arguments: Any) -> None:
    start_worker()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker.append(_Worker(*arguments))


def _work(unit: Unit) -> list[Shard]:
    return _worker[0].write(unit)
