"""What a component call will make, and where: known without running it and without any ML library."""

from __future__ import annotations

import functools
import os
import string
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from components.contract import Component, check_arguments
from mmbert import artifacts, hub, storage
from mmbert.errors import UserError
from mmbert.recipe import Recipe, load_recipe, recipe_from_text
from mmbert.recipe.pins import pin_sources, pin_suites, unpinned
from mmbert.release import names

RECIPE_FILE = "recipe.yaml"


@dataclass(frozen=True)
class Plan:
    """One piece of work: its name (the fingerprint), its place, and all that decides its result."""

    component: Component
    arguments: dict[str, Any]
    parameters: dict[str, Any]
    inputs: dict[str, list[dict[str, str]]]
    fingerprint: str
    uri: str

    def done(self) -> artifacts.Artifact | None:
        """The finished artifact, if this work was done before by anyone."""
        return None if self.component.idempotent_effect else artifacts.find(self.uri)


def plan(item: Component, arguments: Mapping[str, Any], root: str) -> Plan:
    """Raises UserError for arguments that do not fit or inputs that are not there."""
    checked = _checked(item, arguments)
    parameters: dict[str, Any] = {}
    inputs: dict[str, list[dict[str, str]]] = {}
    for parameter in item.parameters:
        value = checked[parameter.name]
        if parameter.name == "recipe" and parameter.kinds:
            keys = _keys(item, read_recipe(value), checked)
            recipe = _as_read(read_recipe(value), keys, checked).model_dump(mode="json")
            parameters["recipe"] = _fingerprinted({key: _at(recipe, key) for key in keys}, item, checked)
        elif parameter.kinds:
            uris = value if parameter.is_list else [value] if value else []
            opened = [_open_input(item, parameter.name, parameter.kinds, uri) for uri in uris]
            inputs[parameter.name] = [{"uri": a.uri, "digest": a.digest, "kind": a.manifest.kind} for a in opened]
        elif parameter.is_source and value:
            parameters[parameter.name] = {"uri": value, "version": _version(value)}
        else:
            parameters[parameter.name] = value
    if "recipe" not in inputs and "recipe" not in parameters:
        # A preset or a file can change under its name: what counts is what it says.
        made = recipe_of(checked)
        parameters["recipe"] = artifacts.digest_json(made.model_dump(mode="json"))
        if unpinned(made):
            # Which commits these are is asked once a workflow run.
            parameters["run"] = _workflow_run()
    if item.momentary:
        parameters["run"] = _workflow_run()
    if "sources" in parameters["recipe"]:
        parameters["files"] = _files_state(parameters["recipe"]["sources"])
    if "curation" in parameters["recipe"]:
        parameters["models"] = _models_state(parameters["recipe"]["curation"])
    digests = {name: [entry["digest"] for entry in entries] for name, entries in inputs.items()}
    name = artifacts.fingerprint(item.name, item.version, parameters, digests)
    return Plan(item, checked, parameters, inputs, name, storage.join(root, item.produces, name))


def _workflow_run() -> str:
    """The workflow run's name; alone, a component is a run of its own."""
    return os.environ.get("MMBERT_WORKFLOW_RUN", uuid.uuid4().hex)


@functools.lru_cache(maxsize=8)
def read_recipe(source: str) -> Recipe:
    """The recipe of a recipe artifact, a recipe file or a preset."""
    artifact = recipe_artifact(source)
    return recipe_from_text(artifact.read(RECIPE_FILE).decode(), source) if artifact else load_recipe(source)


def recipe_artifact(source: str) -> artifacts.Artifact | None:
    """The recipe artifact that `source` names; None for a recipe file and a preset."""
    is_file = source.endswith((".yaml", ".yml"))
    if not is_file and (storage.is_s3(source) or storage.exists(storage.join(source, artifacts.MANIFEST))):
        return artifacts.open_artifact(source, "recipe")
    return None


def recipe_of(arguments: Mapping[str, Any]) -> Recipe:
    """The recipe that a component call is about: its `recipe`, or the preset and overrides that it makes one of."""
    if "recipe" in arguments:
        return read_recipe(arguments["recipe"])
    return load_recipe(arguments["preset"], arguments["overrides"])


def declared_recipe(item: Component, recipe: Recipe, arguments: Mapping[str, Any]) -> Recipe:
    """The recipe as the component may see it: reading a key that it does not declare is an error.

    So that a result can never depend on something that its fingerprint does not cover.
    """
    keys = _keys(item, recipe, arguments)
    return cast(Recipe, _View(_as_read(recipe, keys, arguments), "", keys, item.name))


def _checked(item: Component, arguments: Mapping[str, Any]) -> dict[str, Any]:
    checked = check_arguments(item, dict(arguments))
    return item.used(checked) if item.used else checked


def _as_read(recipe: Recipe, keys: list[str], arguments: Mapping[str, Any]) -> Recipe:
    """The recipe with the present states of its sources, or of a suite's data, where these are read.

    Nothing is asked for the recipe of a workflow: the component that made it has pinned it.
    """
    if "sources" in keys:
        recipe = pin_sources(recipe)
    run = recipe.evaluation.suites.get(arguments.get("suite", ""))
    return pin_suites(recipe, [arguments["suite"]]) if run is not None and not run.pinned else recipe


class _View:
    def __init__(self, node: Any, path: str, declared: list[str], component_name: str) -> None:
        self._node, self._path, self._declared, self._component = node, path, declared, component_name

    def __getattr__(self, name: str) -> Any:
        path = f"{self._path}.{name}".lstrip(".")
        value = getattr(self._node, name)
        if callable(value) or any(path == key or path.startswith(f"{key}.") for key in self._declared):
            return value
        if any(key.startswith(f"{path}.") for key in self._declared):
            return _View(value, path, self._declared, self._component)
        raise AttributeError(f"component '{self._component}' reads recipe key '{path}' without declaring it")


def _keys(item: Component, recipe: Recipe, arguments: Mapping[str, Any]) -> list[str]:
    """The declared keys that apply: placeholders filled, keys left out that this recipe or call does not have."""
    data = recipe.model_dump(mode="json")
    keys = []
    for pattern in item.reads:
        fields = [field for _, field, _, _ in string.Formatter().parse(pattern) if field]
        if any(not arguments[field] for field in fields):
            continue
        key = pattern.format(**arguments)
        if _at(data, key, _MISSING) is not _MISSING:
            keys.append(key)
    return sorted(keys)


def _fingerprinted(values: dict[str, Any], item: Component, arguments: dict[str, Any]) -> dict[str, Any]:
    """The recipe's values by key, without what cannot change the component's result."""
    operational = {pattern.format(**arguments) for pattern in item.operational}
    kept = {key: _without(value, key, operational) for key, value in values.items() if key not in operational}
    return item.fingerprinted(kept, arguments) if item.fingerprinted else kept


def _without(value: Any, key: str, left_out: set[str]) -> Any:
    """A recipe value without the keys below it that are left out."""
    if not isinstance(value, dict):
        return value
    kept = {name: f"{key}.{name}" for name in value if f"{key}.{name}" not in left_out}
    return {name: _without(value[name], path, left_out) for name, path in kept.items()}


def _files_state(sources: Mapping[str, Any]) -> dict[str, str]:
    """A digest of the listing of each source that reads a user's own files, so that changed text is seen."""
    own = {name: source["path"] for name, source in sources.items() if source["kind"] == "files"}
    placed = {name: source["dataset"] for name, source in sources.items() if "dataset" in source}
    own |= {name: dataset for name, dataset in placed.items() if hub.is_local(dataset)}
    return {name: artifacts.digest_json(storage.list_versions(path)) for name, path in own.items()}


def _version(uri: str) -> str:
    """A digest of the listing of a user's file or folder, and of the files that are read beside a checkpoint's.

    Of a model of the hub it is the commit.
    """
    if names.is_hub_name(uri):
        return hub.model_commit(uri)
    listed = storage.list_versions(uri)
    if not listed:
        if storage.exists(uri):
            raise UserError(f"{uri}: no file is in this folder")
        raise storage.MissingFileError(f"{uri}: no such file or folder")
    for place in names.beside(uri):
        listed += [[place, version] for _, version in storage.list_versions(place)]
    return artifacts.digest_json(listed)


def _models_state(curation: Mapping[str, Any]) -> dict[str, str]:
    """A digest of each model file of the user's that curation judges text with."""
    named = [(curation["language_identification"] or {}).get("model", "")]
    named += [(curation["quality_classifier"] or {}).get("scorer", "").removeprefix("fasttext:").rpartition("#")[0]]
    return {name: artifacts.digest_file(Path(name)) for name in named if name and Path(name).is_file()}


_MISSING = object()


def _at(data: Any, key: str, default: Any = None) -> Any:
    for part in key.split("."):
        if not isinstance(data, dict) or part not in data:
            return default
        data = data[part]
    return data


def _open_input(item: Component, name: str, kinds: tuple[str, ...], uri: str) -> artifacts.Artifact:
    artifact = artifacts.open_artifact(uri)
    if artifact.manifest.kind not in kinds:
        raise UserError(
            f"component '{item.name}', --{name.replace('_', '-')} {uri}: this is a {artifact.manifest.kind} artifact; "
            f"it takes {' or '.join(kinds)}"
        )
    return artifact
