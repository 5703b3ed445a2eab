"""Recipes from presets, files and overrides, with messages that name the key, the value and what would be right."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mmbert import storage
from mmbert.errors import UserError
from mmbert.recipe.schema import Recipe

_MOST_VALUES = 100_000
_LOGIN = re.compile(r"://[^/\s@]+@")
# What is nested too deeply, and numbers and dates that are none, are no YAMLError.
_NO_YAML = (yaml.YAMLError, RecursionError, ValueError)


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
        data = _parsed(text)
    except _NO_YAML as error:
        raise UserError(f"{where}: not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise UserError(f"{where}: a recipe is a mapping of keys to values; see 'mmbert recipe show tiny'")
    data = copy.deepcopy(data)
    for key, value in (overrides or {}).items():
        _set(data, key, value)
    if key := _login(data):
        raise UserError(f"{where}: {key} holds an address with a login, and recipes are kept and logged; take it out")
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
            parsed[key.strip()] = _parsed(value)
        except _NO_YAML as error:
            raise UserError(f"override '{item}': '{value}' is not a YAML value") from error
    return parsed


class _Loader(yaml.SafeLoader):
    """Plain values only, and no more of them than a recipe can have: a few aliases of aliases would be billions."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._count = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        begin, mark = self._count, self.peek_event().start_mark  # type: ignore[no-untyped-call]
        is_alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        if is_alias and id(node) not in self._sizes:
            raise yaml.composer.ComposerError(None, None, "an alias stands inside of what it names", mark)
        self._count += self._sizes[id(node)] if is_alias else 1
        if self._count > _MOST_VALUES:
            raise yaml.composer.ComposerError(None, None, f"more than {_MOST_VALUES:,} values", mark)
        self._sizes.setdefault(id(node), self._count - begin)
        return node


def _parsed(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader


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


def _login(value: Any, key: str = "") -> str:
    """The key of a text with a login in an address; empty where there is none."""
    if isinstance(value, str):
        return key if _LOGIN.search(value) else ""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return next((found for name, item in items if (found := _login(item, f"{key}.{name}".lstrip(".")))), "")


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
        elif item["type"] == "union_tag_not_found":
            key, message = f"{key}.kind", "this key is missing; what has a kind is set whole, {kind: ..., ...}"
        shown = "" if isinstance(item.get("input"), dict) or item["type"] == "missing" else f" = {item['input']!r}"
        lines.append(f"{key}{shown}: {message}" if key else message)
    return f"{where}: the recipe is wrong\n  " + "\n  ".join(lines)
