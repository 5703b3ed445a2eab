"""What a checkpoint may hold that does harm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Call:
    """Pickled as a call, which loading without restriction makes."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call
