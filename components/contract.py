"""What a component is. Its contract stands once: the typed signature and docstring of its entry function.

From it are made the command line, component.yaml, the README, the Airflow task and the KFP task. This module and the
component modules import nothing heavy, so that an orchestrator can read them.
"""

from __future__ import annotations

import importlib
import inspect
import json
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from mmbert.errors import UserError

ResourceClass = Literal["small", "data", "train", "eval"]


@dataclass(frozen=True)
class Input:
    """Marks a parameter that takes the URI of an artifact of one of these kinds (a list of URIs for `list[str]`)."""

    kinds: tuple[str, ...]

    def __init__(self, *kinds: str) -> None:
        object.__setattr__(self, "kinds", kinds)


@dataclass(frozen=True)
class SourceFiles:
    """Marks a parameter that names a user's own file or folder: the fingerprint covers which version of it there is."""


@dataclass(frozen=True)
class Parameter:
    name: str
    help: str
    kinds: tuple[str, ...] = ()
    """Artifact kinds that it accepts; empty for a plain value."""
    is_list: bool = False
    is_source: bool = False
    """It names files of the user's."""
    choices: tuple[str, ...] = ()
    default: str | None = None
    """None where it is required; optional ones are strings, empty by default."""


@dataclass(frozen=True)
class Component:
    name: str
    function: Callable[..., None]
    produces: str
    version: int
    image: Literal["data", "train", "eval"]
    resources: ResourceClass
    reads: tuple[str, ...]
    """Recipe keys that it may read, `{parameter}` filled from its arguments: what its fingerprint covers."""
    operational: tuple[str, ...]
    """Keys of these, or below them, that its fingerprint leaves out: how the work is done, not what comes of it."""
    fingerprinted: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]] | None
    """Given the recipe's values by key and the arguments, the values that count, where some matter only with others."""
    used: Callable[[dict[str, Any]], dict[str, Any]] | None
    """The arguments that it uses of those that it is given, where some matter only with others."""
    distributed: bool
    """True where several processes can do one piece of work together."""
    outputs: tuple[str, ...]
    """Small plain lists that it leaves in its manifest for the workflow to fan out over."""
    idempotent_effect: bool
    """True where its result lies outside the object store (a registry), so it is never found done."""
    momentary: bool
    """True where it reads a state that changes (a registry, a history): its result is one workflow run's own."""
    parameters: tuple[Parameter, ...]
    summary: str
    description: str

    @property
    def module(self) -> str:
        return self.function.__module__


RECIPE_HELP = "URI of a recipe artifact, a recipe file, or a preset's name"


def component(
    *,
    produces: str,
    version: int,
    image: Literal["data", "train", "eval"],
    resources: ResourceClass,
    reads: tuple[str, ...] = (),
    operational: tuple[str, ...] = (),
    fingerprinted: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]] | None = None,
    used: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    distributed: bool = False,
    outputs: tuple[str, ...] = (),
    idempotent_effect: bool = False,
    momentary: bool = False,
) -> Callable[[Callable[..., None]], Component]:
    """Make a component of its entry function. `version` is raised by hand whenever its results change."""

    def make(function: Callable[..., None]) -> Component:
        summary, _, rest = inspect.cleandoc(function.__doc__ or "").partition("\n")
        return Component(
            name=function.__name__.removesuffix("_"),
            function=function,
            produces=produces,
            version=version,
            image=image,
            resources=resources,
            reads=reads,
            operational=operational,
            fingerprinted=fingerprinted,
            used=used,
            distributed=distributed,
            outputs=outputs,
            idempotent_effect=idempotent_effect,
            momentary=momentary,
            parameters=_parameters(function),
            summary=summary,
            description=rest.strip(),
        )

    return make


def _parameters(function: Callable[..., None]) -> tuple[Parameter, ...]:
    hints = typing.get_type_hints(function, include_extras=True)
    found = []
    for name, declared in list(inspect.signature(function).parameters.items())[1:]:
        plain, *notes = typing.get_args(hints[name])
        kinds = next((n.kinds for n in notes if isinstance(n, Input)), ())
        help_text = next(n for n in notes if isinstance(n, str))
        choices = tuple(typing.get_args(plain)) if typing.get_origin(plain) is Literal else ()
        is_list = typing.get_origin(plain) is list
        default = None if declared.default is inspect.Parameter.empty else "" if is_list else str(declared.default)
        is_source = any(isinstance(n, SourceFiles) for n in notes)
        found.append(Parameter(name, help_text, kinds, is_list, is_source, choices, default))
    return tuple(found)


def component_names() -> list[str]:
    return sorted(folder.parent.name for folder in Path(__file__).parent.glob("*/component.py"))


def get_component(name: str) -> Component:
    """The component of that name. Raises UserError if there is none."""
    if name not in component_names():
        raise UserError(f"no component '{name}'; there are {', '.join(component_names())}")
    found = getattr(importlib.import_module(f"components.{name}.component"), name)
    return cast(Component, found)


def component_folder(item: Component) -> Path:
    return Path(inspect.getfile(item.function)).parent


def check_arguments(item: Component, arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments with defaults filled in and nested lists made flat. Raises UserError where they do not fit."""
    known = {p.name for p in item.parameters}
    for name in arguments:
        if name not in known:
            raise UserError(f"component '{item.name}' has no parameter '{name}'; it has {', '.join(sorted(known))}")
    checked: dict[str, Any] = {}
    for parameter in item.parameters:
        value = arguments.get(parameter.name, parameter.default)
        if value is None or (parameter.is_source and parameter.default is None and not value):
            raise UserError(f"component '{item.name}' needs --{parameter.name.replace('_', '-')}: {parameter.help}")
        if parameter.is_list:
            value = _flat(value)
        elif parameter.choices and value not in parameter.choices:
            raise UserError(f"--{parameter.name} '{value}': it must be one of {', '.join(parameter.choices)}")
        checked[parameter.name] = value
    return checked


def _flat(value: Any) -> list[str]:
    """Nested lists made flat; a string that is a JSON list is one too, since KFP passes lists so."""
    if isinstance(value, str):
        if value.startswith("["):
            try:
                return _flat(json.loads(value))
            except ValueError as error:
                raise UserError(f"'{value}' begins like a JSON list and is none: {error}") from error
        return [value] if value else []
    return [item for part in value for item in _flat(part)]
