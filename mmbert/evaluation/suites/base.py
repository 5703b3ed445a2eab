"""What a suite is: named tasks over data sets, each scored on its own, kept, and found again.

This module imports nothing heavy, so that a suite's tasks, languages and data can be listed at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from mmbert.evaluation.scores import Score
    from mmbert.evaluation.suites.data import DataAccess

Plain = str | int | float | bool | None | Sequence["Plain"] | Mapping[str, "Plain"]
"""Values that JSON holds."""
DEFAULT_SEEDS = 3
DEFAULT_BOOTSTRAP_SAMPLES = 1_000


@dataclass(frozen=True)
class DataSet:
    """A data set on the hub. `configs` are the subsets read; `card` is where its schema is described.

    A mirror is a folder <data root>/<repo>/ with the hub's files, as `hf download REPO --repo-type dataset --local-dir`
    leaves them.
    """

    repo: str
    configs: tuple[str, ...] = ("default",)
    revision: str = "main"
    card: str = ""


@dataclass(frozen=True)
class ModelFolder:
    """A model under evaluation: a Hugging Face folder that plain transformers load, its content digest, its name."""

    path: Path
    digest: str
    label: str


@dataclass(frozen=True)
class Setup:
    """What a task may use besides the model. `settings` are the task's own with the caller's changes.

    `kept` is a folder of this very piece of work (model, task, settings, data; not seeds, so keep by seed): what a task
    leaves there is found by its next attempt and nothing else. `scratch` is empty and gone afterwards.
    """

    data: DataAccess
    settings: Mapping[str, Any]
    seeds: tuple[int, ...]
    bootstrap_samples: int
    kept: Path
    scratch: Path
    device: str = "cpu"

    @property
    def shared(self) -> Path:
        """A folder of the model's, for what several of its tasks start from; names in it tell all it depends on."""
        return self.kept.parent / "shared"


@dataclass(frozen=True)
class Task:
    """One task of a suite. `version` is raised whenever its results change with everything else equal.

    `run` returns the scores by language and, where there are several languages, the one over all (`language` None).
    `verified` is "real data" once the task has run on its real data, else "fixtures": it ran on files of its schema.
    """

    name: str
    version: int
    data: tuple[DataSet, ...]
    languages: tuple[str, ...]
    metrics: tuple[str, ...]
    settings: Mapping[str, Any]
    run: Callable[[ModelFolder, Setup], list[Score]] = field(repr=False)
    verified: Literal["real data", "fixtures"] = "fixtures"


@dataclass(frozen=True)
class Suite:
    """`published` names the table of `published.json` that it is compared with; `columns` maps its tasks to columns.

    A column holds a task's first metric.
    """

    name: str
    title: str
    tasks: tuple[Task, ...]
    published: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)

    def task(self, name: str) -> Task:
        return next(task for task in self.tasks if task.name == name)


def data_sets(tasks: Iterable[Task]) -> dict[str, DataSet]:
    """The data sets of some tasks by repo, each with all the subsets that these tasks read."""
    found: dict[str, DataSet] = {}
    for data in (data for task in tasks for data in task.data):
        before = found[data.repo].configs if data.repo in found else ()
        found[data.repo] = replace(data, configs=tuple(dict.fromkeys((*before, *data.configs))))
    return found
