"""Which code this is: a digest of our packages, so that a workflow and an image can tell whether they agree."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
from pathlib import Path

from mmbert.errors import UserError

WANTED = "MMBERT_CODE"
"""In a step's environment: digest and commit of the code that its workflow was compiled of."""
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


def commit() -> str:
    """The commit that this code is at: MMBERT_COMMIT in an image, git's in a checkout, else empty."""
    if "MMBERT_COMMIT" in os.environ:
        return os.environ["MMBERT_COMMIT"]
    line = ["git", "-C", str(_PROJECT), "rev-parse", "HEAD"]
    return subprocess.run(line, capture_output=True, text=True, check=False).stdout.strip()


def identity() -> str:
    """What WANTED is set to for steps that have to be of this code."""
    return f"{code_digest()} {commit()}".strip()


def check_identity() -> None:
    """Raise UserError where this is other code than the workflow's."""
    digest, _, theirs = os.environ.get(WANTED, "").partition(" ")
    if digest and digest != code_digest():
        image = os.environ.get("MMBERT_IMAGE") or "this code"
        raise UserError(
            f"{image} is of {_named(commit())}, and the workflow was compiled of other code, of {_named(theirs)}; "
            "compile it with --image-tag of an image of its code, or build the image anew (`make images`)"
        )


def _named(commit_id: str) -> str:
    return f"commit {commit_id}" if commit_id else "an unknown commit"
