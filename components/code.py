"""Which code this is: a digest of our packages, so that a workflow and an image can tell whether they agree."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

_PROJECT = Path(__file__).resolve().parent.parent
_PACKAGES = ("mmbert", "components")


@functools.cache
def code_digest() -> str:
    """sha256 over the names and contents of the packages' files, in the order of their names."""
    digest = hashlib.sha256()
    for package in _PACKAGES:
        for path in sorted((_PROJECT / package).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                name = path.relative_to(_PROJECT).as_posix().encode()
                digest.update(name + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
