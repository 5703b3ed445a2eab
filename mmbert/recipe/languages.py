"""The language table: codes, names, scripts and published token counts.

`languages.csv` has a row a language: `code` (ISO 639-3 and ISO 15924 script, `deu_Latn`; `code` for source code),
`name`, and the published token counts of each phase and decay variant (0 where it is not in one). It is made by
`mmbert/recipe/make_languages.py`.
"""

from __future__ import annotations

import csv
import difflib
import functools
from dataclasses import dataclass
from importlib import resources

CODE = "code"
PUBLISHED_COLUMNS = {
    "published-pretrain": "pretrain",
    "published-extend": "ext",
    "published-decay-eng": "decay-eng",
    "published-decay-cont": "decay-mid",
    "published-decay-all": "decay-all",
}
LANGUAGE_SETS = ("all", *PUBLISHED_COLUMNS)
"""Sets that every recipe can name: `all` that the sources hold, and those of the published phases."""


@dataclass(frozen=True)
class Language:
    code: str
    name: str
    tokens: dict[str, int]
    """Published tokens by column of the counts file."""

    @property
    def script(self) -> str:
        """ISO 15924; empty for source code."""
        return self.code.partition("_")[2]

    @property
    def phases(self) -> tuple[str, ...]:
        """The published phases and decay variants that it is in, by the names of `PUBLISHED_COLUMNS`."""
        return tuple(name for name, column in PUBLISHED_COLUMNS.items() if self.tokens[column])


@functools.cache
def language_table() -> dict[str, Language]:
    text = resources.files("mmbert.recipe").joinpath("languages.csv").read_text("utf-8")
    rows = csv.DictReader(text.splitlines())
    columns = sorted(set(PUBLISHED_COLUMNS.values()))
    return {r["code"]: Language(r["code"], r["name"], {c: int(r[c] or 0) for c in columns}) for r in rows}


def known_languages() -> frozenset[str]:
    return frozenset(language_table())


def language_problem(code: str) -> str:
    """What is wrong with a language code, and which one is probably meant; empty for a known one."""
    table = language_table()
    if code in table:
        return ""
    language, _, script = code.partition("_")
    scripts = [known for known in table if known.partition("_")[0] == language]
    as_written = f"{language.lower()}_{script.title()}"
    if as_written in table:
        return f"unknown language '{code}'; write it {as_written}, the language small and the script with a capital"
    if scripts and script:
        return f"language '{code}' has another script than is known for it; the table has {' and '.join(scripts)}"
    near = scripts or difflib.get_close_matches(code, table, n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"unknown language '{code}'; write it like deu_Latn (ISO 639-3 and script){hint}"


def language_name(code: str) -> str:
    """A person's name for a code; the code itself where none is known."""
    language = language_table().get(code)
    return language.name if language else code


def published_set(name: str) -> tuple[str, ...]:
    """The languages of a published phase, code included, sorted."""
    column = PUBLISHED_COLUMNS[name]
    return tuple(sorted(code for code, language in language_table().items() if language.tokens[column] > 0))
