"""Recipes from presets, files and overrides, with messages that name the key, the value and what would be right."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mmbert import storage
from mmbert.errors import UserError
from mmbert.recipe.schema import Recipe


def presets() -> list[str]:
    folder = resources.files("mmbert.recipe").joinpath("presets")
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def load_recipe(source: str, overrides: Iterable[str] = ()) -> Recipe:
    """A preset by name, or a recipe file (local or s3://), with `key.path=value` overrides.

    Raises UserError for anything that is not a valid recipe.
    """
    return recipe_from_text(_text_of(source), source, parse_overrides(overrides))


def recipe_from_text(text: str, where: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe from YAML. `where` names it in messages; `overrides` maps dotted keys to values."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise UserError(f"{where}: a recipe is a mapping of keys to values; see 'mmbert recipe show tiny'")
    data = copy.deepcopy(data)
    for key, value in (overrides or {}).items():
        _set(data, key, value)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise UserError(_explain(where, error)) from error


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """`["phases.decay.tokens=1M"]` -> `{"phases.decay.tokens": "1M"}`; values are YAML."""
    parsed: dict[str, Any] = {}
    for item in overrides:
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise UserError(f"override '{item}' is not of the form key.path=value")
        try:
            parsed[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"override '{item}': '{value}' is not a YAML value") from error
    return parsed


def recipe_to_yaml(recipe: Recipe) -> str:
    """The whole recipe, defaults written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def _text_of(source: str) -> str:
    if source in presets():
        return resources.files("mmbert.recipe").joinpath("presets", f"{source}.yaml").read_text("utf-8")
    looks_like_path = storage.is_s3(source) or source.endswith((".yaml", ".yml")) or "/" in source
    if not looks_like_path:
        raise UserError(f"no preset '{source}'; there are {', '.join(presets())}, or give a recipe file (.yaml)")
    if not storage.is_s3(source) and not Path(source).is_file():
        raise UserError(f"{source}: no such recipe file")
    try:
        return storage.read_bytes(source).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: not UTF-8 text: {error}") from error


def _set(data: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    node: Any = data
    for part in parents:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise UserError(f"override '{key}': '{part}' is a single value and has no keys below it")
    node[last] = value


def _explain(where: str, error: ValidationError) -> str:
    lines = []
    for item in error.errors(include_url=False):
        # Tags of discriminated unions (kind names) stand in loc though they are no keys of the recipe.
        key = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "unknown key; 'mmbert recipe show tiny' lists all keys"
        elif item["type"] == "missing":
            message = "this key is missing"
        shown = "" if isinstance(item.get("input"), dict) or item["type"] == "missing" else f" = {item['input']!r}"
        lines.append(f"{key}{shown}: {message}" if key else message)
    return f"{where}: the recipe is wrong\n  " + "\n  ".join(lines)
