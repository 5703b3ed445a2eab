"""One DAG run seen through Airflow's REST API: trigger it, read its tasks' states, find what failed."""

from __future__ import annotations

import datetime
import graphlib
import time
from dataclasses import dataclass
from typing import Any

from infra.local.airflow_api import AirflowApi, NotFoundError, quote
from mmbert.errors import InfrastructureError, MmbertError

_PARSE_SECONDS = 90.0
# What Airflow writes around a task's own lines.
_NOISE = (
    "::group::",
    "::endgroup::",
    "DAG bundles loaded",
    "Filling up the DagBag",
    "Worker startup parse",
    "Found credentials",
)


@dataclass(frozen=True)
class TaskState:
    task_id: str
    map_index: int
    state: str
    """Airflow's state; `up_for_retry` while it waits for another attempt, `none` before it is scheduled."""
    label: str
    seconds: float | None
    try_number: int
    ended: str

    @property
    def name(self) -> str:
        if self.map_index < 0:
            return self.task_id
        return f"{self.task_id} [{self.label or self.map_index}]"


class DagRun:
    def __init__(self, api: AirflowApi, dag_id: str, run_id: str, order: dict[str, int]) -> None:
        self.api = api
        self.dag_id = dag_id
        self.run_id = run_id
        self._order = order
        self._path = f"/dags/{dag_id}/dagRuns/{quote(run_id)}"

    @property
    def page(self) -> str:
        return f"{self.api.url}/dags/{self.dag_id}/runs/{quote(self.run_id)}"

    def state(self) -> str:
        return str(self.api.get(self._path)["state"])

    def tasks(self) -> list[TaskState]:
        """All task instances in the order of the graph."""
        found = [_task_state(raw) for raw in self.api.pages(f"{self._path}/taskInstances", "task_instances")]
        return sorted(found, key=lambda t: (self._order.get(t.task_id, len(self._order)), t.map_index))

    def xcom(self, task_id: str, key: str = "return_value", map_index: int = -1) -> Any:
        """A value that a task left; None where there is none."""
        try:
            path = f"{self._path}/taskInstances/{task_id}/xcomEntries/{key}"
            return self.api.get(path, map_index=map_index)["value"]
        except NotFoundError:
            return None

    def log(self, task: TaskState) -> list[str]:
        """The lines of a task's last attempt."""
        path = f"{self._path}/taskInstances/{task.task_id}/logs/{max(1, task.try_number)}"
        content = self.api.get(path, map_index=task.map_index, full_content="true").get("content") or []
        lines = [entry["event"] if isinstance(entry, dict) else str(entry) for entry in content]
        return [line for line in lines if not line.startswith(_NOISE)]

    def task_page(self, task: TaskState) -> str:
        mapped = f"/mapped/{task.map_index}" if task.map_index >= 0 else ""
        return f"{self.page}/tasks/{task.task_id}{mapped}"


def trigger(api: AirflowApi, dag_id: str, conf: dict[str, Any]) -> tuple[DagRun, int]:
    """Start a run as soon as Airflow has read the DAG; the number says how many others are not finished.

    A run with the same parameters that is not finished, because somebody left it or the stack was stopped, goes on by
    itself: it is taken instead of a second one that would do the same work beside it.
    Raises UserError where Airflow refuses the parameters, MmbertError where the DAG's file does not import.
    """
    _wait_for_dag(api, dag_id)
    tasks = api.get(f"/dags/{dag_id}/tasks")["tasks"]
    upstream: dict[str, set[str]] = {task["task_id"]: set() for task in tasks}
    for task in tasks:
        for below in task["downstream_task_ids"]:
            upstream[below].add(task["task_id"])
    order = {name: place for place, name in enumerate(graphlib.TopologicalSorter(upstream).static_order())}
    unfinished = [r for state in ("running", "queued") for r in _runs(api, dag_id, state)]
    same = next((r for r in unfinished if r["conf"] == conf), None)
    run = same or api.post(f"/dags/{dag_id}/dagRuns", {"logical_date": None, "conf": conf})
    return DagRun(api, dag_id, run["dag_run_id"], order), len(unfinished) - (same is not None)


def _runs(api: AirflowApi, dag_id: str, state: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = api.get(f"/dags/{dag_id}/dagRuns", state=state, limit=100)["dag_runs"]
    return found


def _wait_for_dag(api: AirflowApi, dag_id: str) -> None:
    deadline = time.monotonic() + _PARSE_SECONDS
    while True:
        try:
            api.get(f"/dags/{dag_id}")
            break
        except NotFoundError:
            _raise_import_errors(api, dag_id)
            if time.monotonic() > deadline:
                raise InfrastructureError(
                    f"Airflow did not read the DAG '{dag_id}' within {_PARSE_SECONDS:.0f} s"
                ) from None
            time.sleep(0.5)
    _raise_import_errors(api, dag_id)


def _raise_import_errors(api: AirflowApi, dag_id: str) -> None:
    for error in api.get("/importErrors")["import_errors"]:
        if dag_id in error["filename"]:
            raise MmbertError(f"{error['filename']} does not import:\n{error['stack_trace']}")


def _task_state(raw: dict[str, Any]) -> TaskState:
    seconds = raw["duration"]
    if raw["state"] == "running" and raw["start_date"]:
        started = datetime.datetime.fromisoformat(raw["start_date"])
        seconds = (datetime.datetime.now(datetime.UTC) - started).total_seconds()
    return TaskState(
        task_id=raw["task_id"],
        map_index=raw["map_index"],
        state=raw["state"] or "none",
        label=raw["rendered_map_index"] or "",
        seconds=seconds,
        try_number=raw["try_number"],
        ended=raw["end_date"] or "",
    )
