"""Runs a suite's tasks on a model, each once: what was done before, with all that it depends on equal, is found.

Below the cache folder:

    <model digest>/<suite>.<task>-<key>/            what a task keeps (`Setup.kept`): predictions, finished seeds
    <model digest>/shared/                          what several tasks of the model share (`Setup.shared`)
    <model digest>/scores/<suite>.<task>-<key>.json finished scores

The first key covers task, version, settings and data revision; the second one seeds and bootstrap samples too. So
another seed adds to the seeds there are, and a killed evaluation goes on with what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmbert import progress
from mmbert.artifacts import digest_json
from mmbert.errors import UserError
from mmbert.evaluation.results.scorecard import Scorecard
from mmbert.evaluation.results.store import SCORES, to_parquet
from mmbert.evaluation.scores import Score
from mmbert.evaluation.suites.base import DEFAULT_BOOTSTRAP_SAMPLES, DEFAULT_SEEDS, ModelFolder, Setup, Suite, Task
from mmbert.evaluation.suites.data import DataAccess
from mmbert.evaluation.suites.keeping import write_whole
from mmbert.evaluation.suites.settings import changed_tasks
from mmbert.places import scratch_folder
from mmbert.tables import now

PARQUET = "scores.parquet"
_FIRST_SEED = 17


def first_seeds(count: int) -> tuple[int, ...]:
    """As many seeds: always the same ones, so that more of them add to those that are done."""
    return tuple(range(_FIRST_SEED, _FIRST_SEED + count))


@dataclass(frozen=True)
class Options:
    """How a suite is run. `changes` replace settings: by a setting's name, in every task that has it, or `task.name`.

    `device` is torch's name of it; empty for a GPU where there is one.
    """

    tasks: tuple[str, ...] = ()
    seeds: tuple[int, ...] = first_seeds(DEFAULT_SEEDS)
    bootstrap_samples: int = DEFAULT_BOOTSTRAP_SAMPLES
    changes: Mapping[str, Any] = field(default_factory=dict)
    device: str = ""


@dataclass(frozen=True)
class _Work:
    """A task with its settings, and the names of its work and of its scores."""

    task: Task
    settings: dict[str, Any]
    revision: str
    work: str
    scores: str


def evaluate(
    model: ModelFolder,
    suite: Suite,
    out: Path,
    *,
    kind: str,
    data: DataAccess,
    cache: Path,
    options: Options,
    commit: str = "",
    say: Callable[[str], None] = print,
) -> list[Score]:
    """Run the chosen tasks and write `scores.json` and `scores.parquet` into `out`, when all have succeeded.

    `kind` is that of a scorecard, `commit` the code's.

    Raises UserError for a task or setting that the suite has not, and for data that are missing or of another schema,
    before any task is run where that can be known; InfrastructureError where data cannot be fetched.
    """
    scores = run_tasks(model, suite, data=data, cache=cache, options=options, say=say)
    card = Scorecard(model.label, model.digest, kind, suite.name, tuple(scores), when=now(), commit=commit)
    write_whole(out / PARQUET, to_parquet(card))
    write_whole(out / SCORES, (json.dumps(card.to_json(), indent=1, ensure_ascii=False) + "\n").encode())
    return scores


def run_tasks(
    model: ModelFolder,
    suite: Suite,
    *,
    data: DataAccess,
    cache: Path,
    options: Options,
    say: Callable[[str], None] = print,
) -> list[Score]:
    """The scores of the chosen tasks, in the suite's order. Raises as `evaluate` does."""
    place = own_folder(model, cache)
    scores: list[Score] = []
    planned = _planned(model, suite, data, options)
    with progress.shown(f"evaluation, {suite.name}", len(planned), "tasks") as advance:
        for work in planned:
            finished = place / _scores_file(work)
            if finished.is_file():
                found = [Score.from_json(score) for score in json.loads(finished.read_text("utf-8"))]
                say(f"{suite.name} {work.task.name}: found done")
            else:
                found = _run(model, work, place, data, options)
                write_whole(finished, json.dumps([score.to_json() for score in found]).encode())
                say(f"{suite.name} {work.task.name}: {_overall(found)}")
            scores += found
            advance(1)
    return scores


def own_folder(model: ModelFolder, cache: Path) -> Path:
    """Where a model's work lies."""
    return cache / model.digest[:32]


def own_work(model: ModelFolder, suite: Suite, data: DataAccess, options: Options) -> list[str]:
    """The folders and files below `own_folder` that the chosen tasks keep. Raises as `evaluate` does."""
    return [name for work in _planned(model, suite, data, options) for name in (work.work, _scores_file(work))]


def data_revision(task: Task, data: DataAccess) -> str:
    """One text for the states of all the data sets of a task; empty where it reads none. Raises as `data` does."""
    revisions = {d.repo: data.revision(d) for d in task.data}
    if len(revisions) < 2:
        return next(iter(revisions.values()), "")
    return ",".join(f"{repo}@{revision[:12]}" for repo, revision in sorted(revisions.items()))


def _scores_file(work: _Work) -> str:
    return f"scores/{work.scores}.json"


def _planned(model: ModelFolder, suite: Suite, data: DataAccess, options: Options) -> list[_Work]:
    """All are planned before the first one is run: missing data are seen at once."""
    tasks = changed_tasks(suite, options.tasks, options.changes)
    return [_plan(model, suite, task, data, options) for task in tasks]


def _plan(model: ModelFolder, suite: Suite, task: Task, data: DataAccess, options: Options) -> _Work:
    revision = data_revision(task, data)
    name = f"{suite.name}.{task.name}"
    settings = dict(task.settings)
    covered = [name, task.version, model.digest, settings, revision]
    work = digest_json(covered)[:16]
    scores = digest_json([covered, list(options.seeds), options.bootstrap_samples])[:16]
    return _Work(task, settings, revision, f"{name}-{work}", f"{name}-{scores}")


def _run(model: ModelFolder, work: _Work, place: Path, data: DataAccess, options: Options) -> list[Score]:
    kept = place / work.work
    kept.mkdir(parents=True, exist_ok=True)
    with scratch_folder() as scratch:
        setup = Setup(
            data=data,
            settings=work.settings,
            seeds=options.seeds,
            bootstrap_samples=options.bootstrap_samples,
            kept=kept,
            scratch=scratch,
            device=options.device or default_device(),
        )
        found = work.task.run(model, setup)
    return [score if score.data_revision else replace(score, data_revision=work.revision) for score in found]


def check_device(name: str) -> None:
    """Raises UserError for a device that torch does not have here."""
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"--device {name}: it cannot be used here ({reason}); leave it out, or give cpu") from error


def default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _overall(scores: Sequence[Score]) -> str:
    shown = [s for s in scores if s.language is None] or scores
    if not shown:
        return "no score, since the data have nothing for it"
    return ", ".join(f"{s.metric} {s.value:.4f} ({s.low:.4f}-{s.high:.4f})" for s in shown)
