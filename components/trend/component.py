from __future__ import annotations

from typing import Annotated

from components.contract import RECIPE_HELP, Input, component
from components.runtime import Work


@component(
    produces="trend", version=1, image="eval", resources="small", reads=("release.model_name",), momentary=True,
    outputs=("alerts",),
)  # fmt: skip
def trend(
    work: Work,
    recipe: Annotated[str, RECIPE_HELP, Input("recipe")],
    selection: Annotated[str, "URI of the selection of models", Input("selection")],
    scores: Annotated[list[str], "URIs of the scores of the models in it", Input("scores")],
    promotion: Annotated[str, "URI of what the gate said", Input("promotion")],
) -> None:
    """Write the trend page: scores over time with intervals and release marks, and what got worse.

    The history is the results store's. The output holds `trend.html` and `alerts.json`: all that got worse, and which
    lines are new, because no run has told them before; the list `alerts` is these.
    """
    from mmbert.evaluation.results.store import artifact_scorecard, record
    from mmbert.evaluation.selection import Selection
    from mmbert.evaluation.trend_data import collect_trend, told_before
    from mmbert.evaluation.trend_page import build_trend

    chosen = Selection.from_json(work.open(selection).read_json("selection.json"))
    for uri in scores:
        record(work.root, artifact_scorecard(work.open(uri)))
    digests = [work.open(model.uri).digest for model in chosen.models]
    found = collect_trend(work.root, chosen, digests, work.tracker.registry, work.open(promotion))
    told = told_before(work.kept(f"alerts/{chosen.name}"))
    new = told.new(found.alerts)
    page = build_trend(found, work.links()).encode()
    work.output.add_bytes("trend.html", page, digested=False)
    work.output.add_json("alerts.json", {"alerts": list(found.alerts), "new": new}, digested=False)
    work.output.outputs["alerts"] = new
    work.output.outputs["label"] = chosen.name
    work.output.after_commit.append(lambda: told.add(new))
    for line in new:
        print(f"alert: {line}", flush=True)
    local = work.scratch / "trend.html"
    local.write_bytes(page)
    work.run.log_artifact(local, "trend")
    work.run.log_metrics({"alerts": len(found.alerts), "new_alerts": len(new)}, step=0)
    if work.tracker.workflow_run:
        # The workflow's own run is where a person looks first.
        parent = work.tracker.open_workflow()
        parent.log_artifact(local, "trend")
        parent.close()
