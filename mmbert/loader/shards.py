"""Rows from MDS data sets, in S3 or a folder, through a cache of verified shards on the local disk.

The streaming library downloads, verifies and decompresses; its own order of samples is not used, and where all shards
are cached it is not even imported. Processes of one machine share the cache: a shard is prepared in a staging folder
under a lock and moved into place when it is whole, so whatever is killed leaves nothing that a later run could take for
a shard.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import mmap
import os
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mmbert import storage
from mmbert.data.mds import COLUMNS, decode_row
from mmbert.errors import InfrastructureError, UserError

_LOCKS = 64  # lock files a data set: few files, and little waiting of one shard for another
_OPEN_SHARDS = 256
_DOWNLOAD_TRIES = 2
_DOWNLOAD_SECONDS = 300.0


class _AlteredError(UserError):
    """An index is not the one that its artifact lists."""


@dataclass(frozen=True)
class DataSet:
    """An MDS data set's index. `shards`: each shard's entry of index.json as compact JSON (parsed, it takes ten times
    the memory); `begins`: int64 [shards + 1], the first row of each shard and the number of rows."""

    uri: str
    digest: str
    shards: tuple[bytes, ...]
    begins: NDArray[np.int64]


@dataclass(frozen=True)
class LanguageRows:
    """Where a language's rows lie in a data set, and what they hold."""

    row_begin: int
    rows: int
    tokens: int


def open_data_set(uri: str, digests: tuple[str, str] = ("", "")) -> tuple[DataSet, dict[str, LanguageRows]]:
    """Read a data set's index.json and languages.json, whose sha256 are `digests` where these are known.

    Raises UserError where they are missing, altered or wrong.
    """
    index_uri, languages_uri = storage.join(uri, "index.json"), storage.join(uri, "languages.json")
    index = _read(index_uri, digests[0])
    shards, samples = _entries(index_uri, index)
    begins = np.cumsum([0, *samples])
    data_set = DataSet(uri, hashlib.sha256(index).hexdigest()[:32], shards, begins)
    found = _parsed(languages_uri, _read(languages_uri, digests[1]))
    try:
        languages = {k: LanguageRows(int(v["row_begin"]), int(v["rows"]), int(v["tokens"])) for k, v in found.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{languages_uri}: a language needs row_begin, rows and tokens ({error}); tokenize again"
        ) from error
    for language, rows in languages.items():
        if rows.row_begin < 0 or rows.row_begin + rows.rows > begins[-1]:
            raise UserError(
                f"{languages_uri}: '{language}' ends at row {rows.row_begin + rows.rows}, but there are {begins[-1]}"
            )
    return data_set, languages


def _read(uri: str, sha256: str) -> bytes:
    def fetch() -> bytes:
        data = storage.read_bytes(uri)
        if sha256 and hashlib.sha256(data).hexdigest() != sha256:
            raise _AlteredError(f"{uri}: it was altered or cut short; tokenize again")
        return data

    return storage.fetched_twice(fetch, _AlteredError)


def _entries(uri: str, index: bytes) -> tuple[tuple[bytes, ...], list[int]]:
    """The shards' entries as compact JSON, and the rows that each holds."""
    samples: list[int] = []

    def compact(value: dict[str, Any]) -> Any:
        # While parsing: as dictionaries all at once, 100,000 entries take 0.3 GiB in each process of a machine.
        if "raw_data" not in value:
            return value
        _check_entry(uri, value)
        samples.append(int(value["samples"]))
        return json.dumps(value, separators=(",", ":")).encode()

    found = _parsed(uri, index, compact)
    entries = found.get("shards") if isinstance(found, dict) else None
    if not isinstance(entries, list) or len(entries) != len(samples):
        raise UserError(f"{uri}: it is damaged (it has no list of shards); tokenize again")
    if not entries:
        raise UserError(f"{uri}: the data set has no shards; tokenize some documents first")
    return tuple(entries), samples


def _check_entry(uri: str, entry: dict[str, Any]) -> None:
    columns = dict(zip(entry.get("column_names", []), entry.get("column_encodings", []), strict=False))
    if columns != COLUMNS:
        raise UserError(f"{uri}: its columns are {columns}, not {COLUMNS}; write it with `mmbert run tokenize`")
    for place in ("raw_data", "zip_data"):
        name = (entry[place] or {}).get("basename", "")
        if not storage.stays_below(name):
            raise UserError(f"{uri}: a shard is named {name!r}, which leaves its folder; tokenize again")
    if not entry["hashes"]:
        raise UserError(f"{uri}: its shards have no checksums; write the data set with hashes, such as ['xxh64']")


def _parsed(uri: str, data: bytes, hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    try:
        return json.loads(data, object_hook=hook)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{uri}: it is damaged ({error}); tokenize again") from error


@dataclass(frozen=True)
class _OpenShard:
    data: mmap.mmap
    offsets: NDArray[np.uint32]


class ShardReader:
    """Reads rows; made once, then opened on first use in whichever process it is sent to."""

    def __init__(
        self, data_sets: Sequence[DataSet], cache: Path, vocab_size: int, cache_limit_bytes: int | None = None
    ) -> None:
        """`data_sets`: one a stream (streams may share one). Above `cache_limit_bytes` the shards of the cache that
        were opened longest ago are deleted."""
        self._data_sets = data_sets
        self._cache = cache
        self._vocab_size = vocab_size
        self._limit = cache_limit_bytes
        self._open: OrderedDict[tuple[str, int], _OpenShard] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def __call__(self, stream: int, row: int) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Tokens [T] and document lengths [documents] of a row. Raises UserError where the data are damaged or not for
        this vocabulary, InfrastructureError where the store or the disk fails."""
        data_set = self._data_sets[stream]
        number = int(data_set.begins.searchsorted(row, side="right")) - 1
        shard = self._shard(data_set, number)
        begin, end = shard.offsets[row - int(data_set.begins[number]) :][:2].tolist()
        try:
            tokens, documents = decode_row(shard.data[begin:end])
        except (ValueError, IndexError) as error:
            raise UserError(f"{data_set.uri}: row {row} is damaged: {error}; tokenize again") from error
        lengths = documents.astype(np.int64)
        if not len(tokens) or lengths.sum() != len(tokens):
            raise UserError(
                f"{data_set.uri}: row {row} has {len(tokens)} tokens, but its documents' lengths add up to "
                f"{lengths.sum()}; tokenize again"
            )
        if tokens.max() >= self._vocab_size:
            raise UserError(
                f"{data_set.uri}: row {row} holds token {tokens.max()}, but the vocabulary has {self._vocab_size}; "
                "were these shards made with another tokenizer?"
            )
        return tokens, lengths

    def _shard(self, data_set: DataSet, number: int) -> _OpenShard:
        key = (data_set.digest, number)
        if key in self._open:
            self._open.move_to_end(key)
            return self._open[key]
        try:
            shard = _open_shard(data_set, number, self._cache, self._limit)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise InfrastructureError(
                    f"{self._cache}: the disk is full; free some space, or lower training.cache_gb "
                    + ("" if self._limit is None else f"(now {self._limit / 10**9:g}), ")
                    + "and run the same again"
                ) from error
            raise InfrastructureError(f"{self._cache}: {error.strerror or error}") from error
        self._open[key] = shard
        if len(self._open) > _OPEN_SHARDS:
            self._open.popitem(last=False)
        return shard


def _open_shard(data_set: DataSet, number: int, cache: Path, limit: int | None) -> _OpenShard:
    """Open a shard from the cache, or bring it there first."""
    entry = json.loads(data_set.shards[number])
    basename, size = entry["raw_data"]["basename"], entry["raw_data"]["bytes"]
    folder = cache / data_set.digest
    file = _cached(folder / basename, size)
    if file is None:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / f"lock-{number % _LOCKS:02d}"):
            file = _cached(folder / basename, size)
            if file is None:
                if limit is not None:
                    _shrink(cache, limit - size)  # before, since the disk may be full
                file = _fetch(data_set, entry, folder)
        if limit is not None:
            _shrink(cache, limit)
    with file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    offsets = np.frombuffer(data, np.uint32, entry["samples"] + 1, offset=4)
    return _OpenShard(data, offsets)


def _cached(path: Path, size: int) -> BinaryIO | None:
    """The shard if the cache has it whole. Its file's time becomes now: what was used last is deleted last."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    if os.fstat(file.fileno()).st_size != size:
        file.close()
        return None
    os.utime(file.fileno())
    return file


def _fetch(data_set: DataSet, entry: dict[str, Any], folder: Path) -> BinaryIO:
    """Download, verify and decompress a shard into the cache; called with its lock held."""
    basename = entry["raw_data"]["basename"]
    staging = folder / "incoming" / basename
    target = folder / basename
    for last in (False, True):
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        try:
            if not _prepare(data_set, entry, staging):
                if last:
                    raise UserError(
                        f"{_remote(data_set, entry)}: the shard is damaged: its checksum is not the index's, also when "
                        "fetched again. Tokenize again or restore the file."
                    )
                continue
            file: BinaryIO = (staging / basename).open("rb")
            target.parent.mkdir(parents=True, exist_ok=True)
            (staging / basename).replace(target)
            return file
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    raise AssertionError("unreachable")


def _prepare(data_set: DataSet, entry: dict[str, Any], staging: Path) -> bool:
    """Let the streaming library bring a shard into an empty folder. False where its checksum is wrong."""
    from streaming.base.format import reader_from_json
    from streaming.base.stream import Stream

    stream = Stream(
        remote=data_set.uri,
        local=str(staging),
        download_retry=_DOWNLOAD_TRIES,
        download_timeout=_DOWNLOAD_SECONDS,
        validate_hash=entry["hashes"][0],
        keep_zip=False,
    )
    try:
        stream.prepare_shard(reader_from_json(str(staging), "", entry))
    except FileNotFoundError as error:
        raise UserError(
            f"{_remote(data_set, entry)}: the shard is missing; tokenize again or restore the file"
        ) from error
    except OSError:
        raise
    except ValueError as error:
        if "Checksum failure" not in str(error):
            raise
        return False
    except Exception as error:
        raise InfrastructureError(f"{data_set.uri}: a shard could not be downloaded: {error}") from error
    return True


def _remote(data_set: DataSet, entry: dict[str, Any]) -> str:
    return storage.join(data_set.uri, (entry["zip_data"] or entry["raw_data"])["basename"])


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock between processes; the system releases it when its holder dies."""
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _shrink(cache: Path, limit: int) -> None:
    """Delete the shards that were opened longest ago until the cache is within its limit. Open ones stay readable."""
    with _locked(cache / "lock-size"):
        found = []
        for path in cache.glob("*/**/*.mds"):
            if "incoming" in path.parts:
                continue
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime_ns, str(path), status.st_size))
        used = sum(size for _, _, size in found)
        for _, name, size in sorted(found):
            if used <= limit:
                break
            Path(name).unlink(missing_ok=True)
            used -= size
