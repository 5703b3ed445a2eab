"""Imports Composer without what it does not need here: that takes 6 s of a processor instead of 10.

Composer imports torchmetrics, which imports scipy, matplotlib and transformers wherever they are installed; and itself
paramiko for SFTP. Both do without them, so they are not found while Composer is imported, and again afterwards.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import sys
from collections.abc import Iterator
from typing import Any

_NOT_NEEDED = ("scipy", "matplotlib", "transformers", "paramiko")


@contextlib.contextmanager
def not_found(*names: str) -> Iterator[None]:
    """Within, packages that are not imported yet are as if they were not installed."""
    asked: Any = importlib.import_module("lightning_utilities.core.imports")  # by torchmetrics
    modules: dict[str, Any] = sys.modules
    hidden = [name for name in names if name not in modules]
    known = asked._version

    def version(name: str) -> str:
        if name in hidden:
            raise importlib.metadata.PackageNotFoundError(name)
        return str(known(name))

    modules |= dict.fromkeys(hidden)
    asked._version = version
    try:
        yield
    finally:
        asked._version = known
        for name in hidden:
            del modules[name]


with not_found(*_NOT_NEEDED):
    import composer  # noqa: F401
