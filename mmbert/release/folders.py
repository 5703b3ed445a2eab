"""Folders that appear whole or not at all, on this machine or in S3."""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from mmbert import storage
from mmbert.artifacts import MANIFEST
from mmbert.errors import UserError
from mmbert.places import scratch_folder
from mmbert.release.names import CONFIG


@contextlib.contextmanager
def new_folder(out: str) -> Iterator[tuple[Path, Path]]:
    """A folder whose content becomes `out` when the block ends well, and one for whatever else is needed meanwhile.

    Raises UserError where `out` holds anything.
    """
    if _holds_anything(out):
        raise UserError(f"{out}: there are files or folders here already; choose a new folder, or empty this one")
    with scratch_folder() as scratch:
        if storage.is_s3(out):
            folder = scratch / "made"
            yield folder, scratch
            for path in _what_makes_it_whole_last(folder):
                storage.upload(storage.join(out, path.name), path)
            return
        target = Path(out).resolve()
        stands = target.is_dir()
        target.parent.mkdir(parents=True, exist_ok=True)
        # A folder that stands is filled, not replaced: it can be a mount, or where the user's shell is.
        made = (target if stands else target.parent) / f".{target.name}.{uuid.uuid4().hex[:8]}"
        try:
            yield made, scratch
            if stands:
                for path in _what_makes_it_whole_last(made):
                    path.replace(target / path.name)
            else:
                made.replace(target)
        finally:
            shutil.rmtree(made, ignore_errors=True)


def _holds_anything(out: str) -> bool:
    if storage.is_s3(out):
        return bool(storage.list_files(out))
    path = Path(out)
    return path.exists() and (not path.is_dir() or any(path.iterdir()))


def _what_makes_it_whole_last(folder: Path) -> list[Path]:
    """Its files; nothing loads a model's folder without its configuration, or an artifact without its manifest."""
    return sorted(folder.iterdir(), key=lambda path: path.name in {CONFIG, MANIFEST})
