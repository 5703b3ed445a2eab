from __future__ import annotations

from typing import Annotated

from components.contract import RECIPE_HELP, Input, component
from components.runtime import Work


@component(
    produces="selection", version=1, image="eval", resources="small", reads=("release.model_name",), momentary=True,
    outputs=("models", "documents"),
)  # fmt: skip
def select(
    work: Work,
    recipe: Annotated[str, RECIPE_HELP, Input("recipe")],
    model: Annotated[str, "a version of the recipe's registered model (`7`, `@candidate`), or the URI of a model "
                     "artifact; without, its champion and its candidate"] = "",
) -> None:  # fmt: skip
    """Find the models to evaluate again: the champion, and the candidate or the one that was asked for.

    The output `selection.json` holds them and what the registry knows of all versions; `release.json` names the one
    that the gate judges: only a candidate can be promoted. The lists are `models`, URIs of model artifacts, and
    `documents`, which the newest of them was released with: their held-out part is the same text for all.
    """
    from mmbert.evaluation.selection import select_models

    chosen = select_models(work.tracker.registry, work.recipe.release.model_name, model)
    opened = {model.uri: work.open(model.uri, "model") for model in chosen.models}
    newest = list(opened.values())[-1]
    judged = chosen.judged
    work.output.add_json("selection.json", chosen.to_json())
    work.output.add_json(
        "release.json",
        {"name": chosen.name, "version": judged.version if judged.role != "given" else None, "model": judged.uri,
         "content_digest": opened[judged.uri].digest},
    )  # fmt: skip
    work.output.outputs["models"] = list(opened)
    work.output.outputs["documents"] = [entry["uri"] for entry in newest.manifest.inputs.get("documents", [])]
    work.output.outputs["label"] = ", ".join(model.label for model in chosen.models)
    work.log_json(chosen.to_json(), "selection.json")
