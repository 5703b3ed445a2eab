"""Many small requests to a store at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_AT_ONCE = 10  # connections that an S3 client keeps
_BETWEEN = 100


def at_once(action: Callable[[T], R], items: Sequence[T], go_on: Callable[[], None]) -> list[R]:
    """`action` of each item, in order, ten at once; `go_on` is called before each hundred."""
    found: list[R] = []
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for first in range(0, len(items), _BETWEEN):
            go_on()
            found += pool.map(action, items[first : first + _BETWEEN])
    return found
