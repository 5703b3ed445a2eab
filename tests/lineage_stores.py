"""Stores of small artifacts for the tests of lineage: graphs with content of a line each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import zstandard

from mmbert import artifacts, storage
from mmbert.artifacts import Artifact, ArtifactWriter
from mmbert.data.documents import Document, to_line


def put(
    root: str,
    kind: str,
    name: str,
    made_of: Mapping[str, Iterable[Artifact]] | None = None,
    *,
    files: Mapping[str, object] | None = None,
    texts: Mapping[str, Iterable[str]] | None = None,
    parameters: Mapping[str, object] | None = None,
    outputs: Mapping[str, object] | None = None,
    digested: bool = True,
    **producer: object,
) -> Artifact:
    """Commit an artifact whose content is its name, unless it has files, as a component would.

    `texts` are files of documents, by the documents' ids.
    """
    inputs = {
        key: [{"uri": a.uri, "digest": a.digest, "kind": a.manifest.kind} for a in used]
        for key, used in (made_of or {}).items()
    }
    parameters = {"name": name, **(parameters or {})}
    fingerprint = artifacts.digest_json([kind, parameters, inputs])[:32]
    writer = ArtifactWriter(storage.join(root, kind, fingerprint), kind, fingerprint, parameters, inputs)
    for path, value in (files or {"content.json": name}).items():
        writer.add_json(path, value, digested)
    for path, idents in (texts or {}).items():
        # Ids are `<source>/<language>/...`.
        documents = [Document(ident, "text", ident.split("/")[1], ident.split("/")[0]) for ident in idents]
        writer.add_bytes(path, zstandard.compress(b"".join(to_line(document) for document in documents)))
    writer.outputs |= outputs or {}
    return writer.commit({"component": kind, "component_version": 1, "task": name, "commit": "c0ffee" * 7, **producer})
