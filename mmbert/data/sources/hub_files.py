"""Files of a data set on the hub by pattern, languages among its folders."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mmbert import hub
from mmbert.data.readers import Selection
from mmbert.recipe.languages import known_languages

_LANGUAGE = "{language}"


@dataclass(frozen=True)
class HubFile:
    """A file of a data set. `path` is relative to it; `language` is what `{language}` stood for, if anything."""

    path: str
    language: str | None
    version: str


def find_files(
    dataset: str, commit: str, patterns: tuple[str, ...], codes: dict[str, str], selection: Selection
) -> list[HubFile]:
    """The files that match, sorted by path, without those of a pattern with a leading `!`.

    Patterns know `*`, `**` and `{language}`, which stands for a code that is known, or that `codes` maps to one.
    Folders of languages that are not selected are not even listed.
    """
    fs, root = hub.root_of(dataset, commit)
    names = frozenset({*known_languages(), *codes})
    unwanted = [_to_regex(pattern[1:], names) for pattern in patterns if pattern.startswith("!")]
    found: dict[str, HubFile] = {}
    for pattern in patterns:
        if not pattern.startswith("!"):
            for path, language, info in _walk(fs, root, "", pattern.split("/"), None, codes, selection):
                if not any(regex.fullmatch(path) for regex in unwanted):
                    version = f"{commit}:{path}" if not hub.is_local(dataset) else f"{info['size']}-{info.get('mtime')}"
                    found[path] = HubFile(path, language, version)
    return [found[path] for path in sorted(found)]


def _walk(
    fs: Any, root: str, folder: str, parts: list[str], language: str | None, codes: dict[str, str], selection: Selection
) -> Iterator[tuple[str, str | None, Any]]:
    """(path, language, info) of the files below a folder that match the rest of a pattern."""
    part, *rest = parts
    names = frozenset({*known_languages(), *codes})
    if rest and not any(mark in part for mark in ("*", _LANGUAGE)):
        yield from _walk(fs, root, f"{folder}{part}/", rest, language, codes, selection)
        return
    deep = part == "**"
    regex = _to_regex("/".join(parts) if deep else part, names)
    for path, info in _entries(fs, root, folder, deep):
        match = regex.fullmatch(path)
        is_file = info["type"] == "file"
        if not match or is_file != (deep or not rest):
            continue
        named = match.groupdict().get("language")
        code = language if named is None else codes.get(named, named)
        if code is not None and code not in selection:
            continue
        if is_file:
            yield folder + path, code, info
        else:
            yield from _walk(fs, root, f"{folder}{path}/", rest, code, codes, selection)


def _entries(fs: Any, root: str, folder: str, deep: bool) -> list[tuple[str, Any]]:
    """(path below the folder, info) of what it holds, sorted; with `deep`, of all files below it."""
    base = f"{root}/{folder}".rstrip("/")
    try:
        infos = fs.find(base, detail=True).values() if deep else fs.ls(base, detail=True)
    except FileNotFoundError:
        return []
    return sorted((info["name"][len(base) + 1 :], info) for info in infos)


@functools.cache
def _to_regex(pattern: str, languages: frozenset[str]) -> re.Pattern[str]:
    # Longer names first, so that no language's name hides behind another's beginning.
    names = "|".join(sorted(map(re.escape, languages), key=lambda name: (-len(name), name)))
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", _LANGUAGE: f"(?P<language>{names})"}
    pieces = re.split(r"(\*\*/|\*\*|\*|\{language\})", pattern)
    return re.compile("".join(meaning.get(piece, re.escape(piece)) for piece in pieces))
