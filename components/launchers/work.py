"""A piece of work as launchers outside this process see it: its name, the files it names, what is said of its end."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from components import planning
from components.planning import Plan
from mmbert.release import names

KILLED = 137
_STORE = ("AWS_ENDPOINT_URL", "S3_ENDPOINT_URL")


def store() -> str:
    """Which store this process writes to: stores on two addresses may have buckets of one name."""
    return "\n".join(os.environ.get(name, "") for name in _STORE)


def digest(plan: Plan, where: str = "") -> str:
    """16 hex digits of the work and of which store it is for, where that is not the same for all."""
    return hashlib.sha256(f"{plan.uri}\n{where}".encode()).hexdigest()[:16]


def object_name(plan: Plan, where: str = "") -> str:
    """What its container, or its object on a cluster, is called: a DNS label."""
    return f"mmbert-{plan.component.name.replace('_', '-')}-{digest(plan, where)}"


def local_files(plan: Plan) -> list[str]:
    """The local files and folders that arguments and recipe name, and what is read beside them."""
    recipe = planning.recipe_of(plan.arguments).model_dump(mode="json")
    found = {text for text in _strings([plan.arguments, recipe]) if _is_local(text)}
    return sorted(found | {beside for text in found for beside in names.beside(text) if _is_local(beside)})


def about_memory(name: str, limit: float | None, key: str, ran_out: bool) -> str:
    """What to say of a container that was killed. `key` says where its memory limit (GiB) comes from."""
    if limit is None:
        return f"the container of '{name}' was killed (SIGKILL), by lack of memory perhaps; it has no limit of its own"
    gave = f"its memory limit of {limit:g} GiB ({key})"
    if ran_out:
        return f"the container of '{name}' ran out of memory: {gave}; raise it in a profile of your own"
    return f"the container of '{name}' was killed (SIGKILL): by {gave}, unless somebody stopped it"


def _strings(value: Any) -> Iterator[str]:
    """All text in a value; of `key=value` the value too, and of `fasttext:path#label` the path."""
    if isinstance(value, str):
        yield value
        yield value.rpartition("=")[2]
        yield value.removeprefix("fasttext:").rpartition("#")[0]
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, Iterable):
        for item in value:
            yield from _strings(item)


def _is_local(text: str) -> bool:
    """Whether this names a file or folder of this machine. `tiny` is a name and no path, whatever lies here."""
    named = text.startswith("/") or "/" in text or text.endswith((".yaml", ".yml"))
    if not named or "://" in text or "\n" in text or not text.strip("/."):
        return False
    with contextlib.suppress(OSError, ValueError):
        return Path(text).exists()
    return False
