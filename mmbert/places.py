"""Where this machine keeps files of ours: a cache that lasts, and scratch folders that do not."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_SCRATCH = "mmbert-scratch-"


def cache_folder() -> Path:
    """MMBERT_CACHE, or `~/.cache/mmbert`. Everything in it can be made again."""
    return Path(os.environ.get("MMBERT_CACHE", Path.home() / ".cache" / "mmbert"))


def scratch_parent() -> Path:
    """Where scratch folders are made: MMBERT_SCRATCH, or the system's temporary folder."""
    return Path(os.environ.get("MMBERT_SCRATCH") or tempfile.gettempdir())


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty folder below `scratch_parent`; gone afterwards.

    Whoever uses one holds its lock, so that those that killed processes left are known, and deleted by the next.
    """
    parent = scratch_parent()
    parent.mkdir(parents=True, exist_ok=True)
    _sweep(parent)
    while True:
        with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=parent) as name, _locked(Path(name)) as there:
            if there:
                yield Path(name)
                return


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Whether the folder is this process's. It is not where another one swept it before it was locked."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        yield False
        return
    try:
        with contextlib.suppress(OSError):  # a file system without locks, where nothing is ever swept
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield folder.exists()
    finally:
        os.close(descriptor)


@functools.cache
def _sweep(parent: Path) -> None:
    """Delete the scratch folders that no process uses; once a process."""
    for folder in parent.glob(f"{_SCRATCH}*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(descriptor).st_uid == os.geteuid():
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)
