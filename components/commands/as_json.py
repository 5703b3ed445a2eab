"""The option `--json` of commands that else print for people."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click


def json_option(says: str = "print the result as JSON") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option("--json", "as_json", is_flag=True, help=says)


def echo_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1, ensure_ascii=False))
