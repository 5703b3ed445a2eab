from __future__ import annotations

from typing import Annotated

from components.contract import RECIPE_HELP, Input, component
from components.runtime import Work
from mmbert.artifacts import Artifact
from mmbert.errors import UserError


@component(produces="report", version=2, image="eval", resources="small", reads=("name", "new_languages"))
def languages_report(
    work: Work,
    recipe: Annotated[str, RECIPE_HELP + ", as `languages_check` handed it on", Input("recipe")],
    before: Annotated[str, "URI of the scores of the model before", Input("scores")],
    scores: Annotated[list[str], "URIs of the released model's scores; those on the suite demo count",
                      Input("scores")],
    variant_scores: Annotated[list[str], "URIs of the variants' scores", Input("scores")] = (),  # type: ignore[assignment]
) -> None:  # fmt: skip
    """Write the report on added languages: gains of the new ones, losses of the old ones, and what their tokens cost.

    The output holds `report.html` and `summary.json`.
    """
    from mmbert.data.new_languages import TOKENS_FILE
    from mmbert.evaluation.new_languages import outcome, summary, verdict
    from mmbert.evaluation.new_languages_page import build_page
    from mmbert.evaluation.results.store import artifact_scorecard
    from mmbert.evaluation.run_data import run_facts
    from mmbert.evaluation.suites.names import DEMO

    new = work.recipe.new_languages
    first = artifact_scorecard(work.open(before))
    cards = [artifact_scorecard(work.open(uri)) for uri in (*scores, *variant_scores)]
    outcomes = [outcome(first, card, new) for card in cards if DEMO in card.suites()]
    costs = work.open(recipe, "recipe").read_json(TOKENS_FILE)
    extended, released = (_model(work, uri) for uri in (before, scores[0]))
    source = extended.manifest.parameters.get("source", extended.uri)
    facts = {"Model extended": source["uri"] if isinstance(source, dict) else source, **run_facts(released)}
    page = build_page(outcomes, costs, work.recipe.name, facts, work.links()).encode()
    for found in outcomes:
        print(verdict(found), flush=True)
    work.output.add_bytes("report.html", page, digested=False)
    work.output.add_json("summary.json", summary(outcomes, costs), digested=False)
    work.output.outputs["label"] = work.recipe.name
    local = work.scratch / "report.html"
    local.write_bytes(page)
    work.run.log_artifact(local, "report")
    gained = {"languages.new_gain": outcomes[0].gain, "languages.old_loss": outcomes[0].loss}
    figures = {name: value for name, value in gained.items() if value is not None}
    work.run.log_metrics(figures)
    if work.tracker.workflow_run:
        # The workflow's own run is where a person looks first.
        parent = work.tracker.open_workflow()
        parent.log_artifact(local, "report")
        parent.log_text(work.planned_recipe, "recipe.yaml")
        parent.log_metrics(figures)
        parent.close()


def _model(work: Work, scores: str) -> Artifact:
    """The model that these scores are of. Raises UserError for those of an untrained one."""
    if not (models := work.open(scores).manifest.inputs.get("model")):
        raise UserError(f"{scores}: scores of no model's files; give those of a checkpoint or a released model")
    return work.open(models[0]["uri"])
