"""Where a piece of work is shown: its run in MLflow, its task in Airflow. Empty where no server's pages are known."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

AIRFLOW_URL = "MMBERT_AIRFLOW_URL"
"""Where Airflow's pages are; the local stack sets it."""
MLFLOW_URL = "MMBERT_MLFLOW_URL"
"""Where MLflow's pages are, if a browser does not reach them at MLFLOW_TRACKING_URI."""
AIRFLOW_TASK = "MMBERT_AIRFLOW_TASK"
"""In a component's environment: which of Airflow's tasks it is, as JSON."""


PAGES = {
    "data_report": "data_report/data_report.html",
    "languages_report": "report/report.html",
    "report": "report/report.html",
    "trend": "trend/trend.html",
}
"""By component: its page among the files of its run in MLflow."""


def airflow_task() -> dict[str, Any]:
    """The task of Airflow that this process works for; empty for none."""
    return dict(json.loads(os.environ.get(AIRFLOW_TASK, "{}")))


def mlflow_link(place: str) -> str:
    """A page of MLflow (`runs/ID`)."""
    server = os.environ.get(MLFLOW_URL) or os.environ.get("MLFLOW_TRACKING_URI", "")
    return f"{server.rstrip('/')}/#/{place}" if _has_pages(server) else ""


def airflow_link(task: Mapping[str, Any]) -> str:
    """The page of a task, described as `airflow_task` does; without `task_id`, of its DAG run."""
    server = os.environ.get(AIRFLOW_URL, "")
    if not task or not _has_pages(server):
        return ""
    place = (
        f"{server.rstrip('/')}/dags/{quote(str(task['dag_id']), safe='')}/runs/{quote(str(task['run_id']), safe='')}"
    )
    if "task_id" in task:
        place += f"/tasks/{quote(str(task['task_id']), safe='')}"
    return f"{place}/mapped/{task['map_index']}" if "map_index" in task else place


def airflow_run_link(task: Mapping[str, Any]) -> str:
    """The page of the DAG run that a task is of."""
    return airflow_link({key: task[key] for key in ("dag_id", "run_id") if key in task})


def airflow_name(task: Mapping[str, Any]) -> str:
    """A task as one word, for a tag to search by."""
    return "/".join(str(task[key]) for key in ("dag_id", "run_id", "task_id", "map_index") if key in task)


def work_links(mlflow_run_id: str | None, task: Mapping[str, Any]) -> dict[str, str]:
    """Pages about one piece of work, by what a person calls them."""
    links = {
        "Run in MLflow": mlflow_link(f"runs/{mlflow_run_id}") if mlflow_run_id else "",
        "Task in Airflow": airflow_link(task),
        "DAG run": airflow_run_link(task),
    }
    return {name: url for name, url in links.items() if url}


def markdown(links: Mapping[str, str]) -> str:
    """For MLflow's descriptions."""
    return " · ".join(f"[{name}]({url})" for name, url in links.items() if url)


def _has_pages(server: str) -> bool:
    return server.startswith(("http://", "https://"))
