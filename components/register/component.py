from __future__ import annotations

from typing import Annotated

from components.contract import RECIPE_HELP, Input, component
from components.runtime import Work
from mmbert import storage


@component(produces="release", version=2, image="eval", resources="small", reads=("release",), idempotent_effect=True)
def register(
    work: Work,
    recipe: Annotated[str, RECIPE_HELP, Input("recipe")],
    model: Annotated[str, "URI of the released model", Input("model")],
    scores: Annotated[list[str], "URIs of its scores", Input("scores")],
    report: Annotated[str, "URI of the run's report", Input("report")],
) -> None:
    """Register the released model in MLflow and point the alias `candidate` at it.

    The same model registered twice keeps its version. Without MLFLOW_TRACKING_URI the release is only recorded.
    """
    from mmbert.evaluation.results.promotion import SCORES
    from mmbert.evaluation.results.store import artifact_scorecard
    from mmbert.evaluation.suites.names import DEMO

    artifact = work.open(model)
    cards = {uri: artifact_scorecard(work.open(uri)) for uri in scores}
    demo = [s for card in cards.values() for s in card.scores if s.suite == DEMO and s.language is None]
    overall = {f"{s.task}.{s.metric}": f"{s.value:.4f}" for s in demo}
    where = {f"{SCORES}{suite}": uri for uri, card in cards.items() for suite in card.suites()}
    places = {"mmbert.report": report, "mmbert.uri": artifact.uri, "mmbert.recipe": recipe}
    version = None
    registry = work.tracker.registry
    if registry is not None and storage.is_s3(artifact.uri):  # MLflow takes no models from a local disk
        producer = artifact.manifest.producer
        version = registry.register(
            name=work.recipe.release.model_name,
            source_uri=artifact.remote_folder(""),
            content_digest=artifact.digest,
            run_id=str(producer["mlflow_run_id"] or "") or None,
            tags={**places, "mmbert.release": work.output.uri, **where, **overall},
            description=f"Workflow run: {producer['workflow_run'] or 'none'}; report: {report}",
            alias=work.recipe.release.alias,
        )
    work.output.add_json(
        "release.json",
        {"name": work.recipe.release.model_name, "version": version, "alias": work.recipe.release.alias,
         "model": artifact.uri, "content_digest": artifact.digest},
    )  # fmt: skip
    state = f"version {version}" if version else "not registered"
    work.output.outputs["label"] = f"{work.recipe.release.model_name} {state}"
