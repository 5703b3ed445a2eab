"""Stores of small artifacts for the tests of lineage: graphs with content of a line each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mmbert import artifacts, storage
from mmbert.artifacts import Artifact, ArtifactWriter


def put(
    root: str,
    kind: str,
    name: str,
    made_of: Mapping[str, Iterable[Artifact]] | None = None,
    *,
    files: Mapping[str, object] | None = None,
    parameters: Mapping[str, object] | None = None,
    outputs: Mapping[str, object] | None = None,
    **producer: object,
) -> Artifact:
    """Commit an artifact whose content is its name, unless it has files, as a component would."""
    inputs = {
        key: [{"uri": a.uri, "digest": a.digest, "kind": a.manifest.kind} for a in used]
        for key, used in (made_of or {}).items()
    }
    parameters = {"name": name, **(parameters or {})}
    fingerprint = artifacts.digest_json([kind, parameters, inputs])[:32]
    writer = ArtifactWriter(storage.join(root, kind, fingerprint), kind, fingerprint, parameters, inputs)
    for path, value in (files or {"content.json": name}).items():
        writer.add_json(path, value)
    writer.outputs |= outputs or {}
    return writer.commit({"component": kind, "component_version": 1, "task": name, "commit": "c0ffee" * 7, **producer})
