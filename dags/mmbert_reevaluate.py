"""The DAG `mmbert_reevaluate`: champion and candidate evaluated again, on a schedule, for a new version, or by hand."""

from __future__ import annotations

from airflow.sdk import DAG, Param

from components.airflow import MODEL_VERSIONS, AirflowRunner, TriggerParameter, trigger_form
from components.schedules import default_recipe, reevaluation_schedule
from components.workflows import reevaluate

with DAG(
    dag_id="mmbert_reevaluate",
    description="Evaluates champion and candidate on what changed, judges the candidate, shows scores over time.",
    doc_md=reevaluate.__doc__,
    schedule=reevaluation_schedule(MODEL_VERSIONS),
    # After downtime one run is due, whatever was missed: it covers all that changed.
    catchup=False,
    # Steps may run twice at once; several models' runs need not wait for each other.
    max_active_runs=8,
    tags=["mmbert"],
    params=trigger_form(
        default_recipe(),
        "It names the registered model and the gate. A run for a new version takes that version's recipe.",
        "release.gate.minimum.demo/article_retrieval=0.2",
        model=Param(
            "",
            type="string",
            title="Model",
            description="A version (`7`), an alias (`@candidate`) or the URI of a model artifact. Without, champion "
            "and candidate. The champion is always evaluated beside it; only a candidate can be promoted.",
        ),
    ),
) as dag:
    runner = AirflowRunner()
    recipe = {"preset": TriggerParameter("preset", event="recipe"), "overrides": TriggerParameter("overrides")}
    last = reevaluate(runner, **recipe, model=TriggerParameter("model"))
    runner.alert(last[-1], **recipe)
    runner.end(last, **recipe)
