"""The DAG `mmbert_add_languages`: a trained model learns new languages in a decay phase of its own."""

from __future__ import annotations

from airflow.sdk import DAG, Param

from components.airflow import AirflowRunner, TriggerParameter, trigger_form
from components.workflows import add_languages

with DAG(
    dag_id="mmbert_add_languages",
    description="Teaches a trained model new languages, and shows what they gained and what the old ones lost.",
    doc_md=add_languages.__doc__,
    schedule=None,
    catchup=False,
    tags=["mmbert"],
    params=trigger_form(
        "tiny",
        "The one that the model was trained with, or one of its size: its sources are the text of the old languages.",
        "phases.decay.tokens=1M",
        model=Param(
            "",
            type="string",
            minLength=1,
            title="Model",
            description="A folder with `config.json` and `model.safetensors`, a name of the hub, a raw checkpoint "
            "(`.pt`) or an artifact's URI, where every worker can read it.",
        ),
        text=Param(
            "",
            type="string",
            title="Text",
            description="A folder or `s3://` prefix with a folder a language (`bre_Latn/a.txt`). Without, the new "
            "languages are those that the recipe reserved.",
        ),
    ),
) as dag:
    runner = AirflowRunner()
    recipe = {"preset": TriggerParameter("preset"), "overrides": TriggerParameter("overrides")}
    last = add_languages(runner, **recipe, model=TriggerParameter("model"), text=TriggerParameter("text"))
    runner.end(last, **recipe)
