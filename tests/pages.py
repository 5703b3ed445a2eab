"""The commands of README.md and docs/*.md, and the marks of those that tests do not run."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.fixtures_stack import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MARKS = ("needs a cluster", "needs a GPU", "needs docker or podman", "needs the network", "takes minutes")
"""`*needs a GPU*` in the lines above a block marks it, `(needs a GPU)` at a command's end that one, and `*Commands here
need a GPU.*` below a heading all of its section."""

PROGRAMS = (
    ".venv/bin/mmbert", ".venv/bin/python", ".venv-orchestrator/bin/airflow", "aws", "bash", "cat", "cd", "composer",
    "curl", "docker", "duckdb", "eval", "export", "for", "git", "helm", "hf", "kubectl", "make", "mmbert", "pip",
    "podman", "psql", "python", "sed", "terraform", "torchrun", "uv",
)  # fmt: skip
"""A block with a line that begins with one of them is one of commands."""
_PROGRAM = re.compile(rf"(?:[A-Z_]+=\S* +)*(?:{'|'.join(map(re.escape, PROGRAMS))})(?: |$)")
_PYTHON = re.compile(r"(?:from [\w.]+ )?import \w")
_HEADING = re.compile(r"(#+) ")
_MARK = re.compile(r"\*((?:needs|takes) [^*]+)\*")
_OF_A_SECTION = re.compile(r"\*Commands here (.+)\.\*")
_OF_A_COMMAND = re.compile(r"\s#\s.*\(((?:needs|takes) [^()]+)\)$")
_COMMENT = re.compile(r"(?:^|\s+)#\s.*$")

WAYS = {
    "environment": re.compile(r'eval "\$\(make -s env\)"'),
    "stack": re.compile(r"make (up|status|login|down)|\.venv-orchestrator/bin/airflow dags list"),
    "shell": re.compile(r"(\.venv/bin/)?mmbert kfp .*|curl .*|make audit .*"),
    "here": re.compile(r"([A-Z_]+=\S+ )?(\.venv/bin/)?mmbert .*"),
}
"""How tests run a command without a mark: `stack` in test_local_stack.py, the others in test_docs_commands.py, where
examples in Python are run too."""


@dataclass(frozen=True)
class Command:
    text: str
    mark: str = ""

    @property
    def way(self) -> str:
        """One of WAYS; empty where no test would run it."""
        return next((way for way, form in WAYS.items() if form.fullmatch(self.text)), "")


@dataclass(frozen=True)
class Block:
    """A block of code. `python` where it is an example in Python, else the commands in it, if there are any."""

    page: str
    line: int
    mark: str
    python: str
    commands: tuple[Command, ...]


def blocks(page: Path) -> list[Block]:
    """The blocks of a page that hold commands or Python."""
    name = str(page.relative_to(ROOT)) if page.is_relative_to(ROOT) else page.name
    found = [_block(name, line, mark, text) for line, mark, text in _blocks(page.read_text("utf-8").splitlines())]
    return [block for block in found if block.python or block.commands]


def all_blocks() -> list[Block]:
    return [block for page in PAGES for block in blocks(page)]


def _blocks(lines: list[str]) -> Iterator[tuple[int, str, str]]:
    """Number of the first line, mark and text of each block, fenced or indented."""
    sections: list[tuple[int, str]] = []  # level of a heading, mark
    above, i = "", 0
    while i < len(lines):
        line, start = lines[i], i
        i += 1
        if line.startswith("```"):
            while lines[i] != "```":
                i += 1
            yield start + 2, _mark(above, sections), "\n".join(lines[start + 1 : i])
            i += 1
        elif line.startswith("    ") and not (start and lines[start - 1].strip()):
            while i < len(lines) and (lines[i].startswith("    ") or not lines[i].strip()):
                i += 1
            yield start + 1, _mark(above, sections), textwrap.dedent("\n".join(lines[start:i])).strip()
        elif heading := _HEADING.match(line):
            sections = [(level, mark) for level, mark in sections if level < len(heading[1])]
            sections.append((len(heading[1]), ""))
            above = ""
        elif (section := _OF_A_SECTION.fullmatch(line)) and sections:
            sections[-1] = (sections[-1][0], section[1].replace("need ", "needs ").replace("take ", "takes "))
            above = ""
        elif line.strip():
            above = f"{above}\n{line}" if lines[start - 1].strip() else line


def _mark(above: str, sections: list[tuple[int, str]]) -> str:
    own = _MARK.findall(above)
    return own[-1] if own else next((mark for _, mark in reversed(sections) if mark), "")


def _block(page: str, line: int, mark: str, text: str) -> Block:
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    if _PYTHON.match(text):
        return Block(page, line, mark, text, ())
    if not any(_PROGRAM.match(line) for line in lines):
        return Block(page, line, mark, "", ())
    return Block(page, line, mark, "", tuple(_command(line, mark) for line in lines if line.strip()))


def _command(line: str, mark: str) -> Command:
    own = _OF_A_COMMAND.search(line)
    return Command(_COMMENT.sub("", line), own[1] if own else mark)


def run_by_tests(block: Block) -> list[Command]:
    return [command for command in block.commands if not command.mark]


def mistakes(found: list[Block]) -> list[str]:
    """Commands that are neither run nor marked, marks that are none, and marks of what is run all the same."""
    run = {command.text for block in found for command in run_by_tests(block)}
    wrong = []
    for block in found:
        place = f"{block.page}:{block.line}"
        wrong += [
            f"{place}: '{command.text}' is neither run by a test nor marked"
            for command in run_by_tests(block)
            if not command.way
        ]
        marks = {block.mark, *(command.mark for command in block.commands)} - {"", *MARKS}
        wrong += [f"{place}: '{mark}' is no mark; there are {', '.join(MARKS)}" for mark in sorted(marks)]
        marked = [command for command in block.commands if command.mark]
        if marked and all(command.text in run for command in marked):
            wrong.append(f"{place}: marked '{marked[0].mark}', and a test runs it")
    return wrong
