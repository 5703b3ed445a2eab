"""The reference pages of the documentation: components, commands and recipe keys, each made from what defines it."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from components.commands.parameters import ComponentGroup
from components.contract import component_names, get_component
from components.documents import readme
from mmbert.recipe.schema import Recipe, parse_tokens

_PLAIN = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null", Any: "anything"}


def write_reference(folder: Path, cli: click.Group) -> list[Path]:
    """Write components.md, commands.md and recipe.md into `folder`, and return them."""
    pages = {"components.md": components_page(), "commands.md": commands_page(cli), "recipe.md": recipe_page()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages.items():
        (folder / name).write_text(text, "utf-8")
    return [folder / name for name in pages]


def components_page() -> str:
    parts = [
        "# Components",
        "Each is a typed function; its README, `component.yaml`, command and tasks are made from it.",
    ]
    for name in component_names():
        own = re.sub(r"^<!--.*?-->\s*", "", readme(get_component(name)))
        parts.append(re.sub(r"^# ", "## ", own, flags=re.MULTILINE).strip())
    return "\n\n".join(parts) + "\n"


def commands_page(cli: click.Group) -> str:
    """Every command with its options; those of `mmbert run` stand with the components."""
    parts = ["# Commands", _help(cli)]
    for words, command in _commands(cli, ("mmbert",)):
        name = " ".join(words)
        if isinstance(command, ComponentGroup):
            parts.append(f"## {name}\n\n{_help(command)}\n\nIts commands are the [components](components.md).")
        elif not isinstance(command, click.Group):
            parts.append("\n\n".join([f"## {name}", _usage(name, command), _help(command), _options(command)]).rstrip())
    return "\n\n".join(parts) + "\n"


def _commands(group: click.Group, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in sorted(group.commands.items()):
        yield (*words, name), command
        if isinstance(command, click.Group):
            yield from _commands(command, (*words, name))


def _usage(name: str, command: click.Command) -> str:
    pieces = command.collect_usage_pieces(click.Context(command, info_name=name))
    return f"    {name} {' '.join(pieces)}"


def _help(command: click.Command) -> str:
    # Click reads a line of \b as: leave the next paragraph as it is.
    return re.sub(r"^\x08\n", "", inspect.cleandoc(command.help or ""), flags=re.MULTILINE)


def _options(command: click.Command) -> str:
    context = click.Context(command)
    rows = []
    for parameter in command.params:
        if (
            isinstance(parameter, click.Option)
            and not parameter.hidden
            and (record := parameter.get_help_record(context))
        ):
            flags, about = record
            rows.append(f"| `{_cell(flags)}` | {_cell(about)} |")
    return "\n".join(["| option | meaning |", "|---|---|", *rows]) if rows else ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def recipe_page() -> str:
    """Every key of the recipe: a section of the schema each."""
    parts = [
        "# Recipe keys",
        "`mmbert recipe show tiny` prints a whole one. Tokens are whole numbers, or take a unit: 900k, 600B, 2.3T.",
    ]
    for path, section in _sections(Recipe):
        about = " ".join((section.__doc__ or "").split())
        rows = [_key_row(name, field) for name, field in section.model_fields.items()]
        heading = f"## {path or 'The recipe'}"
        parts.append(
            "\n".join([heading, "", about, "", "| key | takes | default | meaning |", "|---|---|---|---|", *rows])
        )
    return "\n\n".join(parts) + "\n"


def _sections(root: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """Each section once, under the first key that it stands at."""
    waiting, seen = [("", root)], set()
    while waiting:
        path, section = waiting.pop(0)
        if section in seen:
            continue
        seen.add(section)
        yield path, section
        below = []
        for name, field in section.model_fields.items():
            found = list(_models(field.annotation))
            for model in found:
                kind = _kind(model) if len(found) > 1 else ""
                star = ".NAME" if get_origin(_bare(field.annotation)) is dict else ""
                below.append((f"{path}.{name}{star}{kind}".lstrip("."), model))
        waiting = below + waiting


def _kind(model: type[BaseModel]) -> str:
    """Of one of several that a key may hold: they are told apart by their key `kind`."""
    return f" (kind: {get_args(model.model_fields['kind'].annotation)[0]})" if "kind" in model.model_fields else ""


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is typing.Annotated else annotation


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if _is_section(annotation):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _key_row(name: str, field: FieldInfo) -> str:
    takes = "tokens" if _counts_tokens(field) else _takes(field.annotation)
    takes = ", ".join(filter(None, (takes, _bounds(field))))
    return f"| `{name}` | {_cell(takes)} | {_cell(_default(field))} | {_cell(field.description or '')} |"


def _counts_tokens(field: FieldInfo) -> bool:
    nested = [item for argument in get_args(field.annotation) for item in getattr(argument, "__metadata__", ())]
    return any(getattr(item, "func", None) is parse_tokens for item in [*field.metadata, *nested])


def _takes(annotation: Any) -> str:  # noqa: PLR0911 - a case a type
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        return _takes(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        kinds = [_kind(model) for model in arguments if _is_section(model)]
        others = [_takes(argument) for argument in arguments if not _is_section(argument)]
        return " or ".join([*([f"a section{', '.join(kinds)}"] if kinds else []), *others])
    if origin is tuple and arguments[-1] is not ...:
        return f"[{', '.join(map(_takes, arguments))}]"
    if origin is tuple:
        return f"a list; each: {_takes(arguments[0])}"
    if origin is dict:
        return f"NAME: {_takes(arguments[1])}"
    return "a section" if _is_section(annotation) else _PLAIN.get(annotation, str(annotation))


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _bounds(field: FieldInfo) -> str:
    """What the schema asks of a number, as people write it."""
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤", "multiple_of": "a multiple of"}
    found = [(signs[key], getattr(item, key)) for item in field.metadata for key in signs if hasattr(item, key)]
    return ", ".join(f"{sign} {value:g}" for sign, value in found)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default if field.default is not PydanticUndefined else field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "its defaults"
    if value in ((), {}, ""):
        return "none"
    return f"`{_plain(value)}`"


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_plain, value))}]"
    return str(value)
