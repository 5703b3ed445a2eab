"""One check and what it found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OVERLAYS = ("dev", "prod")

Object = dict[str, Any]
"""A Kubernetes object, or part of one."""


@dataclass(frozen=True)
class Check:
    """`subject` says what was looked at, `faults` what is wrong with it: nothing where the check passed."""

    kind: str
    subject: str
    faults: tuple[str, ...] = ()


def check(kind: str, subject: str, faults: Iterable[str]) -> Check:
    return Check(kind, subject, tuple(faults))


def name_of(item: Object) -> str:
    """`Deployment mlflow/mlflow`, as people name it."""
    metadata = item.get("metadata") or {}
    namespace = f"{metadata['namespace']}/" if metadata.get("namespace") else ""
    return f"{item.get('kind')} {namespace}{metadata.get('name')}"


def of_kind(objects: Iterable[Object], *kinds: str) -> list[Object]:
    return [item for item in objects if item.get("kind") in kinds]


def namespace_of(item: Object) -> str:
    return str((item.get("metadata") or {}).get("namespace", ""))


def matches(selector: Object, labels: Object) -> bool:
    """Whether a selector's matchLabels hold for these labels; an empty selector fits all."""
    return all(labels.get(key) == value for key, value in (selector.get("matchLabels") or {}).items())
