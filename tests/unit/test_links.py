"""Links between the pages of MLflow, Airflow and a run."""

from __future__ import annotations

import json

import pytest

from mmbert.pages import links

TASK = {
    "dag_id": "mmbert_pretrain",
    "run_id": "manual__2026-01-05T03:00:00+00:00",
    "task_id": "train_decay",
    "map_index": 2,
}


@pytest.fixture(autouse=True)
def servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.svc:5000/")
    monkeypatch.setenv("MMBERT_AIRFLOW_URL", "https://airflow.example/base/")
    monkeypatch.delenv("MMBERT_MLFLOW_URL", raising=False)


def test_a_work_is_shown_in_mlflow_in_airflow_and_in_its_dag_run() -> None:
    run = "https://airflow.example/base/dags/mmbert_pretrain/runs/manual__2026-01-05T03%3A00%3A00%2B00%3A00"
    assert links.work_links("abc", TASK) == {
        "Run in MLflow": "http://mlflow.svc:5000/#/runs/abc",
        "Task in Airflow": f"{run}/tasks/train_decay/mapped/2",
        "DAG run": run,
    }


def test_where_browsers_reach_mlflow_goes_before_where_components_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMBERT_MLFLOW_URL", "https://mlflow.example")
    assert links.mlflow_link("runs/abc") == "https://mlflow.example/#/runs/abc"


def test_what_has_no_page_has_no_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    monkeypatch.delenv("MMBERT_AIRFLOW_URL")
    assert links.work_links("abc", TASK) == {}
    assert links.work_links(None, {}) == {}


def test_a_component_knows_its_task_from_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MMBERT_AIRFLOW_TASK", raising=False)
    assert links.airflow_task() == {}
    monkeypatch.setenv("MMBERT_AIRFLOW_TASK", json.dumps(TASK))
    assert links.airflow_task() == TASK
    assert links.airflow_name(TASK) == "mmbert_pretrain/manual__2026-01-05T03:00:00+00:00/train_decay/2"
