from __future__ import annotations

from typing import Annotated

from components.contract import RECIPE_HELP, Input, component
from components.planning import RECIPE_FILE
from components.recipe.component import fan_out
from components.runtime import Work
from mmbert.recipe import Recipe
from mmbert.recipe.new_languages import SOURCE


@component(
    produces="recipe", version=1, image="data", resources="small", reads=tuple(Recipe.model_fields),
    outputs=("groups", "variants", "suites"),
)  # fmt: skip
def languages_check(
    work: Work,
    recipe: Annotated[str, RECIPE_HELP, Input("recipe")],
    documents: Annotated[list[str], "URIs of all curated documents", Input("documents")],
    shards: Annotated[list[str], "URIs of all tokenized shards", Input("shards")],
) -> None:
    """Look at the new languages' text before anything is trained on it, and hand the recipe on.

    Text that is mostly another language, or in another script, stops the run. `tokens.json` says what the model's
    tokenizer makes of each language; where that is hopeless, a warning says so.
    """
    from mmbert.data.new_languages import TOKENS_FILE, check, seen_elsewhere, token_costs
    from mmbert.data.report.statistics import collect

    data = collect([work.open(uri) for uri in documents], [work.open(uri) for uri in shards], [])
    costs = token_costs(data, work.recipe.new_languages)
    warnings = check(data, costs)
    phases = work.recipe.phases
    if SOURCE in work.recipe.sources and "all" in (phases.pretrain.languages, phases.extend.languages):
        warnings += [
            f"{code}: other sources have text of it, and the first phases drew all languages: the model knows it "
            "already, unless the recipe kept it reserved"
            for code in seen_elsewhere(data, work.recipe.new_languages, SOURCE)
        ]
    for warning in warnings:
        print(f"warning: {warning}", flush=True)
    found = {code: cost.to_json() for code, cost in costs.items()}
    work.output.add_json(TOKENS_FILE, found, digested=False)
    work.log_json(found, TOKENS_FILE)
    work.output.add_bytes(RECIPE_FILE, work.planned_recipe.encode())
    work.output.outputs |= fan_out(work.recipe) | {"label": "new text looked at"}
