"""The documentation: every command in it exists, with each of its options, and the reference has all that there is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from components.cli import cli
from components.contract import component_names
from components.reference import commands_page, components_page, recipe_page
from mmbert.recipe import load_recipe
from tests.pages import MARKS, PAGES, Block, all_blocks, blocks, mistakes, run_by_tests

ROOT = Path(__file__).resolve().parents[2]
_CODE = re.compile(r"```[a-z]*\n(.*?)```|`([^`\n]+)`|^ {4}([^\n]+)$", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"^\s*(?:[A-Z_]+=\S+ +)*(?:\.venv/bin/)?(mmbert|make) +([^\n;&|#>]*)", re.MULTILINE)


def said(page: Path) -> Iterator[tuple[str, list[str]]]:
    """(`mmbert` or `make`, its words) of each command in a page's code."""
    text = re.sub(r"\\\n\s*", "", page.read_text("utf-8"))
    for found in _CODE.findall(text):
        for program, rest in _COMMAND.findall("".join(found)):
            yield program, re.sub(r"'[^']*'|\"[^\"]*\"", "TEXT", rest).split()


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


def unknown(words: list[str]) -> str:
    """What of an `mmbert` command there is not; empty where all of it is."""
    command: click.Command = cli
    context = click.Context(cli, info_name="mmbert")
    rest = list(words)
    while isinstance(command, click.Group) and rest and re.fullmatch(r"[a-z][a-z_-]*", rest[0]):
        name = rest.pop(0)
        found = command.get_command(context, name)
        if found is None:
            return f"no command '{name}'"
        command = found
    if isinstance(command, click.Group) and rest:
        return ""  # of a placeholder, as in `mmbert run NAME`
    options = {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts}
    options |= {"--help", "-h", "--version", "--..."}
    for word in rest:
        option = word.strip("[],.)").partition("=")[0]
        if re.match(r"--?[a-z.]", option) and option not in options:
            return f"no option {option}"
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_exists(page: Path) -> None:
    targets, wrong = make_targets(), []
    for program, words in said(page):
        if program == "mmbert" and (problem := unknown(words)):
            wrong.append(f"mmbert {' '.join(words)}: {problem}")
        target = next((word for word in words if not word.startswith("-")), "")
        if program == "make" and target.islower() and target not in targets:
            wrong.append(f"make {target}: no such target")
    assert not wrong, "\n".join(wrong)


def test_commands_are_found_in_all_kinds_of_code(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Say `mmbert run x --root R`.\n\n    .venv/bin/mmbert \\\n      recipe show 'a b'\n\n```sh\nmake -s env\n```\n"
    )
    assert list(said(page)) == [
        ("mmbert", ["run", "x", "--root", "R"]), ("mmbert", ["recipe", "show", "TEXT"]), ("make", ["-s", "env"]),
    ]  # fmt: skip
    assert unknown(["run", "train", "--fase", "x"]) == "no option --fase"
    assert unknown(["shw"]) == "no command 'shw'"


def test_every_block_of_commands_is_run_or_marked() -> None:
    found = all_blocks()
    assert not mistakes(found), "\n".join(mistakes(found))
    assert len([command for block in found for command in run_by_tests(block)]) > 50


def page_of(folder: Path, text: str) -> list[Block]:
    (folder / "page.md").write_text(text, "utf-8")
    return blocks(folder / "page.md")


PAGE = """# A page

Say **this** (*needs a GPU*):

    python a.py

And:

```sh
mmbert plan \\
  --preset tiny # b
make demo  # all of it (takes minutes)
```

## A cluster

*Commands here need a cluster.*

### Pods

These:

    kubectl get pods

    helm list

## The rest

    import json

is no command, nor is

    key: value
"""


def test_marks_are_above_a_block_at_a_command_or_below_a_heading(tmp_path: Path) -> None:
    gpu, mixed, cluster, python = page_of(tmp_path, PAGE)
    assert (gpu.mark, gpu.commands[0].text) == ("needs a GPU", "python a.py")
    assert [(c.text, c.mark) for c in mixed.commands] == [
        ("mmbert plan --preset tiny", ""), ("make demo", "takes minutes"),
    ]  # fmt: skip
    assert [c.text for c in cluster.commands] == ["kubectl get pods", "helm list"]
    assert {c.mark for c in cluster.commands} == {"needs a cluster"}
    assert (python.python, python.mark, python.line) == ("import json", "", 29)
    assert mistakes([gpu, mixed, cluster, python]) == []


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("    kubectl get pods\n", "page.md:1: 'kubectl get pods' is neither run by a test nor marked"),
        ("    cd build\n    mmbert plan\n", "page.md:1: 'cd build' is neither run by a test nor marked"),
        (
            "It *needs a moon*:\n\n    make moon\n",
            f"page.md:3: 'needs a moon' is no mark; there are {', '.join(MARKS)}",
        ),
        (
            "It *needs a GPU*:\n\n    mmbert plan\n\nas here:\n\n    mmbert plan\n",
            "page.md:3: marked 'needs a GPU', and a test runs it",
        ),
    ],
)
def test_what_is_neither_run_nor_marked_or_both_is_told(tmp_path: Path, text: str, mistake: str) -> None:
    assert mistakes(page_of(tmp_path, text)) == [mistake]


def test_the_reference_has_every_key_component_and_command() -> None:
    recipe = recipe_page()

    def leaves(value: object, section: str) -> Iterator[tuple[str, str]]:
        for key, below in value.items() if isinstance(value, dict) else ():
            yield section, key
            yield from leaves(below, f"{section}.{key}".lstrip("."))

    sections = {"", "model", "curation", "training", "training.bad_batches", "phases.extend.batch", "release.gate"}
    tiny = load_recipe("tiny").model_dump(mode="json")
    written = {key for section, key in leaves(tiny, "") if section in sections}
    assert not [key for key in written if f"| `{key}` |" not in recipe]
    assert "| `tokens` | tokens, > 0 | required |" in recipe
    assert not [name for name in component_names() if f"\n## {name}\n" not in components_page()]
    commands = commands_page(cli)
    assert "## mmbert recipe show" in commands
    assert "| `--temperature FLOAT` |" in commands
