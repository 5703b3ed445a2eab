"""Which models a re-evaluation is about, found in MLflow's registry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mmbert import storage
from mmbert.errors import UserError
from mmbert.tracking.registry import CANDIDATE, CHAMPION, ModelVersion, Registry

GIVEN = "given"
"""The role of a model that somebody asked for; the others have their alias'."""

_URI, _GATE = "mmbert.uri", "mmbert.gate"


@dataclass(frozen=True)
class ChosenModel:
    """A model to evaluate. `version` is empty for an artifact that was given by its URI."""

    role: str
    version: str
    uri: str

    @property
    def label(self) -> str:
        return f"version {self.version} ({self.role})" if self.version else f"{self.uri} ({self.role})"


@dataclass(frozen=True)
class Release:
    """A version as the trend shows it: `created` in seconds since 1970; `gate` is its verdict, if any."""

    version: str
    digest: str
    created: float
    aliases: tuple[str, ...]
    gate: str = ""


@dataclass(frozen=True)
class Selection:
    """`models` in the order champion, candidate, given, each once; `releases` are all versions, oldest first."""

    name: str
    models: tuple[ChosenModel, ...]
    releases: tuple[Release, ...]

    @property
    def judged(self) -> ChosenModel:
        """The one that the gate is for: the candidate, else what was given, else the champion itself."""
        return max(self.models, key=lambda model: (CHAMPION, GIVEN, CANDIDATE).index(model.role))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Selection:
        releases = tuple(Release(**{**release, "aliases": tuple(release["aliases"])}) for release in data["releases"])
        return cls(data["name"], tuple(ChosenModel(**model) for model in data["models"]), releases)


def registered_releases(registry: Registry | None, name: str) -> tuple[Release, ...]:
    """The model's versions, oldest first, with the aliases that count here."""
    if registry is None:
        return ()
    pointed = {alias: registry.by_alias(name, alias) for alias in (CHAMPION, CANDIDATE)}

    def aliases(version: ModelVersion) -> tuple[str, ...]:
        return tuple(alias for alias, found in pointed.items() if found and found.version == version.version)

    return tuple(
        Release(version.version, version.digest, version.created, aliases(version), version.tags.get(_GATE, ""))
        for version in registry.versions(name)
    )


def any_registered(registry: Registry, name: str) -> bool:
    """Whether the model has a champion or a candidate. Raises InfrastructureError where MLflow is away."""
    return any(registry.by_alias(name, alias) for alias in (CHAMPION, CANDIDATE))


def select_models(registry: Registry | None, name: str, wanted: str = "") -> Selection:
    """The champion, and the candidate or what was asked for: `7`, `@candidate` or a model artifact's URI.

    Raises UserError where there is nothing to evaluate or no such version, InfrastructureError where MLflow is away.
    """
    champion = registry.by_alias(name, CHAMPION) if registry else None
    candidate = registry.by_alias(name, CANDIDATE) if registry else None
    chosen = [_chosen(champion, CHAMPION)] if champion else []
    if wanted:
        chosen.append(_wanted(wanted, name, registry))
    elif candidate:
        chosen.append(_chosen(candidate, CANDIDATE))
    if not chosen:
        raise UserError(
            f"MLflow's registry has neither a champion nor a candidate of '{name}' (release.model_name); register a "
            "model first (the workflow pretrain does, or `mmbert run register`), or give the URI of a model artifact"
            + ("" if registry else "; MLFLOW_TRACKING_URI is not set here")
        )
    return Selection(name, _each_once(chosen), registered_releases(registry, name))


def _each_once(chosen: Sequence[ChosenModel]) -> tuple[ChosenModel, ...]:
    """A model that is the champion is not another one besides."""
    return tuple(model for i, model in enumerate(chosen) if model.uri not in {other.uri for other in chosen[:i]})


def _wanted(wanted: str, name: str, registry: Registry | None) -> ChosenModel:
    if not storage.is_s3(wanted) and "/" not in wanted:
        return _chosen(*_registered(wanted, name, registry))
    return ChosenModel(GIVEN, "", wanted.rstrip("/"))


def _registered(wanted: str, name: str, registry: Registry | None) -> tuple[ModelVersion, str]:
    """A version, and its role here: only who names the alias means the candidate."""
    if not wanted.isdigit() and not wanted.startswith("@"):
        raise UserError(f"model '{wanted}': give a version (7), an alias (@candidate) or a model artifact's URI")
    if registry is None:
        raise UserError(f"model '{wanted}': there is no registry here; set MLFLOW_TRACKING_URI")
    if wanted.isdigit():
        return registry.version(name, wanted), GIVEN
    found = registry.by_alias(name, wanted[1:])
    if found is None:
        raise UserError(f"'{name}' has no alias '{wanted[1:]}'")
    return found, wanted[1:] if wanted[1:] in {CHAMPION, CANDIDATE} else GIVEN


def _chosen(version: ModelVersion, role: str) -> ChosenModel:
    uri = version.tags.get(_URI)
    if not uri:
        raise UserError(
            f"version {version.version} of '{version.name}' has no tag {_URI}, which `mmbert run register` sets; it "
            "was registered by another program. Set the tag to the URI of its model artifact"
        )
    return ChosenModel(role, version.version, uri)
