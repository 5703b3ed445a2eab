"""Small JSON files that tell by themselves whether they are whole: manifests and markers, of which nothing holds a
digest.

A byte that changed on its way leaves most JSON valid, and a body that was cut at a right-looking length too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from mmbert import storage

_CHECKSUM = "checksum"


def seal(value: Mapping[str, Any]) -> dict[str, Any]:
    """A plain JSON object with its checksum."""
    return {**value, _CHECKSUM: _checksum(json.loads(json.dumps(value)))}


def unseal(data: bytes) -> dict[str, Any]:
    """The object that was sealed; one without a checksum, from before there were any, is taken as it is.

    Raises ValueError where it is damaged.
    """
    value = json.loads(data)
    if not isinstance(value, dict):
        raise ValueError("it is no object")
    found = value.pop(_CHECKSUM, None)
    if found is not None and found != _checksum(value):
        raise ValueError("it was altered: its checksum is not that of its content")
    return value


def read_sealed(uri: str) -> dict[str, Any]:
    """A sealed file, fetched again where it comes damaged. Raises ValueError where it is, and what `storage` raises."""
    return storage.fetched_twice(lambda: unseal(storage.read_bytes(uri)), ValueError)


def write_sealed(uri: str, value: Mapping[str, Any]) -> None:
    storage.write_bytes(uri, json.dumps(seal(value), ensure_ascii=False, separators=(",", ":")).encode())


def _checksum(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
