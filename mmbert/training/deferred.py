"""Packages that Composer imports whole for a name or two: half of a trainer's start, and of its restart.

Their `__init__` runs when another name of theirs is first asked for; their modules can be imported before that.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


def _defined_in(module: str, name: str) -> Any:
    return getattr(import_module(module), name)


_Names = Mapping[str, Callable[[], Any]]

_PACKAGES: Mapping[str, _Names] = {
    # Its engine asks each time whether one of its algorithms is one of these.
    "composer.algorithms": {
        name: partial(_defined_in, f"composer.algorithms.{module}", name)
        for module, name in {
            "selective_backprop": "SelectiveBackprop",
            "low_precision_layernorm": "LowPrecisionLayerNorm",
        }.items()
    },
    "mcli": {},
    "torchmetrics": {
        "_logger": partial(logging.getLogger, "torchmetrics"),
        "Metric": partial(_defined_in, "torchmetrics.utilities.checks", "Metric"),
        "MetricCollection": partial(_defined_in, "torchmetrics.collections", "MetricCollection"),
    },
    "torchmetrics.classification": {
        "MulticlassAccuracy": partial(_defined_in, "torchmetrics.classification.accuracy", "MulticlassAccuracy"),
    },
    "torchmetrics.functional": {},
}
"""The packages, and where what Composer wants of them is found."""


@contextlib.contextmanager
def signals_kept() -> Iterator[None]:
    """For Composer's import, which takes SIGTERM and SIGINT over: a stopped run would end as a failed one."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            with contextlib.suppress(ValueError):  # not in the main thread, where Composer could not either
                signal.signal(number, handler)


def install() -> None:
    """From here on these packages are imported so, where they are not imported yet."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        names = _PACKAGES.get(fullname)
        spec = None if names is None else PathFinder.find_spec(fullname, path)
        if names is not None and spec is not None and spec.loader is not None:
            spec.loader = _Deferred(spec.loader, names)
        return spec


class _Deferred(Loader):
    def __init__(self, loader: Loader, names: _Names) -> None:
        self._loader, self._names = loader, names

    def exec_module(self, module: ModuleType) -> None:
        def get(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(f"module '{module.__name__}' has no attribute '{name}'")
            if name in self._names:
                return self._names[name]()
            del module.__getattr__
            self._loader.exec_module(module)
            return getattr(module, name)

        module.__getattr__ = get  # type: ignore[method-assign]
