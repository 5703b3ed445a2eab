"""Whether a mirror has a data set's subsets: told from its card and the names of its files alone."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import yaml

from mmbert.errors import UserError
from mmbert.evaluation.suites.base import DataSet
from mmbert.evaluation.suites.data import PARQUET_EXPORT, how_to_mirror

CARD = "README.md"
_ONLY = "default"


def check_subsets(data: DataSet, place: str, files: Collection[str], read_card: Callable[[], bytes]) -> None:
    """Raises UserError where the mirror at `place` lacks one of the subsets, or the files that its card names for it.

    The subset `default` needs no card, so it is not looked for.
    """
    if data.revision == PARQUET_EXPORT:
        there = {path.partition("/")[0] for path in files if "/" in path}
        missing = [name for name in data.configs if name not in there]
    else:
        named = _declared(read_card()) if CARD in files else {}
        there = {name for name, patterns in named.items() if _any_matches(files, patterns)}
        missing = [name for name in data.configs if name not in {*there, _ONLY}]
    if missing:
        raise UserError(
            f"{place}: the mirror has no files of subset {', '.join(missing)}; it has those of "
            f"{', '.join(sorted(there)) or 'none'}; {how_to_mirror(data)}"
        )


def _declared(card: bytes) -> dict[str, list[str]]:
    """The subsets that a card's head declares, with the patterns of their files; empty where it has no such head."""
    _, _, rest = card.decode("utf-8", "replace").partition("---\n")
    try:
        head = yaml.safe_load(rest.partition("\n---")[0])
    except yaml.YAMLError:
        return {}
    declared = head.get("configs") if isinstance(head, Mapping) else None
    entries = [entry for entry in declared or () if isinstance(entry, Mapping)]
    return {str(entry.get("config_name", _ONLY)): list(_patterns(entry)) for entry in entries}


def _patterns(entry: Mapping[str, Any]) -> Iterator[str]:
    folder = str(entry.get("data_dir", "")).strip("/.")
    within = f"{folder}/" if folder else ""
    yield from (within + path for path in _paths(entry.get("data_files", "*")))


def _paths(declared: Any) -> Iterator[str]:
    """`data_files` as the hub takes them: a pattern, a list, or these by split."""
    if isinstance(declared, str):
        yield declared.removeprefix("./")
    elif isinstance(declared, Mapping):
        parts = [declared["path"]] if "path" in declared else list(declared.values())
        yield from (path for part in parts for path in _paths(part))
    elif isinstance(declared, list):
        yield from (path for part in declared for path in _paths(part))


def _any_matches(files: Collection[str], patterns: Collection[str]) -> bool:
    # Addresses elsewhere are no files of the mirror.
    return any("://" in pattern or fnmatch.filter(files, pattern) for pattern in patterns)
