"""The DAG `mmbert_pretrain`: the workflow of components/workflows.py as Airflow tasks."""

from __future__ import annotations

from airflow.sdk import DAG

from components.airflow import AirflowRunner, TriggerParameter, trigger_form
from components.workflows import pretrain

with DAG(
    dag_id="mmbert_pretrain",
    description="From raw text to a released multilingual encoder, in three phases of training.",
    doc_md=pretrain.__doc__,
    schedule=None,
    catchup=False,
    tags=["mmbert"],
    params=trigger_form(
        "tiny",
        "`tiny` runs on a laptop in minutes; `small` and `base` carry the published figures and need GPUs.",
        "phases.decay.tokens=1M",
    ),
) as dag:
    runner = AirflowRunner()
    preset, overrides = TriggerParameter("preset"), TriggerParameter("overrides")
    runner.end(pretrain(runner, preset, overrides), preset=preset, overrides=overrides)
