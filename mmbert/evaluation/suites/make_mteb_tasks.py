"""Writes `mteb_tasks.csv`: the tasks of three of mteb's benchmarks, for listing suites without importing mteb.

python -m mmbert.evaluation.suites.make_mteb_tasks
"""

from __future__ import annotations

import csv
import sys
import warnings
from collections.abc import Iterator
from typing import Any, TextIO

from mmbert.evaluation.suites.mteb_tasks import BENCHMARKS, COLUMNS, TABLE, language_code


def write_table(out: TextIO) -> None:
    """A row for each task of each suite, in mteb's order."""
    import mteb

    rows = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    rows.writeheader()
    for suite, benchmark in BENCHMARKS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tasks = mteb.get_benchmark(benchmark).tasks
        rows.writerows(_row(suite, task) for task in tasks)


def _row(suite: str, task: Any) -> dict[str, str]:
    return {
        "suite": suite,
        "task": task.metadata.name,
        "type": task.metadata.type,
        "repo": task.metadata.dataset["path"],
        "revision": task.metadata.dataset["revision"],
        "metric": task.metadata.main_score,
        "languages": " ".join(sorted(set(_languages(task)))),
    }


def _languages(task: Any) -> Iterator[str]:
    for subset in task.hf_subsets:
        for language in task.metadata.hf_subsets_to_langscripts[subset]:
            yield language_code(language)


if __name__ == "__main__":
    with TABLE.open("w", encoding="utf-8") as stream:
        write_table(stream)
    sys.stdout.write(f"{TABLE}\n")
