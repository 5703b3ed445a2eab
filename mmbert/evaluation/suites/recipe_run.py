"""A suite as a recipe declares it, run on one model."""

from __future__ import annotations

import functools
from pathlib import Path

from mmbert import storage
from mmbert.evaluation.scores import Score
from mmbert.evaluation.suites.base import ModelFolder
from mmbert.evaluation.suites.mirror import open_data
from mmbert.evaluation.suites.registry import chosen_tasks, get_suite
from mmbert.evaluation.suites.runner import Options, first_seeds, own_folder, own_work, run_tasks
from mmbert.evaluation.suites.shared_work import shared_work
from mmbert.recipe.schema import Evaluation


def recipe_scores(model: ModelFolder, name: str, settings: Evaluation, cache: Path, kept: str) -> list[Score]:
    """The scores of suite `name` of `settings`. Finished work lies in `cache` and below the prefix `kept`.

    Raises as `run_tasks` does; UserError where a mirror's files are not those that the run has pinned.
    """
    suite, run = get_suite(name), settings.suites[name]
    tasks = chosen_tasks(suite, run.tasks)
    data = open_data(tasks, settings.data_root, cache, run.pinned)
    options = Options(tuple(run.tasks), first_seeds(run.seeds), settings.bootstrap_samples, run.changes())
    place = cache / "evaluation"
    folder, names = own_folder(model, place), own_work(model, suite, data, options)
    with shared_work(folder, storage.join(kept, folder.name), names):
        say = functools.partial(print, flush=True)
        return run_tasks(model, suite, data=data, cache=place, options=options, say=say)
