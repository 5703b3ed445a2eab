"""The option `--json` of commands that else print for people."""

from __future__ import annotations

import json
from typing import Any

import click

as_json_option = click.option("--json", "as_json", is_flag=True, help="print the result as JSON")


def echo_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1, ensure_ascii=False))
