from __future__ import annotations

from typing import Annotated

from components.contract import component
from components.planning import RECIPE_FILE
from components.runtime import Work
from mmbert.recipe import Recipe, load_recipe, recipe_to_yaml
from mmbert.recipe.pins import pin_revisions


@component(produces="recipe", version=2, image="data", resources="small", outputs=("groups", "variants", "suites"))
def recipe(
    work: Work,
    preset: Annotated[str, "a preset's name, or a recipe file (local or s3://)"],
    overrides: Annotated[list[str], "key.path=value, any key of the recipe"] = (),  # type: ignore[assignment]
) -> None:
    """Check a recipe with its overrides and write it out whole.

    The output `recipe.yaml` holds every key, defaults included, and for each data set on the hub the commit that its
    branch or tag stands for now: a workflow run reads one state of it.

    The lists `groups` (of languages, for curation), `variants` (of the decay phase) and `suites` (that released models
    are measured on) are what the workflow fans out over.
    """
    checked = pin_revisions(load_recipe(preset, overrides))
    work.output.add_bytes(RECIPE_FILE, recipe_to_yaml(checked).encode())
    work.output.outputs |= fan_out(checked)
    work.run.log_text(recipe_to_yaml(checked), RECIPE_FILE)


def fan_out(checked: Recipe) -> dict[str, list[str]]:
    """The lists that a workflow with this recipe fans out over, by name."""
    return {
        "groups": [str(group) for group in range(checked.curation.groups)],
        "variants": list(checked.phases.decay.variants),
        "suites": checked.evaluation.measured(),
    }
