"""Random bits that are a pure function of a key: no generator runs on, so nothing has to be saved or replayed.

Only raw Philox output is used: numpy guarantees its bits, but not the streams of Generator's methods, so results do
not change with numpy's version.
"""

from __future__ import annotations

import hashlib
import threading

import numpy as np
from numpy.typing import NDArray

_LOW = (1 << 64) - 1


def derive_key(*parts: str | int) -> int:
    """A 128-bit key from a label and the numbers and names that it stands for."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


class _Philox(threading.local):
    """One generator a thread, set anew for each key: building one costs ten times as much as setting it."""

    def __init__(self) -> None:
        self.generator = np.random.Philox(key=0)
        self.state = self.generator.state

    def bits(self, key: int, count: int) -> NDArray[np.uint64]:
        inner = self.state["state"]
        inner["key"][:] = (key & _LOW, key >> 64)
        inner["counter"][:] = 0
        self.state["buffer_pos"] = 4  # nothing left over from the last key
        self.generator.state = self.state
        return self.generator.random_raw(count)


_philox = _Philox()


def random_bits(key: int, count: int) -> NDArray[np.uint64]:
    """`count` independent uniform 64-bit words, the Philox4x64-10 output for this 128-bit key from counter 0."""
    return _philox.bits(key, count)
