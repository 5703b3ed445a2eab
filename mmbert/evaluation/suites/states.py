"""States of a data set in the cache, side by side in its folder: what nothing has used for a week goes."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from pathlib import Path

_UNUSED_SECONDS = 7 * 24 * 3600.0


def in_use(state: Path) -> Path:
    """Marks a state as used now, and drops its siblings that were last used long ago.

    Not all siblings: another process may be reading one, and marks it at each reading.
    """
    state.mkdir(parents=True, exist_ok=True)
    os.utime(state)
    for other in state.parent.iterdir():
        # Another process may drop it at the same time.
        with contextlib.suppress(OSError):
            if time.time() - other.stat().st_mtime > _UNUSED_SECONDS:
                # Gone in one step: nobody takes what is left of it for a whole one.
                gone = other.rename(other.with_name(f".{uuid.uuid4().hex}"))
                shutil.rmtree(gone, ignore_errors=True)
    return state
