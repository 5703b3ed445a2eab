"""The suites by name. Each lives in a module of its own that is imported when the suite is asked for."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence

from mmbert.errors import UserError
from mmbert.evaluation.suites.base import Suite, Task
from mmbert.evaluation.suites.names import DEMO, EFFICIENCY

_MODULES = {
    DEMO: "demo_suite",
    "glue": "glue",
    "xtreme": "xtreme",
    "low-resource": "low_resource",
    "mteb-english": "mteb_english",
    "mteb-multilingual": "mteb_multilingual",
    "coir": "coir",
    EFFICIENCY: "efficiency",
}


def suite_names() -> tuple[str, ...]:
    return tuple(_MODULES)


def get_suite(name: str) -> Suite:
    """Raises UserError for a suite that there is not."""
    if name not in _MODULES:
        raise UserError(f"no suite '{name}'{_nearest(name, suite_names())}; there are {', '.join(_MODULES)}")
    suite: Suite = importlib.import_module(f"mmbert.evaluation.suites.{_MODULES[name]}").SUITE
    return suite


def chosen_tasks(suite: Suite, names: Sequence[str]) -> tuple[Task, ...]:
    """The tasks of these names in the suite's order; all without names. Raises UserError for one that it has not."""
    known = [task.name for task in suite.tasks]
    for name in names:
        if name not in known:
            raise UserError(f"suite {suite.name}: no task '{name}'{_nearest(name, known)}; it has {', '.join(known)}")
    return tuple(task for task in suite.tasks if not names or task.name in names)


def unverified_tasks(suite: Suite) -> tuple[str, ...]:
    """The tasks that ran on files of their data's schema, and never on the data themselves."""
    return tuple(task.name for task in suite.tasks if task.verified != "real data")


def _nearest(name: str, known: Sequence[str]) -> str:
    found = difflib.get_close_matches(name, known, n=1)
    return f" (is '{found[0]}' meant?)" if found else ""
