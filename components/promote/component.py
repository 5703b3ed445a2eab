from __future__ import annotations

from typing import Annotated

from components.contract import RECIPE_HELP, Input, component
from components.runtime import Work


@component(produces="promotion", version=1, image="eval", resources="small", reads=("release",), idempotent_effect=True)
def promote(
    work: Work,
    recipe: Annotated[str, RECIPE_HELP, Input("recipe")],
    release: Annotated[str, "URI of the registered release, or of a selection that names one",
                       Input("release", "selection")],
    scores: Annotated[list[str], "URIs of its scores, of all suites that the gate names; other models' do not count",
                      Input("scores")],
    champion_scores: Annotated[list[str], "URIs of new scores of the champion; without, those it was registered with",
                               Input("scores")] = (),  # type: ignore[assignment]
    override: Annotated[str, "promote it whatever the gate says, for this reason"] = "",
) -> None:  # fmt: skip
    """Make the registered model the champion if it passes the recipe's gate; the alias `champion` moves last.

    A refusal is no failure: the outcome is in `promotion.json`, in the version's tags `mmbert.gate` and
    `mmbert.gate_reason`, and in the log. The tags `mmbert.scores.<suite>` of the versions that the scores are of lead
    to these scores afterwards. Without MLflow the gate's bounds are judged and nothing is promoted.
    """
    from mmbert import metrics
    from mmbert.evaluation.results import promotion, scorecard
    from mmbert.evaluation.results.store import artifact_scorecard

    released = work.open(release).read_json("release.json")
    name, version = released["name"], released["version"]
    cards = {uri: artifact_scorecard(work.open(uri)) for uri in (*scores, *champion_scores)}
    own = [cards[uri] for uri in dict.fromkeys(scores) if cards[uri].model_digest == released["content_digest"]]
    candidate = scorecard.merged(own, f"{name}: --scores")
    champions = [cards[uri] for uri in champion_scores]
    registry = work.tracker.registry
    if registry is not None:
        promotion.tag_scores(registry, name, cards)
    found = promotion.promote(registry, name, version, work.recipe.release.gate, candidate, champions, override)
    print(found.text(name), flush=True)
    work.output.add_json("promotion.json", {"name": name, **found.to_json()}, digested=False)
    work.output.outputs["label"] = (
        f"{name} version {version}: {found.outcome}" if version else f"{name}: {found.outcome}"
    )
    work.output.outputs["outcome"] = found.outcome
    work.run.set_tags({promotion.GATE: found.outcome, promotion.REASON: found.reason or "-"})
    work.log_json({"name": name, **found.to_json()}, "promotion.json")
    metrics.set_to(metrics.REFUSED, float(found.outcome == "refused"), name)
    if found.outcome == "refused":
        metrics.wait_until_seen()
