"""`mmbert kubernetes`: what the launcher `kubernetes` would create, for people and tools to look at."""

from __future__ import annotations

import re
from typing import Any

import click
import yaml

from components.commands import parameters
from components.commands.as_json import echo_json
from components.contract import Component, check_arguments
from mmbert.errors import UserError


class _Plain(yaml.SafeDumper):
    """Writes out what stands in several places, without YAML's anchors."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the dumper asks of each value
        return True


@click.group(name="kubernetes")
def kubernetes_group() -> None:
    """The launcher `kubernetes`: look at what it creates."""


def _manifest_command(item: Component) -> click.Command:
    options = parameters.options(item)
    options.append(click.Option(["--root"], default=None, help="where artifacts are kept (s3://); default MMBERT_ROOT"))
    options.append(click.Option(["--task"], default=item.name, show_default=True, help="name of its run in MLflow"))
    options.append(
        click.Option(
            ["--fingerprint"], default="", metavar="HEX",
            help="take this for the work's fingerprint, and ask the store for nothing; its inputs need not be there",
        )
    )  # fmt: skip

    options.append(click.Option(["--json", "as_json"], is_flag=True, help="print a List of them as JSON"))

    def callback(root: str | None, task: str, fingerprint: str, as_json: bool, **arguments: Any) -> None:
        from components import launchers, planning
        from components.launchers.kubernetes.manifests import check, manifests
        from components.runtime import root_uri
        from mmbert import storage

        root = root or root_uri()
        check(item, root)
        given = parameters.plain(arguments)
        if fingerprint:
            if not re.fullmatch(r"[0-9a-f]{8,64}", fingerprint):
                raise UserError(f"--fingerprint {fingerprint}: it is 8 to 64 hex digits")
            checked = check_arguments(item, given)
            plan = planning.Plan(
                item, checked, {}, {}, fingerprint, storage.join(root, item.produces, fingerprint)
            )  # fmt: skip
        else:
            plan = planning.plan(item, given, root)
        made = manifests(plan, launchers.command_line(item, plan.arguments, root, task), root)
        objects = [made.item, *([made.service] if made.service else [])]
        if made.note:
            click.echo(f"warning: {made.note}", err=True)
        if as_json:
            echo_json({"apiVersion": "v1", "kind": "List", "items": objects})
            return
        click.echo(yaml.dump_all(objects, Dumper=_Plain, sort_keys=False, width=120), nl=False)

    text = f"Print the YAML of what is created for this: {item.summary}"
    return click.Command(item.name, params=list(options), callback=callback, help=text, short_help=item.summary)


kubernetes_group.add_command(
    parameters.ComponentGroup(
        "manifest",
        make=_manifest_command,
        help="Print what would be created for a component, as YAML: for review, `kubectl diff` and checks.",
    )
)
