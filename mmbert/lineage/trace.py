"""A trace: what something was made from, down to its sources, or what was made from it, up to releases and scores."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from mmbert.artifacts import Artifact
from mmbert.errors import InfrastructureError, MmbertError
from mmbert.evaluation.results.scorecard import Scorecard
from mmbert.evaluation.results.store import artifact_scorecard
from mmbert.lineage.facts import Making, making
from mmbert.lineage.naming import Named
from mmbert.lineage.removal import FINEST, Found, Part, find_part
from mmbert.lineage.sources import SourceFacts, read_sources
from mmbert.lineage.store import Input, Missing, Store
from mmbert.pages.links import mlflow_link
from mmbert.tracking.registry import ModelVersion, Registry

JSON_SCHEMA = 1
MODEL, SCORES = "model", "scores"


@dataclass(frozen=True)
class Registered:
    """A version of a registered model that one of the artifacts is."""

    name: str
    version: str
    aliases: tuple[str, ...]
    uri: str
    content_digest: str
    gate: str
    url: str


@dataclass(frozen=True)
class ScoreFacts:
    """A scores artifact: which suite of which model, and its scores over all languages."""

    uri: str
    model: str
    model_digest: str
    suites: tuple[str, ...]
    values: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Trace:
    """`makings` stand inputs first; `targets` are what was asked for. `exposure` says of each artifact above a source
    how it comes from it, `documents` are ids by artifact; both are empty where no source or document was asked for.
    `notes` say what the answer means, `problems` what could not be read or asked.
    """

    what: str
    how: str
    direction: Literal["down", "up"]
    root: str
    targets: tuple[str, ...]
    makings: tuple[Making, ...]
    inputs: Mapping[str, Sequence[Input]]
    sources: tuple[SourceFacts, ...]
    scores: tuple[ScoreFacts, ...]
    registered: tuple[Registered, ...]
    missing: tuple[Missing, ...]
    problems: tuple[str, ...]
    exposure: Mapping[str, str] = field(default_factory=dict)
    documents: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def making(self, uri: str) -> Making | None:
        return self._by_uri.get(uri)

    def sources_of(self, uri: str) -> Sequence[SourceFacts]:
        """The sources that an artifact read."""
        return self._sources_by_uri.get(uri, ())

    @functools.cached_property
    def _by_uri(self) -> dict[str, Making]:
        return {m.uri: m for m in self.makings}

    @functools.cached_property
    def _sources_by_uri(self) -> dict[str, list[SourceFacts]]:
        found: dict[str, list[SourceFacts]] = {}
        for source in self.sources:
            for uri in source.read_by:
                found.setdefault(uri, []).append(source)
        return found

    def to_json(self) -> dict[str, Any]:
        """docs/lineage.md describes it; keys are only ever added while `schema` stays."""
        return {
            "schema": JSON_SCHEMA,
            "what": self.what,
            "how": self.how,
            "direction": self.direction,
            "root": self.root,
            "targets": list(self.targets),
            "registered": [asdict(version) for version in self.registered],
            "artifacts": [
                {
                    **m.to_json(),
                    "inputs": [
                        {
                            "name": i.name,
                            "kind": i.kind,
                            "uri": i.found or i.uri,
                            "content_digest": i.digest,
                            "there": bool(i.found),
                        }
                        for i in self.inputs[m.uri]
                        if self.direction == "down" or i.found in self._by_uri
                    ],
                    "sources": [s.name for s in self.sources_of(m.uri)],
                    **({"exposure": self.exposure[m.uri]} if m.uri in self.exposure else {}),
                }
                for m in self.makings
            ],
            "sources": [source.to_json() for source in self.sources],
            "scores": [asdict(score) for score in self.scores],
            "missing": [asdict(item) for item in self.missing],
            **({"documents": {u: list(ids) for u, ids in self.documents.items()}} if self.documents else {}),
            "notes": list(self.notes),
            "problems": list(self.problems),
        }


def trace_down(what: str, named: Named, store: Store, registry: Callable[[], Registry | None]) -> Trace:
    """All that these artifacts were made from. Gone inputs are listed, and what is left is traced."""
    found = _trace(what, named.how, "down", named.uris, store.made_of(named.uris), store, registry)
    lost = tuple(f"{named.workflow_run} made {uri}, and no artifact is there now" for uri in named.gone)
    versions = found.registered
    if named.version is not None and named.version.version not in {
        v.version for v in versions if v.name == named.version.name
    }:
        # Of a version's scores the model is gone.
        is_model = store.artifacts[named.uris[0]].manifest.kind == MODEL
        uri = named.uris[0] if is_model else named.version.tags.get("mmbert.uri", "")
        versions = (_registered(named.version, uri), *versions)
    return replace(found, problems=(*lost, *found.problems), registered=versions)


def trace_up(
    what: str,
    how: str,
    uris: Iterable[str],
    store: Store,
    registry: Callable[[], Registry | None],
) -> Trace:
    """All that was made from these artifacts, or from ones of the same content."""
    targets = tuple(uris)
    return _trace(what, how, "up", targets, store.affected_by(targets), store, registry)


def trace_source(part: Part, store: Store, registry: Callable[[], Registry | None]) -> Trace:
    """All that was made from a source or a part of it, and how. Raises UserError where nothing holds it."""
    held = find_part(part, store)
    found = trace_up(part.text, "a source", held.holders, store, registry)
    return replace(
        found,
        sources=tuple(_asked(found.sources, held)),
        exposure=held.exposure,
        documents=held.documents,
        notes=(FINEST,),
        problems=tuple(dict.fromkeys((*held.problems, *found.problems))),
    )


def _asked(sources: Iterable[SourceFacts], held: Found) -> Iterator[SourceFacts]:
    """The part of the sources that was asked for, and no other that the same artifacts read."""
    for facts in sources:
        read_by = {uri: kept for uri, kept in facts.read_by.items() if uri in held.exposure}
        if held.counts:
            read_by = {uri: held.counts[uri] for uri in read_by if uri in held.counts}
        if facts.name == held.part.source and read_by:
            yield facts.of(read_by, held.part.language)


def _trace(
    what: str,
    how: str,
    direction: Literal["down", "up"],
    targets: Sequence[str],
    uris: Sequence[str],
    store: Store,
    registry: Callable[[], Registry | None],
) -> Trace:
    chosen = [store.artifacts[uri] for uri in uris]
    sources, problems = read_sources(chosen)
    asked = [a for a in chosen if a.manifest.kind == SCORES and (direction == "up" or a.uri in targets)]
    if direction == "down":
        asked += [store.artifacts[uri] for uri in _scores_of(targets, store)]
    scores = _scores(asked, problems)
    versions = _versions([a for a in chosen if a.manifest.kind == MODEL], registry, problems)
    problems += [f"{uri}: {text}" for uri, text in store.unreadable.items() if text not in problems]
    return Trace(
        what=what,
        how=how,
        direction=direction,
        root=store.root,
        targets=tuple(targets),
        makings=tuple(making(artifact) for artifact in chosen),
        inputs={uri: store.inputs(uri) for uri in uris},
        sources=tuple(sources),
        scores=scores,
        registered=versions,
        missing=tuple(store.missing(uris)) if direction == "down" else (),
        problems=tuple(problems),
    )


def _scores_of(targets: Sequence[str], store: Store) -> list[str]:
    """The scores that the models among the targets were given."""
    models = [uri for uri in targets if store.artifacts[uri].manifest.kind in {MODEL, "checkpoint"}]
    return [
        uri
        for model in models
        for uri in store.outputs(model)
        if store.artifacts[uri].manifest.kind == SCORES
        and any(i.name == MODEL and i.found == model for i in store.inputs(uri))
    ]


def _scores(chosen: Iterable[Artifact], problems: list[str]) -> tuple[ScoreFacts, ...]:
    found = []
    for artifact in chosen:
        try:
            found.append(_facts(artifact, artifact_scorecard(artifact)))
        except InfrastructureError:
            raise
        except MmbertError as error:
            problems.append(str(error))
    return tuple(found)


def _facts(artifact: Artifact, card: Scorecard) -> ScoreFacts:
    values = tuple(
        {"score": s.name, "value": s.value, "low": s.low, "high": s.high, "n": s.n, "metric": s.metric,
         "data_revision": s.data_revision}
        for s in card.scores if s.language is None
    )  # fmt: skip
    return ScoreFacts(artifact.uri, card.model, card.model_digest, tuple(card.suites()), values)


def _versions(
    models: Sequence[Artifact], registry: Callable[[], Registry | None], problems: list[str]
) -> tuple[Registered, ...]:
    if not models:
        return ()
    try:
        connected = registry()
        if connected is None:
            problems.append("MLFLOW_TRACKING_URI is not set, so registered versions and aliases are not looked for")
            return ()
        return tuple(_registered(v, model.uri) for model in models for v in connected.of_content(model.digest))
    except InfrastructureError as error:
        problems.append(f"registered versions and aliases are not known: {error}")
        return ()


def _registered(version: ModelVersion, uri: str) -> Registered:
    return Registered(
        name=version.name,
        version=version.version,
        aliases=tuple(sorted(version.aliases)),
        uri=uri,
        content_digest=version.digest,
        gate=version.tags.get("mmbert.gate", ""),
        url=mlflow_link(f"models/{version.name}/versions/{version.version}"),
    )
