from __future__ import annotations

from typing import Annotated

from components.contract import RECIPE_HELP, Input, component
from components.runtime import Work


@component(
    produces="report", version=2, image="eval", resources="small", reads=("name", "description", "sources", "model")
)
def report(
    work: Work,
    recipe: Annotated[str, RECIPE_HELP, Input("recipe")],
    mixtures: Annotated[list[str], "URIs of all mixtures", Input("mixture")],
    checkpoints: Annotated[list[str], "URIs of the checkpoints of all phases, variants and the merge",
                           Input("checkpoint")],
    model: Annotated[str, "URI of the released model", Input("model")],
    scores: Annotated[list[str], "URIs of the scores of all models", Input("scores")],
) -> None:  # fmt: skip
    """Write the run's report: one self-contained HTML page, from data mixtures to scores and lineage.

    The output holds `report.html` and `summary.json` (tables and claims for a terminal).
    """
    from mmbert.evaluation.plots import draw_plots
    from mmbert.evaluation.report import build_report
    from mmbert.evaluation.results.store import metric_key
    from mmbert.evaluation.run_data import RunArtifacts, collect, released_scores, summary

    run = RunArtifacts(
        mixtures=[work.open(uri) for uri in mixtures],
        checkpoints=[work.open(uri) for uri in checkpoints],
        model=work.open(model),
        scores=[work.open(uri) for uri in scores],
    )
    data = collect(work.recipe, run)
    page = build_report(data, work.links()).encode()
    work.output.add_bytes("report.html", page, digested=False)
    work.output.add_json("summary.json", summary(data), digested=False)
    local = work.scratch / "report.html"
    local.write_bytes(page)
    work.run.log_artifact(local, "report")
    for plot in draw_plots(data, work.scratch / "plots"):
        work.run.log_artifact(plot, "plots")
    if work.tracker.workflow_run:
        # The workflow's own run is where a person looks first.
        parent = work.tracker.open_workflow()
        parent.log_artifact(local, "report")
        parent.log_text(work.planned_recipe, "recipe.yaml")
        parent.log_metrics({metric_key(s): s.value for s in released_scores(data)})
        parent.close()
