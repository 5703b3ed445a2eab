"""The stack's services killed in the middle of real DAG runs, DAG runs that race, a retry beside its predecessor."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from tests.chaos.dag_runs import Watched, kill_everything, kill_service, small_recipe, undisturbed, watched
from tests.chaos.matrix import Fault, Setting, Trial
from tests.killing import wait_until_gone
from tests.local_stack import LocalStack

_RESUME_SECONDS = 30.0
_CORES = 4


@dataclass(frozen=True)
class Kill:
    """Something killed once a task's component runs, or has trained so many batches."""

    what: str
    kill: Callable[[LocalStack], None]
    task: str
    batch: int = 0


def _service(name: str, task: str, batch: int = 0) -> Kill:
    return Kill(name, lambda stack: kill_service(stack, name), task, batch)


def _scheduler(task: str, batch: int = 0) -> Kill:
    """The scheduler alone: its workers and tasks live on."""
    return Kill("the scheduler", lambda stack: kill_service(stack, "airflow-scheduler", group=False), task, batch)


def _scheduler_and_workers(task: str, batch: int = 0) -> Kill:
    return _service("airflow-scheduler", task, batch)


def _power(task: str, batch: int = 0) -> Kill:
    return Kill("everything", kill_everything, task, batch)


# One a task: many tasks are shorter than the restart of a service.
_SCHEDULER = (
    _scheduler("recipe"),
    _scheduler("curate"),
    _scheduler_and_workers("tokenize"),
    _scheduler("train_pretrain", 3),
    _scheduler_and_workers("train_extend", 2),
    _scheduler("train_decay", 1),
    _scheduler_and_workers("convert"),
    _scheduler("evaluate_model"),
)
_SERVERS = (
    _service("airflow-api", "curate"),
    _service("s3", "tokenizer"),
    _service("airflow-dags", "tokenize"),
    _service("mlflow", "mixture_pretrain"),
    _service("s3", "train_pretrain", 2),
    _service("mlflow", "train_extend", 2),
    _service("airflow-api", "train_decay", 1),
    _service("airflow-dags", "merge"),
    _service("s3", "convert"),
    _service("mlflow", "evaluate_model"),
    _service("airflow-api", "report"),
    _service("airflow-dags", "register"),
)
_POWER = (_power("tokenize"), _power("train_pretrain", 5), _power("train_extend", 2), _power("evaluate_model"))
# MLflow, which takes the longest to start, with the others alone.
_QUICK = (
    _service("s3", "curate"),
    _service("airflow-dags", "tokenize"),
    _scheduler("train_pretrain", 3),
    _service("airflow-api", "train_extend", 2),
    _power("convert"),
)


def _scheduler_kills(setting: Setting) -> Iterator[Trial]:
    trials = {"quick": _QUICK} if setting.quick else {"alone": _SCHEDULER, "power": _POWER}
    for name, kills in trials.items():
        yield Trial(f"scheduler/{name}", partial(_one_run, setting, name, kills), len(kills))


def _server_kills(setting: Setting) -> Iterator[Trial]:
    if not setting.quick:
        yield Trial("servers/each", partial(_one_run, setting, "each", _SERVERS), len(_SERVERS))


def _one_run(setting: Setting, name: str, kills: Sequence[Kill]) -> float:
    """One DAG run with these kills.

    Returns the most seconds from where a scheduler was back to where the run went on; of the other services, without
    which it goes on, from the kill to where all are back.
    """
    schedulers, others = [0.0], [0.0]
    with _small(setting, name) as (run, overrides):
        run.trigger(overrides)
        for kill in kills:
            run.await_task(kill.task, kill.batch)
            scheduler, began = run.stack.pid("airflow-scheduler"), time.monotonic()
            kill.kill(run.stack)
            kept = run.components()
            run.up()
            others.append(time.monotonic() - began)
            if run.stack.pid("airflow-scheduler") != scheduler:
                schedulers.append(run.goes_on(kept))
    return max(schedulers) or max(others)


def _races(setting: Setting) -> Iterator[Trial]:
    if not setting.quick:
        yield Trial("dag-races/two DAG runs", partial(_two_runs, setting))
        yield Trial("dag-races/a retry beside its predecessor", partial(_overlapping, setting))


def _two_runs(setting: Setting) -> float:
    """Both started at once, so that each wants what the other makes."""
    with _small(setting, "two") as (run, overrides):
        for _ in range(2):
            run.trigger(overrides)
    return 0.0


def _overlapping(setting: Setting) -> float:
    """A training that Airflow holds failed goes on beside its retry, to its end; who reports for it cannot hear."""
    with _small(setting, "overlapping") as (run, overrides):
        run_id = run.trigger(overrides)
        run.await_task("train_pretrain", 2)
        (first,) = run.components("train_pretrain")
        supervisor = first.parents()[1]
        for process in (first, supervisor):
            process.suspend()
        run.try_again(run_id, "train_pretrain")
        run.await_second("train_pretrain")
        first.resume()
        wait_until_gone([first], 600)
        supervisor.resume()
    return 0.0


@contextmanager
def _small(setting: Setting, name: str) -> Iterator[tuple[Watched, list[str]]]:
    """A fresh stack and the recipe's overrides; what is triggered within ends well, and nothing is lost."""
    overrides = small_recipe(setting)
    with ThreadPoolExecutor(1) as pool:
        expected = pool.submit(undisturbed, setting)
        with watched(setting.folder / name) as run:
            run.prepare(_CORES)
            yield run, overrides
            run.await_end()
            run.check(expected.result())


SCHEDULER = Fault(
    "scheduler",
    "Airflow's scheduler killed in mid-run: alone, with its workers, with everything (power cut)",
    _scheduler_kills,
    ("dag_resume_seconds", _RESUME_SECONDS),
)
SERVERS = Fault("servers", "API server, DAG processor, S3, MLflow killed in mid-run", _server_kills)
RACES = Fault("dag-races", "two DAG runs for the same artifacts; a retry beside its still-running predecessor", _races)
