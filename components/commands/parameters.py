"""A component's parameters as options of a command, and a group with a command for each component."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from components.contract import Component, Parameter, component_names, get_component


class ComponentGroup(click.Group):
    """Its commands are made from the components' contracts, when they are asked for."""

    def __init__(self, *args: Any, make: Callable[[Component], click.Command], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._make = make

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return component_names()

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        return self._make(get_component(cmd_name)) if cmd_name in component_names() else None


def options(item: Component) -> list[click.Option]:
    return [_option(parameter) for parameter in item.parameters]


def plain(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments as click gives them, lists as lists."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in arguments.items()}


def _option(parameter: Parameter) -> click.Option:
    about = parameter.help if not parameter.kinds else f"{parameter.help} ({' or '.join(parameter.kinds)})"
    kind: Any = click.Choice(parameter.choices) if parameter.choices else str
    default = () if parameter.is_list else parameter.default
    return click.Option(
        [f"--{parameter.name.replace('_', '-')}", parameter.name],
        required=parameter.default is None,
        default=default if parameter.default is not None else None,
        multiple=parameter.is_list,
        type=kind,
        help=f"{about}{'; may be given several times' if parameter.is_list else ''}",
    )
