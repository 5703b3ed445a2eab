"""Global batches from lanes: who makes which lanes, and the state that travels with each batch."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mmbert.errors import InfrastructureError, MmbertError, UserError
from mmbert.loader.batch import Batch, Part, make_batch, merge_parts
from mmbert.loader.lane import Lane, LaneSettings, PackedRow, ReadRow, Schedule, StreamRows
from mmbert.loader.masking import Masker, MaskingRule
from mmbert.loader.randomness import derive_key, random_bits
from mmbert.loader.state import LoaderState

if TYPE_CHECKING:
    from mmbert.loader.shards import DataSet

_MASK_BLOCK = 16_384  # tokens: their random bits take 128 KiB


@dataclass(frozen=True)
class MixtureStream:
    """One language of one data set, and its share of the mixture's tokens (any positive scale)."""

    source: str
    language: str
    uri: str
    weight: float
    digests: tuple[str, str] = ("", "")
    """The sha256 of the data set's index.json and languages.json, where an artifact holds it."""


@dataclass(frozen=True)
class LoaderSettings:
    """What a phase asks of the loader.

    `batch_rows`: rows of the next global batch, a multiple of `lanes`, as a pure function of the nominal tokens so far
    (rows so far x max_seq_len, padding counted): every process knows these without asking the others. It must be
    picklable where workers are spawned.
    """

    seed: int
    lanes: int
    max_seq_len: int
    batch_rows: Callable[[int], int]
    masking: MaskingRule
    cache: Path
    packing: Literal["packed", "unpacked"] = "packed"
    buffer_tokens: int = 131_072
    cache_limit_bytes: int | None = None

    def lane_settings(self) -> LaneSettings:
        return LaneSettings(self.seed, self.lanes, self.max_seq_len, self.buffer_tokens, self.packing)


def build_loader(
    streams: Sequence[MixtureStream],
    settings: LoaderSettings,
    rank: int,
    world_size: int,
    workers: int,
    *,
    state: LoaderState | None = None,
    start_method: Literal["fork", "spawn"] = "fork",
) -> Loader:
    """This rank's batches of a mixture, from the state after the last batch or from the start.

    Global batches depend on streams, settings and state alone, not on world_size or workers. Raises UserError where a
    stream has no rows or no weight, a data set is damaged, or the state belongs to something else.
    """
    from mmbert.loader.shards import ShardReader

    rows, data_sets = open_streams(streams)
    reader = ShardReader(data_sets, settings.cache, settings.masking.vocab_size, settings.cache_limit_bytes)
    return Loader(rows, reader, settings, rank, world_size, workers=workers, state=state, start_method=start_method)


def open_streams(streams: Sequence[MixtureStream]) -> tuple[list[StreamRows], list[DataSet]]:
    """What the order of documents needs to know of each stream, and the data set that each reads from.

    Raises UserError where a stream has no rows or no weight, or a data set's index is damaged.
    """
    from mmbert.loader.shards import open_data_set

    opened = {uri: open_data_set(uri, digests) for uri, digests in {s.uri: s.digests for s in streams}.items()}
    rows = []
    for stream in streams:
        data_set, languages = opened[stream.uri]
        found = languages.get(stream.language)
        if found is None or found.rows < 1:
            raise UserError(
                f"{stream.uri}: no rows of '{stream.language}'; leave it out of the mixture, or tokenize it"
            )
        if not stream.weight > 0:
            raise UserError(
                f"{stream.source}/{stream.language}: its weight is {stream.weight}; weights must be above 0"
            )
        name = f"{stream.source}/{stream.language}"
        rows.append(StreamRows(name, stream.weight, found.row_begin, found.rows, found.tokens, data_set.begins))
    return rows, [opened[s.uri][0] for s in streams]


class Loader:
    """An endless iterable of this rank's batches. Iterating again goes on after the last batch that was handed out."""

    def __init__(
        self,
        streams: Sequence[StreamRows],
        read: ReadRow,
        settings: LoaderSettings,
        rank: int,
        world_size: int,
        *,
        workers: int,
        state: LoaderState | None = None,
        start_method: Literal["fork", "spawn"] = "fork",
    ) -> None:
        if not streams:
            raise UserError("the mixture has no streams")
        if len({s.name for s in streams}) != len(streams):
            raise UserError("a language stands twice in the mixture under the same source")
        if settings.lanes % world_size:
            raise UserError(
                f"{settings.lanes} lanes cannot be shared evenly by {world_size} processes; "
                "start a number of processes that divides training.lanes"
            )
        self._streams, self._read, self._settings = streams, read, settings
        self._lanes = range(rank, settings.lanes, world_size)
        self._workers = min(workers, len(self._lanes))
        self._start_method = start_method
        self.fingerprint = _fingerprint(streams, settings)
        if state is not None:
            state.check(self.fingerprint, self._lanes)
            state.rows_a_lane()
        self.state = state

    def __iter__(self) -> Iterator[Batch]:
        rows = _Rows(self._streams, self._read, self._settings, self._lanes, self.state)
        loader: DataLoader[Part | MmbertError] = DataLoader(
            rows,
            batch_size=None,
            num_workers=self._workers,
            # Its own generator: torch would draw the workers' seed from the global one, and dropout after a resume
            # would differ.
            generator=torch.Generator(),
            multiprocessing_context=self._start_method if self._workers else None,
        )
        parts = iter(loader)
        try:
            while True:
                step: list[Part] = []
                for _ in range(max(1, self._workers)):
                    part = _next(parts)
                    if isinstance(part, MmbertError):
                        raise part
                    step.append(part)
                batch = make_batch(merge_parts(step), self._settings.max_seq_len, self.fingerprint)
                self.state = batch.state
                yield batch
        finally:
            # The traceback of an error keeps this frame: the workers would live as long as somebody holds the error.
            del parts


def _next(parts: Iterator[Part | MmbertError]) -> Part | MmbertError:
    try:
        with lost_worker_explained():
            return next(parts)
    except InfrastructureError as error:
        return error


@contextlib.contextmanager
def lost_worker_explained() -> Iterator[None]:
    """torch tells of a killed loader process by a signal: its error comes up wherever the main thread is.

    Raises InfrastructureError in its place.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise InfrastructureError(
            f"a loader process was killed ({str(error).strip()}); if memory ran out, lower training.workers or "
            "training.shuffle_tokens"
        ) from error


class _Rows(IterableDataset["Part | MmbertError"]):
    """The rows of each step from this process's lanes, for ever. An error to read is handed on as a value, since torch
    would bury its message in a traceback."""

    def __init__(
        self,
        streams: Sequence[StreamRows],
        read: ReadRow,
        settings: LoaderSettings,
        lanes: Sequence[int],
        state: LoaderState | None,
    ) -> None:
        self._streams, self._read, self._settings, self._lanes, self._state = streams, read, settings, lanes, state

    def __iter__(self) -> Iterator[Part | MmbertError]:
        worker = get_worker_info()
        own = self._lanes if worker is None else self._lanes[worker.id :: worker.num_workers]
        try:
            yield from self._parts(own)
        except MmbertError as error:
            yield error

    def _parts(self, numbers: Iterable[int]) -> Iterator[Part]:
        settings = self._settings
        schedule = Schedule(self._streams, settings.lane_settings())
        states = self._state.lanes if self._state is not None else {}
        lanes = {n: Lane(n, schedule, self._read, states.get(n)) for n in numbers}
        masker = Masker(settings.masking)
        emitted = next(iter(lanes.values())).emitted
        while True:
            rounds = self._rounds(emitted)
            rows, keys = [], []
            for _ in range(rounds):
                for number, lane in lanes.items():
                    keys.append(derive_key("mask", settings.seed, number, lane.emitted))
                    rows.append(lane.next_row())
            emitted += rounds
            yield _part(rows, keys, masker, len(self._streams), lanes)

    def _rounds(self, emitted: int) -> int:
        """Rows that each lane gives to the next batch."""
        settings = self._settings
        rows = settings.batch_rows(emitted * settings.lanes * settings.max_seq_len)
        if rows < 1 or rows % settings.lanes:
            raise UserError(f"a global batch of {rows} rows is not a positive multiple of the {settings.lanes} lanes")
        return rows // settings.lanes


def _part(rows: list[PackedRow], mask_keys: list[int], masker: Masker, streams: int, lanes: dict[int, Lane]) -> Part:
    lengths = np.concatenate([r.lengths for r in rows])
    row_segments = np.array([len(r.lengths) for r in rows])
    row_tokens = np.add.reduceat(lengths, np.cumsum(row_segments) - row_segments)
    tokens = np.concatenate([s for r in rows for s in r.segments])
    masked, targets, row_masked = _mask(tokens, row_tokens, mask_keys, masker)
    of_stream = np.concatenate([r.streams for r in rows])
    stream_of_token = np.repeat(of_stream.astype(np.int32), lengths)
    row_begins = np.cumsum(row_tokens) - row_tokens
    stream_tokens = np.zeros(streams, np.int64)
    np.add.at(stream_tokens, of_stream, lengths)
    return Part(
        tokens=tokens,
        segment_lengths=lengths,
        masked=masked,
        targets=targets,
        masked_streams=stream_of_token[masked + np.repeat(row_begins, row_masked)],
        row_tokens=row_tokens,
        row_segments=row_segments,
        row_masked=row_masked,
        stream_tokens=stream_tokens,
        states={number: lane.state() for number, lane in lanes.items()},
    )


def _mask(
    tokens: NDArray[np.uint32], row_tokens: NDArray[np.int64], keys: list[int], masker: Masker
) -> tuple[NDArray[np.int64], NDArray[np.uint32], NDArray[np.int64]]:
    """Mask rows that lie one after the other, in place, each by its own key; some at a time, which stay in the
    processor's cache. Returns positions within their rows, targets, and how many each row has."""
    ends = np.cumsum(row_tokens)
    found = []
    first = 0
    while first < len(keys):
        begin = int(ends[first] - row_tokens[first])
        last = max(first + 1, int(ends.searchsorted(begin + _MASK_BLOCK)))
        bits = [
            random_bits(key, count)
            for key, count in zip(keys[first:last], row_tokens[first:last].tolist(), strict=True)
        ]
        positions, targets = masker(tokens[begin : int(ends[last - 1])], np.concatenate(bits))
        edges = positions.searchsorted(ends[first:last] - begin)
        counts = np.diff(edges, prepend=0)
        starts = ends[first:last] - row_tokens[first:last] - begin
        found.append((positions - np.repeat(starts, counts), targets, counts))
        first = last
    masked, targets, counts = (np.concatenate(values) for values in zip(*found, strict=True))
    return masked, targets, counts


def _fingerprint(streams: Sequence[StreamRows], settings: LoaderSettings) -> str:
    """Names what the order of documents depends on. Masking and batch sizes may change between save and resume."""
    order = [settings.seed, settings.lanes, settings.max_seq_len, settings.packing, settings.buffer_tokens]
    listed = [[s.name, float(s.weight).hex(), s.row_begin, s.rows, s.tokens] for s in streams]
    return hashlib.sha256(json.dumps([order, listed]).encode()).hexdigest()[:32]
