"""The sections `evaluation` and `release`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from mmbert.errors import UserError
from mmbert.evaluation.suites.base import DEFAULT_SEEDS, data_sets
from mmbert.evaluation.suites.names import DEMO, DEMO_METRICS, EFFICIENCY
from mmbert.evaluation.suites.registry import chosen_tasks, get_suite
from mmbert.evaluation.suites.settings import changed_tasks
from mmbert.recipe.schema.base import Name, Section, Share


class SuiteRun(Section):
    """How released models are measured on a suite, as `mmbert evaluate --suite` does it."""

    tasks: tuple[str, ...] = Field((), description="only these; without, all of the suite")
    seeds: int = Field(DEFAULT_SEEDS, gt=0, description="runs a task, where it fine-tunes")
    settings: dict[str, Any] = Field(
        default_factory=dict, description="tasks' settings, KEY: VALUE for all that have it, TASK: {KEY: VALUE} for one"
    )
    revisions: dict[str, str] = Field(
        default_factory=dict, description="branch, tag or commit on the hub by data set; without, that of its task"
    )
    pinned: dict[str, str] = Field(
        default_factory=dict,
        description="written by a run: the state of each data set that it found first, a commit or a mirror's digest",
    )

    def changes(self) -> dict[str, Any]:
        """The settings by KEY, then those by TASK.KEY: a task's own go first."""
        own = {name: value for name, value in self.settings.items() if isinstance(value, dict)}
        general = {name: value for name, value in self.settings.items() if name not in own}
        return general | {f"{name}.{key}": value for name, values in own.items() for key, value in values.items()}


class Evaluation(Section):
    """What models are measured on. The suite `demo` always runs, on every model; others on released ones."""

    suites: dict[Name, SuiteRun] = Field(default_factory=dict, description="suites besides `demo`")
    data_root: str = Field(
        "", description="folder or s3:// prefix of mirrored data sets, <root>/<owner>/<name>; without, the hub"
    )
    bits_per_byte_bytes_per_language: int = Field(2_000, gt=0)
    bootstrap_samples: int = Field(1_000, gt=0)
    retrieval_languages: int = Field(60, gt=1)
    language_id_sentences: int = Field(
        60, gt=1, description="sentences a language for the linear probe, half to train it"
    )
    intent_languages: int = Field(12, gt=0)
    intent_sentences: int = Field(160, gt=10, description="sentences a language, split by template")

    @model_validator(mode="after")
    def _known(self) -> Self:
        for name, run in self.suites.items():
            if name == DEMO:
                raise ValueError(f"suites.{name}: it always runs; its settings stand beside `suites`")
            if name == EFFICIENCY:
                raise ValueError(
                    f"suites.{name}: its figures are of the machine that measures them, so no gate can compare them; "
                    f"run `mmbert evaluate MODEL --suite {name}`"
                )
            try:
                tasks = changed_tasks(get_suite(name), run.tasks, run.changes(), f"suites.{name}.settings.")
            except UserError as error:
                raise ValueError(f"suites.{name}: {error}") from error
            self._check_revisions(name, run, list(data_sets(tasks)))
        return self

    def _check_revisions(self, name: str, run: SuiteRun, read: list[str]) -> None:
        for repo in run.revisions:
            if repo not in read:
                raise ValueError(
                    f"suites.{name}.revisions: no task that is run reads {repo}; they read {', '.join(read)}"
                )
            if self.data_root:
                raise ValueError(
                    f"suites.{name}.revisions: with data_root the mirror's own files count; remove revisions or it"
                )

    def metrics(self, suite: str) -> Mapping[str, tuple[str, ...]]:
        """The metrics of the tasks of a suite that is measured, the first one foremost."""
        if suite == DEMO:
            return DEMO_METRICS
        return {task.name: task.metrics for task in chosen_tasks(get_suite(suite), self.suites[suite].tasks)}

    def measured(self) -> list[str]:
        """The suites that a released model is measured on."""
        return [DEMO, *self.suites]


class Gate(Section):
    """What a candidate must reach before it becomes champion (docs/gate.md).

    Tasks are named SUITE/TASK, or SUITE/TASK/METRIC where the first metric is not meant; SUITE alone is the mean of its
    tasks. Drops are in the metric's unit for shares and correlations (0.01 is one point), elsewhere a share of the
    champion's value.
    """

    minimum: dict[str, float] = Field(default_factory=dict, description="the least that passes, where more is better")
    maximum: dict[str, float] = Field(default_factory=dict, description="the most that passes, where less is better")
    largest_drop: Share = Field(0.01, description="of a task's score against the champion's")
    largest_drops: dict[str, Share] = Field(
        default_factory=dict, description="by SUITE or SUITE/TASK, instead of largest_drop"
    )
    largest_language_drop: Share = Field(0.05, description="of one language's score in a task")
    largest_language_drops: dict[str, Share] = Field(
        default_factory=dict, description="by SUITE or SUITE/TASK, instead of largest_language_drop"
    )
    significance: float = Field(
        0.05, gt=0, lt=1, description="a drop counts where its p-value is below; over languages corrected by Holm"
    )

    @model_validator(mode="after")
    def _named(self) -> Self:
        longest = {"minimum": 3, "maximum": 3, "largest_drops": 2, "largest_language_drops": 2}
        for key, parts in longest.items():
            for name, limit in getattr(self, key).items():
                if not re.fullmatch(rf"[^/\s]+(/[^/\s]+){{0,{parts - 1}}}", name):
                    form = "SUITE, SUITE/TASK or SUITE/TASK/METRIC" if parts == 3 else "SUITE or SUITE/TASK"
                    raise ValueError(f"{key}: '{name}' is not of the form {form}")
                if not math.isfinite(limit):
                    raise ValueError(f"{key}.{name} is {limit}; it must be a finite number")
        for name in self.minimum.keys() & self.maximum.keys():
            raise ValueError(f"minimum and maximum both name '{name}'; a metric is better one way only")
        return self

    def named(self) -> list[tuple[str, list[str], float]]:
        """(key, the parts of its name, limit) of each bound: [suite], [suite, task] or [suite, task, metric]."""
        keys = ("minimum", "maximum", "largest_drops", "largest_language_drops")
        return [(key, name.split("/"), limit) for key in keys for name, limit in getattr(self, key).items()]


class Release(Section):
    model_name: Name
    alias: Literal["candidate"] = "candidate"
    license: str = Field("mit", min_length=1, description="of the model, in its card, as the hub names licenses")
    parity_tolerance: float = Field(1e-4, gt=0)
    gate: Gate = Gate()
