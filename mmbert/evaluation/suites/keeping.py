"""Pieces of a task's work that are kept between attempts: written whole or not at all, found by the next attempt."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = Mapping[str, npt.NDArray[Any]]


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that nobody, not even after a kill, sees a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    incoming = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    incoming.write_bytes(content)
    incoming.replace(path)


def kept_json(path: Path, make: Callable[[], Any]) -> Any:
    """The plain value in `path`, made and kept there unless it is there already."""
    if not path.is_file():
        write_whole(path, json.dumps(make(), ensure_ascii=False).encode())
    return json.loads(path.read_text("utf-8"))


def kept_arrays(path: Path, make: Callable[[], Arrays]) -> dict[str, npt.NDArray[Any]]:
    """The arrays in `path` (.npz), made and kept there unless they are there already."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        incoming = path.with_name(f".{uuid.uuid4().hex[:8]}.npz")
        np.savez_compressed(incoming, **dict(make()))  # type: ignore[arg-type]
        incoming.replace(path)
    with np.load(path, allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


def kept_folder(folder: Path, make: Callable[[Path], None]) -> Path:
    """The folder, filled by `make` unless it is there already. Of two that make it at once one wins; they are alike."""
    if not folder.is_dir():
        incoming = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
        incoming.mkdir(parents=True)
        try:
            make(incoming)
            incoming.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
    return folder
