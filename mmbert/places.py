"""Where this machine keeps files of ours: a cache that lasts, and scratch folders that do not."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def cache_folder() -> Path:
    """MMBERT_CACHE, or `~/.cache/mmbert`. Everything in it can be made again."""
    return Path(os.environ.get("MMBERT_CACHE", Path.home() / ".cache" / "mmbert"))


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty folder below MMBERT_SCRATCH, or the system's temporary folder; gone afterwards."""
    parent = os.environ.get("MMBERT_SCRATCH")
    if parent:
        Path(parent).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mmbert-", dir=parent) as folder:
        yield Path(folder)
