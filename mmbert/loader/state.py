"""The loader's state: what each lane has drawn, and which pieces of it still wait to be packed.

It holds references instead of tokens, so it is small: two numbers a stream, three a row with pieces waiting, one bit a
piece of such a row.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mmbert.errors import UserError

_MAGIC = b"mmbert-loader-1\n"


@dataclass(frozen=True)
class LaneState:
    """One lane between two rows of the batch.

    consumed: int64 [streams], tokens drawn from each stream.
    draws: int64 [streams], rows drawn from each stream.
    open_rows: int64 [rows, 3], drawn rows with pieces waiting: stream, position, tokens the lane had drawn before it.
    waiting: uint8, one bit a piece of these rows in order (numpy's packbits): 1 where it waits.
    emitted: rows of the batch made so far.
    """

    consumed: NDArray[np.int64]
    draws: NDArray[np.int64]
    open_rows: NDArray[np.int64]
    waiting: NDArray[np.uint8]
    emitted: int


@dataclass(frozen=True)
class LoaderState:
    """The state of some lanes after a batch. `fingerprint` names the order of documents that it belongs to."""

    fingerprint: str
    lanes: dict[int, LaneState] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The same bytes for the same state, whatever process made it."""
        lanes = [(number, self.lanes[number]) for number in sorted(self.lanes)]
        header = {
            "fingerprint": self.fingerprint,
            "lanes": [[n, s.emitted, len(s.consumed), len(s.open_rows), len(s.waiting)] for n, s in lanes],
        }
        arrays = [a.tobytes() for _, s in lanes for a in (s.consumed, s.draws, s.open_rows, s.waiting)]
        text = json.dumps(header, sort_keys=True).encode() + b"\n"
        return _MAGIC + zlib.compress(text + b"".join(arrays), level=6)

    @staticmethod
    def from_bytes(data: bytes) -> LoaderState:
        """Raises UserError where `data` is not a loader's state or is damaged."""
        try:
            if not data.startswith(_MAGIC):
                raise ValueError("it does not begin as one")
            content = zlib.decompress(data[len(_MAGIC) :])
            text, _, body = content.partition(b"\n")
            header = json.loads(text)
            lanes, offset = {}, 0
            for number, emitted, streams, rows, waiting in header["lanes"]:
                consumed = np.frombuffer(body, np.int64, streams, offset)
                draws = np.frombuffer(body, np.int64, streams, offset + 8 * streams)
                offset += 16 * streams
                open_rows = np.frombuffer(body, np.int64, 3 * rows, offset).reshape(rows, 3)
                offset += 24 * rows
                bits = np.frombuffer(body, np.uint8, waiting, offset)
                offset += waiting
                lanes[int(number)] = LaneState(consumed, draws, open_rows, bits, int(emitted))
        except (ValueError, KeyError, TypeError, zlib.error) as error:
            raise UserError(f"this is not a loader's state ({error}); resume from another checkpoint") from error
        return LoaderState(str(header["fingerprint"]), lanes)

    @staticmethod
    def merge(states: Iterable[LoaderState]) -> LoaderState:
        """The states of all ranks as one. Raises UserError where they belong to different runs, lanes or steps."""
        states = list(states)
        if len({s.fingerprint for s in states}) != 1:
            raise UserError("the ranks' loader states belong to different mixtures or settings; they cannot be merged")
        lanes: dict[int, LaneState] = {}
        for state in states:
            if twice := sorted(lanes.keys() & state.lanes.keys()):
                raise UserError(f"lanes {twice} stand in the loader states of two ranks; gather one state a rank")
            lanes |= state.lanes
        merged = LoaderState(states[0].fingerprint, lanes)
        merged.rows_a_lane()
        return merged

    def rows_a_lane(self) -> int:
        """Rows that each lane has emitted. Raises UserError where they differ: the states are of different steps."""
        emitted = sorted({s.emitted for s in self.lanes.values()})
        if len(emitted) > 1:
            raise UserError(f"the lanes' states are of different steps ({emitted[0]} to {emitted[-1]} rows emitted)")
        return emitted[0] if emitted else 0

    def check(self, fingerprint: str, lanes: Sequence[int]) -> None:
        """Raises UserError unless this state resumes these lanes of this order of documents."""
        if self.fingerprint != fingerprint:
            raise UserError(
                "the loader's state was saved with another mixture, seed, sequence length, packing or number of lanes; "
                "start the phase anew, or resume with the recipe that it was saved with"
            )
        if missing := [lane for lane in lanes if lane not in self.lanes]:
            raise UserError(f"the loader's state lacks lanes {missing}; merge the states of all ranks before saving")
