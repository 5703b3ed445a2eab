"""Label and field selectors of lists and watches."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tests.kubernetes.cluster.errors import bad_request
from tests.kubernetes.cluster.resources import EVENT, POD, Kind
from tests.kubernetes.cluster.store import Object

_FIELDS = {
    POD: ("spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName", "status.phase"),
    EVENT: (
        "involvedObject.kind", "involvedObject.namespace", "involvedObject.name", "involvedObject.uid",
        "involvedObject.apiVersion", "reason", "type",
    ),
}  # fmt: skip
"""Besides metadata.name and metadata.namespace, which every kind has (Field Selectors, "Supported fields")."""

_SET = re.compile(r"^\s*([^\s!=,()]+)\s+(in|notin)\s+\(([^)]*)\)\s*$")


def matcher(kind: Kind, labels: str, fields: str) -> Callable[[Object], bool]:
    """Whether an object is selected. Raises ApiError (400) for a selector that is none."""
    tests = [_label(part) for part in _parts(labels)] + [_field(kind, part) for part in _parts(fields)]
    return lambda item: all(test(item) for test in tests)


def _parts(text: str) -> list[str]:
    """At commas that are not inside parentheses."""
    return [part for part in re.split(r",(?![^(]*\))", text or "") if part.strip()]


def _label(part: str) -> Callable[[Object], bool]:
    """Labels and Selectors, "Equality-based requirement", "Set-based requirement"."""

    def labels(item: Object) -> dict[str, str]:
        return item["metadata"].get("labels") or {}

    if found := _SET.match(part):
        key, operator, text = found.groups()
        values = {value.strip() for value in text.split(",")}
        if operator == "in":
            return lambda item: labels(item).get(key) in values
        return lambda item: labels(item).get(key) not in values
    part = part.strip()
    if "!=" in part:
        key, value = (side.strip() for side in part.split("!=", 1))
        return lambda item: labels(item).get(key) != value
    if "=" in part:
        key, value = (side.strip() for side in part.replace("==", "=").split("=", 1))
        return lambda item: labels(item).get(key) == value
    if part.startswith("!"):
        return lambda item: part[1:] not in labels(item)
    if not re.fullmatch(r"[A-Za-z0-9./_-]+", part):
        raise bad_request(f"unable to parse requirement: found '{part}'")
    return lambda item: part in labels(item)


def _field(kind: Kind, part: str) -> Callable[[Object], bool]:
    """Field Selectors: `=`, `==` and `!=`; a field that the kind does not support is refused."""
    found = re.fullmatch(r"([^=!]+)(!=|==|=)(.*)", part.strip())
    if not found:
        raise bad_request(f"invalid selector: '{part}'; can't understand '{part}'")
    path, operator, wanted = found.groups()
    if path not in ("metadata.name", "metadata.namespace", *_FIELDS.get(kind, ())):
        raise bad_request(f"field label not supported: {path}")

    def value(item: Any) -> str:
        for key in path.split("."):
            item = item.get(key, "") if isinstance(item, dict) else ""
        return str(item)

    return lambda item: (value(item) == wanted) != (operator == "!=")
