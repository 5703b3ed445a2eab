"""Tasks with changed settings, checked against the tasks' own before anything is run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mmbert.errors import UserError
from mmbert.evaluation.suites.base import Suite, Task
from mmbert.evaluation.suites.registry import chosen_tasks

_MAY_BE_ZERO = ("epochs", "stride", "held_out")
"""How the names of counts end that may be 0."""


def changed_tasks(suite: Suite, names: Sequence[str], changes: Mapping[str, Any], where: str = "--set ") -> list[Task]:
    """The chosen tasks with the changed settings. Raises UserError for a change that none of them takes.

    `changes` are by a setting's name, for every task that has it, or by `task.name`; `where` stands before it in
    messages.
    """
    tasks = list(chosen_tasks(suite, names))
    for key, value in changes.items():
        name, _, setting = key.rpartition(".")
        if name and name not in {task.name for task in tasks}:
            if name not in {task.name for task in suite.tasks}:
                raise UserError(f"{where}{key}: suite {suite.name} has no task '{name}'; it has {_names(suite.tasks)}")
            raise UserError(f"{where}{key}: task {name} is not run; of suite {suite.name} these are: {_names(tasks)}")
        meant = [i for i, task in enumerate(tasks) if name in ("", task.name) and setting in task.settings]
        if not meant:
            known = sorted({s for task in tasks if name in ("", task.name) for s in task.settings})
            raise UserError(
                f"{where}{key}: no task of suite {suite.name} that is run has this setting; "
                f"there are {', '.join(known) or 'none'}, for one task alone as TASK.SETTING"
            )
        for i in meant:
            checked = _like(where + key, value, tasks[i].settings[setting])
            tasks[i] = replace(tasks[i], settings={**tasks[i].settings, setting: checked})
    return tasks


def _names(tasks: Iterable[Task]) -> str:
    return ", ".join(task.name for task in tasks)


def _like(key: str, value: Any, default: Any) -> Any:
    """The value as the type of the setting's default. Raises UserError where it is none."""
    if isinstance(default, int | float) and isinstance(value, int | float) and value < 0 <= default:
        raise UserError(f"{key}={value!r}: it cannot be negative")
    if type(default) is int and value == 0 < default and not key.endswith(_MAY_BE_ZERO):
        raise UserError(f"{key}={value!r}: it must be above 0")
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(default, float) and isinstance(value, str):
        # YAML takes 2e-5 for a text.
        try:
            return float(value)
        except ValueError:
            pass
    if isinstance(default, list | tuple) and isinstance(value, list | tuple | int | float | str):
        items = list(value) if isinstance(value, list | tuple) else [value]
        if default and not items:
            raise UserError(f"{key}: an empty list; give one value at least, like {default!r}")
        return [_like(key, item, default[0]) for item in items] if default else items
    if default is not None and type(value) is not type(default):
        raise UserError(f"{key}={value!r}: it must be of the kind of {default!r}, the setting's default")
    return value
