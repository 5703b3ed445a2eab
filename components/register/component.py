from __future__ import annotations

from typing import Annotated

from components.contract import RECIPE_HELP, Input, component
from components.runtime import Work
from mmbert import storage


@component(produces="release", version=1, image="eval", resources="small", reads=("release",), idempotent_effect=True)
def register(
    work: Work,
    recipe: Annotated[str, RECIPE_HELP, Input("recipe")],
    model: Annotated[str, "URI of the released model", Input("model")],
    scores: Annotated[str, "URI of its scores", Input("scores")],
    report: Annotated[str, "URI of the run's report", Input("report")],
) -> None:
    """Register the released model in MLflow and point the alias `candidate` at it.

    The same model registered twice keeps its version. Without MLFLOW_TRACKING_URI the release is only recorded.
    """
    artifact, scored = work.open(model), work.open(scores)
    overall = {
        f"{s['task']}.{s['metric']}": f"{s['value']:.4f}"
        for s in scored.read_json("scores.json")["scores"]
        if s["language"] is None
    }
    version = None
    if storage.is_s3(artifact.uri):  # MLflow takes no models from a local disk
        producer = artifact.manifest.producer
        version = work.tracker.register_model(
            name=work.recipe.release.model_name,
            source_uri=artifact.remote_folder(""),
            content_digest=artifact.digest,
            run_id=str(producer["mlflow_run_id"] or "") or None,
            tags={"mmbert.report": report, "mmbert.uri": artifact.uri, **overall},
            description=f"Workflow run: {producer['workflow_run'] or 'none'}; report: {report}",
            alias=work.recipe.release.alias,
        )
    work.output.add_json(
        "release.json",
        {"name": work.recipe.release.model_name, "version": version, "alias": work.recipe.release.alias,
         "model": artifact.uri, "content_digest": artifact.digest},
        digested=False,
    )  # fmt: skip
    work.output.outputs["label"] = f"{work.recipe.release.model_name} version {version or '-'}"
