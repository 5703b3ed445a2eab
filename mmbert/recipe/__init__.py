"""The recipe: one YAML file that describes a whole run."""

from mmbert.recipe.loading import load_recipe, parse_overrides, recipe_from_text, recipe_to_yaml
from mmbert.recipe.schema import Recipe

__all__ = ["Recipe", "load_recipe", "parse_overrides", "recipe_from_text", "recipe_to_yaml"]
