"""component.yaml (Kubeflow's component format) and README.md of each component, made from its contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from components.contract import Component, Parameter, component_folder, component_names, get_component
from mmbert.errors import UserError

STRING, LIST = "String", "JsonArray"
"""Kubeflow's names of the types that a component's parameters have."""
ROOT_INPUT = {"name": "root", "type": STRING, "description": "where artifacts are kept (s3:// prefix)"}


@dataclass(frozen=True)
class Entry:
    """An input of component.yaml."""

    name: str
    type: str


def generate_all(check: bool = False) -> list[Path]:
    """Write both files of every component, or with `check` raise UserError naming those that differ."""
    wanted: dict[Path, str] = {}
    for name in component_names():
        item = get_component(name)
        wanted[component_folder(item) / "component.yaml"] = component_yaml(item)
        wanted[component_folder(item) / "README.md"] = readme(item)
    changed = [p for p, text in wanted.items() if not p.exists() or p.read_text("utf-8") != text]
    if check and changed:
        names = ", ".join(f"{p.parent.name}/{p.name}" for p in changed)
        raise UserError(f"{names}: not what the entry function says; run 'mmbert components generate'")
    for path in changed:
        path.write_text(wanted[path], "utf-8")
    return changed


def component_yaml(item: Component) -> str:
    header = "# Made by 'mmbert components generate' from the entry function in component.py. Do not edit.\n"
    return header + yaml.safe_dump(component_document(item), sort_keys=False, width=120)


def component_document(
    item: Component, items: Mapping[str, Sequence[Entry]] | None = None, each: str = ""
) -> dict[str, Any]:
    """component.yaml as data. `items` says which inputs a parameter gets in place of one of its own name and type.

    With `each` the component runs once for each item of that parameter, and leaves a list of URIs.
    """
    entries = {p.name: [Entry(p.name, _type(p))] for p in item.parameters} | dict(items or {})
    inputs: list[dict[str, Any]] = []
    arguments: list[Any] = ["--root", {"inputValue": "root"}]
    for parameter in item.parameters:
        for entry in entries[parameter.name]:
            optional = _optional(parameter) if entry.name == parameter.name else {}
            inputs.append({"name": entry.name, "type": entry.type, "description": _about(parameter), **optional})
            arguments += [f"--{parameter.name.replace('_', '-')}", {"inputValue": entry.name}]
    inputs.append(ROOT_INPUT)
    about_result = f"JSON with the {item.produces} artifact's uri, its lists, and whether it was there already"
    outputs = [
        {"name": "uri", "type": LIST if each else STRING, "description": f"the {item.produces} artifact's URI"},
        *({"name": name, "type": LIST, "description": f"the list {name} of it"} for name in item.outputs),
        {"name": "result", "type": STRING, "description": about_result},
    ]
    arguments += ["--each", each] if each else []
    for name in ("uri", *item.outputs):
        arguments += ["--output", name, {"outputPath": name}]
    return {
        "name": item.name,
        "description": f"{item.summary}\n\n{item.description}",
        "inputs": inputs,
        "outputs": outputs,
        "implementation": {
            "container": {
                "image": f"mmbert-{item.image}",
                "command": ["mmbert", "run", item.name],
                "args": [*arguments, "--result-file", {"outputPath": "result"}],
            }
        },
    }


def readme(item: Component) -> str:
    rows = [f"| `--{p.name.replace('_', '-')}` | {_takes(p)} | {_default(p)} | {p.help} |" for p in item.parameters]
    reads = "\n".join(f"- `{key}`" for key in item.reads) or "- nothing"
    operational = "\n".join(f"- `{key}`" for key in item.operational)
    if operational:
        operational = (
            f"\nOf these, its fingerprint leaves out (how the work is done, not what comes of it):\n\n{operational}\n"
        )
    flags = " ".join(f"--{p.name.replace('_', '-')} ..." for p in item.parameters if p.default is None)
    return f"""<!-- Made by 'mmbert components generate' from the entry function in component.py. Do not edit. -->

# {item.name}

{item.summary}

{item.description}

    mmbert run {item.name} {flags}

| argument | takes | default | meaning |
|---|---|---|---|
{chr(10).join(rows)}
| `--root` | text | `MMBERT_ROOT` or `./artifacts` | where artifacts are kept |

It makes one **{item.produces}** artifact, at `<root>/{item.produces}/<fingerprint>`. Version {item.version};
image target `{item.image}`; resource class `{item.resources}`.{_momentary(item)}

Recipe keys that it may read, and that its fingerprint covers:

{reads}
{operational}"""


def _momentary(item: Component) -> str:
    return " Each workflow run makes its own, since what it reads changes." if item.momentary else ""


def _about(parameter: Parameter) -> str:
    kinds = f" ({' or '.join(parameter.kinds)} artifact)" if parameter.kinds else ""
    return f"{parameter.help}{kinds}{'; a JSON list' if parameter.is_list else ''}"


def _type(parameter: Parameter) -> str:
    return LIST if parameter.is_list else STRING


def _optional(parameter: Parameter) -> dict[str, Any]:
    if parameter.default is None:
        return {}
    return {"optional": True, "default": "[]" if parameter.is_list else parameter.default}


def _takes(parameter: Parameter) -> str:
    if parameter.kinds:
        kinds = " or ".join(parameter.kinds)
        return f"URIs of {kinds} artifacts, several times" if parameter.is_list else f"URI of a {kinds} artifact"
    if parameter.choices:
        return ", ".join(f"`{c}`" for c in parameter.choices)
    return "text, several times" if parameter.is_list else "text"


def _default(parameter: Parameter) -> str:
    if parameter.default is None:
        return "required"
    return "none" if parameter.is_list or not parameter.default else f"`{parameter.default}`"
