"""Airflow's LocalExecutor for a scheduler that may be killed: its running tasks are left to go on, not started again.

The original resets every task of a dead scheduler. Its worker processes live on, so each task would run twice until the
first one's heartbeat is refused, lose what it has done since its last checkpoint, and have one retry less; and workers
without a task would wait for ever, because each holds the writing end of the queue that they all read.
"""

from __future__ import annotations

import contextlib
import datetime
import multiprocessing
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import psutil
from airflow.executors import local_executor

from infra.local.settings import MARKER

if TYPE_CHECKING:
    from airflow.models.taskinstance import TaskInstance

# A task's process is there before Airflow writes down when the task began; a later one with its number is another's.
_SAME_START_SECONDS = 5.0


class AdoptingExecutor(local_executor.LocalExecutor):
    def try_adopt_task_instances(self, tis: Sequence[TaskInstance]) -> list[TaskInstance]:
        """Keep the tasks that still run; the scheduler resets those that are returned."""
        lost = []
        for task in tis:
            if task.state == "running" and is_supervised(task.pid, task.start_date):
                # It may have had no API server to tell that it lives.
                task.last_heartbeat_at = datetime.datetime.now(datetime.UTC)
            else:
                # The reset counts as a try, and it was no failure of the task.
                task.max_tries += 1
                lost.append(task)
        return lost

    def end(self) -> None:
        """Leave the running tasks to the next scheduler, also where this one ends by itself.

        The original waits until they are done, for hours perhaps: the scheduler does nothing more, and seems to run.
        """
        self._read_results()
        self.activity_queue.close()
        self.result_queue.close()
        for worker in self.workers.values():
            # Python joins at its exit every child that it knows.
            multiprocessing.process._children.discard(worker)  # type: ignore[attr-defined]

    def _spawn_worker(self) -> None:
        worker = multiprocessing.Process(
            target=work,
            kwargs={
                "logger_name": self.log.name,
                "input": self.activity_queue,
                "output": self.result_queue,
                "unread_messages": self._unread_messages,
                "team_conf": self.conf,
            },
        )
        worker.start()
        self.workers[worker.pid] = worker


def work(input: Any, **given: Any) -> None:  # noqa: A002 - the original's name
    """A worker that ends once the scheduler is gone and its own task is done."""
    input._writer.close()
    local_executor._run_worker(input=input, **given)


def is_supervised(pid: int | None, began: datetime.datetime | None) -> bool:
    """Whether a task's process runs, and the worker that reports for it."""
    if pid is None or began is None:
        return False
    with contextlib.suppress(psutil.Error, OSError):
        process = psutil.Process(pid)
        worker = process.parent()
        same = process.create_time() < began.timestamp() + _SAME_START_SECONDS
        return same and worker is not None and worker.environ().get(MARKER) == os.environ.get(MARKER)
    return False
