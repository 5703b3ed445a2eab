"""What is needed from outside the store: registered models, running work, and what somebody asks to keep."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mmbert import storage
from mmbert.artifacts import Artifact
from mmbert.collection import pool
from mmbert.errors import InfrastructureError, UserError
from mmbert.lineage import Store
from mmbert.tracking.activity import experiment_of, experiments, running_runs
from mmbert.tracking.api import Api
from mmbert.tracking.registry import ModelVersion, Registry

REGISTERED, RUNNING, ASKED = "registered", "running", "asked"
_ASKED_RUNS = 5
_RELEASE = "release.json"


@dataclass(frozen=True)
class Need:
    """An artifact's URI (or that of a file in it) that is needed with all that it was made from, and why.

    `uri` is empty for running work that names none yet. `complete`: there has to be an artifact; else it may be work
    that is not done, or none of ours.
    """

    uri: str
    state: str
    why: str
    complete: bool = True


def asked_for(uris: Iterable[str]) -> list[Need]:
    return [Need(uri.rstrip("/"), ASKED, "--keep") for uri in uris]


class PartlyKnownError(InfrastructureError):
    """MLflow does not tell of all that is needed. `problem` is the message without what a collection is to be told."""

    def __init__(self, problem: str, advice: str = "") -> None:
        super().__init__(problem + advice)
        self.problem = problem


def mlflow_needs(
    api: Api, store: Store, lost: Collection[str] = (), doubt: Callable[[PartlyKnownError], None] | None = None
) -> list[Need]:
    """What all versions of all registered models and all running work need. `lost`: runs that are known to be gone.

    Raises InfrastructureError where MLflow is away, and PartlyKnownError where it does not show everything, or is not
    the one that the store's artifacts were made with; `doubt`, where given, is called with that instead.
    """

    def checked(check: Callable[[], None]) -> None:
        try:
            check()
        except PartlyKnownError as error:
            if doubt is None:
                raise
            doubt(error)

    checked(lambda: _check_server(api, store, lost))
    registry = Registry(api)
    versions = [
        (version, aliases) for name, aliases in registry.models().items() for version in registry.versions(name)
    ]
    checked(lambda: _check_releases(registry, store, {(v.name, v.version) for v, _ in versions}))
    found = [need for version, aliases in versions for need in _version_needs(version, aliases)]
    for run in running_runs(api):
        # One that has just begun names nothing yet, and is running all the same.
        found += [Need(uri, RUNNING, f"run {run.name} ({run.run_id})", False) for uri in run.uris or ("",)]
    return found


def releases(store: Store) -> list[Need]:
    """Released models that no registry holds, as MLflow takes none from a folder: the store alone tells of them."""
    return [
        Need(artifact.uri, REGISTERED, f"release {released.get('name', '')}, in no registry")
        for artifact, released in _releases(store)
        if released.get("version") is None
    ]


def _releases(store: Store) -> list[tuple[Artifact, Any]]:
    found = [artifact for artifact in store.artifacts.values() if artifact.manifest.kind == "release"]
    return list(zip(found, pool.at_once(_released, found, lambda: None), strict=True))


@functools.cache
def _released(artifact: Artifact) -> Any:
    """What a release says of itself, read once."""
    try:
        return artifact.read_json(_RELEASE)
    except (UserError, ValueError) as error:
        raise InfrastructureError(
            f"{error}\nSo it is not known which model was released, and whether a registry has it: bring {_RELEASE} "
            f"back, or, where that model is not needed, delete the folder {artifact.uri}"
        ) from error


def _version_needs(version: ModelVersion, aliases: Mapping[str, str]) -> list[Need]:
    """What its tags lead to; its source, too, which with other programs' models is no artifact."""
    own = sorted(alias for alias, number in aliases.items() if number == version.version)
    why = f"{version.name} version {version.version}" + (f" ({', '.join(own)})" if own else "")
    tagged = {value for key, value in version.tags.items() if key.startswith("mmbert.") and is_place(value)}
    needs = [Need(uri.rstrip("/"), REGISTERED, why) for uri in sorted(tagged)]
    return [*needs, Need(version.source.rstrip("/"), REGISTERED, why, False)]


def is_place(value: str) -> bool:
    """Whether a text is an address that an artifact can have."""
    return storage.is_s3(value) or (value.startswith("/") and "\n" not in value)


def _check_server(api: Api, store: Store, lost: Collection[str]) -> None:
    """Another server, or one that hides some experiments, does not know of all that is registered and runs."""
    found = {run: experiment_of(api, run) for run in last_runs(store) if run not in lost}
    if unknown := [run for run, experiment in found.items() if not experiment]:
        raise PartlyKnownError(
            f"MLflow at {api.uri} does not know {len(unknown)} of the last {len(found)} runs that made artifacts in "
            f"{store.root}: {', '.join(unknown)}; is it another server? Set MLFLOW_TRACKING_URI to the one that "
            "tracked them",
            ". Where they were deleted for good: " + " ".join(f"--lost {run}" for run in unknown),
        )
    if hidden := set(found.values()) - set(experiments(api)):
        raise PartlyKnownError(
            f"MLflow at {api.uri} does not list the experiments {', '.join(sorted(hidden))}, whose runs made artifacts "
            f"in {store.root}, so running work may not be seen; run this as a user who may read everything"
        )


def last_runs(store: Store) -> list[str]:
    """The runs that MLflow is asked for, to see whether it is the store's: the last five that made artifacts."""
    made = sorted(store.artifacts.values(), key=_finished, reverse=True)
    runs = dict.fromkeys(run for a in made if (run := str(a.manifest.producer.get("mlflow_run_id") or "")))
    return list(runs)[:_ASKED_RUNS]


def _finished(artifact: Any) -> float:
    return float(artifact.manifest.producer.get("finished", 0))


def _check_releases(registry: Registry, store: Store, seen: set[tuple[str, str]]) -> None:
    """A version that the store tells of and that MLflow does not list may be one that this user may not see."""
    for _, released in _releases(store):
        name, version = str(released.get("name", "")), released.get("version")
        if version is None or (name, str(version)) in seen:
            continue
        try:
            registry.version(name, str(version))
        except UserError:  # it was deleted
            continue
        raise PartlyKnownError(
            f"MLflow lists not all registered models: {name} version {version} is there, and not in its list; run this "
            "as a user who may read everything"
        )
