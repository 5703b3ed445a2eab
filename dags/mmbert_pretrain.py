"""The DAG `mmbert_pretrain`: the workflow of components/workflows.py as Airflow tasks."""

from __future__ import annotations

from airflow.sdk import DAG, Param

from components.airflow import AirflowRunner, TriggerParameter
from components.workflows import pretrain

with DAG(
    dag_id="mmbert_pretrain",
    description="From raw text to a released multilingual encoder, in three phases of training.",
    doc_md=pretrain.__doc__,
    schedule=None,
    catchup=False,
    tags=["mmbert"],
    params={
        "preset": Param(
            "tiny",
            type="string",
            minLength=1,
            title="Preset or recipe",
            examples=["tiny", "small", "base"],
            description="A preset's name, or a recipe file that every worker can read (a path or `s3://...`). "
            "`tiny` runs on a laptop in minutes; `small` and `base` carry the published figures and need GPUs.",
        ),
        "overrides": Param(
            [],
            type="array",
            items={"type": "string", "pattern": "^[^=]+=.*$"},
            title="Overrides",
            description="Recipe keys to change, one a line: `phases.decay.tokens=1M`. "
            "`mmbert recipe show tiny` lists all keys.",
        ),
        "run_name": Param(
            None,
            type=["null", "string"],
            maxLength=100,
            title="Run name",
            description="Stands before the run's id in MLflow. Optional; results do not depend on it.",
        ),
    },
) as dag:
    runner = AirflowRunner()
    preset, overrides = TriggerParameter("preset"), TriggerParameter("overrides")
    runner.end(pretrain(runner, preset, overrides), preset=preset, overrides=overrides)
