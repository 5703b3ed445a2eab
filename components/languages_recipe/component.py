from __future__ import annotations

from typing import Annotated

from components.contract import SourceFiles, component
from components.planning import RECIPE_FILE
from components.recipe.component import fan_out
from components.runtime import Work
from mmbert.recipe import load_recipe, recipe_to_yaml
from mmbert.tables import counted


@component(produces="recipe", version=1, image="data", resources="small", outputs=("groups", "variants", "suites"))
def languages_recipe(
    work: Work,
    preset: Annotated[str, "the preset or recipe file that the model was trained with, or one of its size: its sources "
                      "are the text of the old languages"],
    overrides: Annotated[list[str], "key.path=value, any key of the recipe"] = (),  # type: ignore[assignment]
    text: Annotated[str, "folder or s3:// prefix with a folder a new language (`bre_Latn/a.txt`); without, the "
                    "languages that the recipe reserved are the new ones", SourceFiles()] = "",
) -> None:  # fmt: skip
    """Make the recipe that adds languages to a trained model: its decay phase again, on new text beside the old.

    The variants give the new languages a quarter, half or three quarters of the tokens.
    A folder that is empty, or of a language that the model knows from its first phases, is refused.
    """
    from mmbert.recipe.new_languages import recipe_for
    from mmbert.recipe.pins import pin_revisions

    made = pin_revisions(recipe_for(load_recipe(preset, overrides), text, overrides))
    work.output.add_bytes(RECIPE_FILE, recipe_to_yaml(made).encode())
    work.output.outputs |= fan_out(made) | {"label": counted(len(made.new_languages), "new language")}
    work.run.log_text(recipe_to_yaml(made), RECIPE_FILE)
