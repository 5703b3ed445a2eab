"""What a person names to be traced: a registered model, an artifact, a digest, a run, a score, a released folder."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mmbert import artifacts, storage
from mmbert.artifacts import Artifact
from mmbert.errors import MmbertError, UserError
from mmbert.evaluation.results.promotion import SCORES
from mmbert.lineage.facts import label
from mmbert.lineage.store import Store
from mmbert.tracking.lookup import WORKFLOW_RUN, Lookup, uris_of
from mmbert.tracking.registry import ModelVersion, Registry

FORMS = (
    "NAME@ALIAS or NAME/VERSION of a registered model (with #SUITE one of its scores), an artifact's URI, a content "
    "digest or fingerprint or how it begins, the id of a run in MLflow, a workflow run's name, a file of the results "
    "store, or a folder or file of a released model"
)
_REGISTERED = re.compile(r"(?:models:/)?([\w.-]+)([@/])([\w.-]+?)(?:#([\w.-]+))?")
_HEX = re.compile(r"[0-9a-f]{4,64}")
_SHORT = re.compile(r"[0-9a-f]{1,3}")
_SHOWN = 8


@dataclass(frozen=True)
class Servers:
    """MLflow's registry and runs, connected where a name needs them; None where MLFLOW_TRACKING_URI is unset."""

    registry: Callable[[], Registry | None]
    lookup: Callable[[], Lookup | None]


@dataclass(frozen=True)
class Named:
    """What a name stands for: artifacts of the store, and how they were found. `workflow_run` where it is one."""

    uris: tuple[str, ...]
    how: str
    version: ModelVersion | None = None
    workflow_run: str = ""
    gone: tuple[str, ...] = ()


@dataclass
class _Looked:
    """Where was looked, for the person whose name means nothing."""

    places: list[str] = field(default_factory=list)


def place_of(what: str) -> str:
    """The artifact that `what` names by its URI or folder, wherever it lies; empty where it names none so."""
    if not storage.is_s3(what) and not Path(what).is_dir():
        return ""
    uri = what.rstrip("/")
    uri = uri if storage.is_s3(uri) else str(Path(uri).absolute())
    try:
        return uri if artifacts.look(uri) is not None else ""
    except UserError:
        return uri if storage.exists(storage.join(uri, artifacts.MANIFEST)) else ""


def resolve(what: str, store: Store, servers: Servers) -> Named:
    """What `what` stands for. Raises UserError that says what was looked for, where, and what there is.

    Raises InfrastructureError where MLflow is needed and away.
    """
    looked = _Looked()
    found = (
        _by_uri(what, store)
        or _by_workflow_run(what, store, servers, looked)
        or _by_digest(what, store, servers, looked)
        or _by_content(what, store, looked)
        or _by_registry(what, store, servers, looked)
    )
    if found is None:
        tried = "".join(f"\n  {place}" for place in looked.places)
        raise UserError(
            f"'{what}': nothing is known by this name. It can be {FORMS}. Looked for:{tried}\n{_there(store)}"
        )
    return found


def _by_uri(what: str, store: Store) -> Named | None:
    uri = place_of(what) or what.rstrip("/")
    if uri in store.unreadable:
        raise UserError(store.unreadable[uri])
    return Named((uri,), "an artifact's URI") if uri in store.artifacts else None


def _by_workflow_run(what: str, store: Store, servers: Servers, looked: _Looked) -> Named | None:
    """By its whole name, or by the part that is Airflow's own id of the run."""
    names = {str(a.manifest.producer.get("workflow_run", "")) for a in store.artifacts.values()} - {""}
    fitting = [name for name in sorted(names) if what in (name, name.rpartition(" ")[2])]
    if len(fitting) > 1:
        raise UserError(f"'{what}' is the end of several workflow runs' names: {', '.join(map(repr, fitting))}")
    name = fitting[0] if fitting else what
    made = [u for u, a in store.artifacts.items() if a.manifest.producer.get("workflow_run") == name]
    looked.places.append(f"the names of workflow runs: {len(names)} made artifacts below {store.root}")
    lookup = servers.lookup() if fitting or " " in what or "__" in what else None
    told = lookup.uris_of_workflow(name) if lookup else []
    if lookup:
        looked.places.append(f"a workflow run in MLflow at {lookup.uri}")
    every = list(dict.fromkeys([*made, *told]))
    if not every:
        return None
    there = tuple(u for u in every if u in store.artifacts)
    return Named(there, "a workflow run", workflow_run=name, gone=tuple(sorted(set(every) - set(there))))


def _by_digest(what: str, store: Store, servers: Servers, looked: _Looked) -> Named | None:
    if not _HEX.fullmatch(what):
        if _SHORT.fullmatch(what):
            looked.places.append("no digest: a digest or fingerprint needs at least 4 digits")
        return None
    looked.places.append(
        f"content digests, fingerprints and MLflow runs of {len(store.artifacts)} artifacts below {store.root}"
    )
    for how, of in (
        ("a content digest", lambda a: a.digest),
        ("a fingerprint", lambda a: a.manifest.fingerprint),
        ("a run in MLflow", lambda a: str(a.manifest.producer.get("mlflow_run_id") or "")),
    ):
        found = sorted(uri for uri, artifact in store.artifacts.items() if of(artifact).startswith(what))
        if len({of(store.artifacts[uri]) for uri in found}) > 1:
            listed = ", ".join(
                f"{of(store.artifacts[u])[:16]} ({store.artifacts[u].manifest.kind})" for u in found[:_SHOWN]
            )
            raise UserError(f"'{what}' begins {len(found)} of these: {listed}; give more digits of {how}")
        if len(found) > 1 and of(store.artifacts[found[0]]) == store.artifacts[found[0]].digest:
            _check_content(what, found, store)
        if found:
            # Of several with the same content the first stands for all.
            return Named((found[0],), how)
    return _by_run(what, store, servers, looked)


def _check_content(what: str, uris: list[str], store: Store) -> None:
    """Raises UserError where these have one digest and not one content."""
    if store.artifacts[uris[0]].identified:
        return
    made = [store.artifacts[uri] for uri in uris]
    made.sort(key=lambda a: -float(a.manifest.producer.get("finished", 0)))
    kind = made[0].manifest.kind
    listed = "".join(
        f"\n  {a.uri} ({', '.join(t for t in (label(a), str(a.manifest.producer.get('workflow_run', ''))) if t)})"
        for a in made[:_SHOWN]
    )
    more = f"\n  and {len(made) - _SHOWN} more" if len(made) > _SHOWN else ""
    raise UserError(
        f"'{what}': the digest of a {kind} says that it is a {kind} and no more, since none of its files is digested. "
        f"There are {len(made)}; name one by its URI or fingerprint, which the URI ends with:{listed}{more}"
    )


def _by_run(what: str, store: Store, servers: Servers, looked: _Looked) -> Named | None:
    lookup = servers.lookup() if len(what) == 32 else None
    if lookup is None:
        return None
    looked.places.append(f"a run in MLflow at {lookup.uri}")
    run = lookup.run(what)
    if run is None:
        return None
    if run.tags.get("mlflow.parentRunId") is None and run.tags.get(WORKFLOW_RUN) and not uris_of(run):
        return _by_workflow_run(run.tags[WORKFLOW_RUN], store, servers, looked)
    uris = uris_of(run)
    there = tuple(u for u in uris if u in store.artifacts)
    if uris and not there:
        raise UserError(f"the run {what} in MLflow made {uris[0]}, and no artifact is there now")
    if not there:
        raise UserError(f"the run {what} in MLflow has no artifact of its own ({run.status})")
    return Named(there, "a run in MLflow")


def _by_content(what: str, store: Store, looked: _Looked) -> Named | None:
    """A released folder or one of its files, by the sha256 of weights; a file of the results store, by its scores."""
    if what.endswith(".parquet"):
        return _by_results(what, store, looked)
    path = Path(what)
    if storage.is_s3(what) or not path.exists():
        return None
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    digests = {artifacts.digest_file(file) for file in files}
    looked.places.append(
        f"the sha256 of {', '.join(f.name for f in files) or 'no *.safetensors'} in {path} among all artifacts' files"
    )
    holding = [uri for uri, a in store.artifacts.items() if digests and digests <= {f.sha256 for f in a.manifest.files}]
    # A copy of weights has the same bytes as what it is a copy of, and a model is what a person means by a folder.
    holding.sort(key=lambda uri: (store.artifacts[uri].manifest.kind != "model", uri))
    return Named((holding[0],), "the same bytes as a released model's") if holding else None


def _by_results(what: str, store: Store, looked: _Looked) -> Named | None:
    from mmbert.evaluation.results.store import artifact_scorecard, from_parquet

    card = from_parquet(storage.read_bytes(what), what)
    looked.places.append(
        f"scores of model {card.model_digest[:12] or card.model}, suite {card.suite}, below {store.root}"
    )
    for uri, artifact in sorted(store.artifacts.items()):
        if artifact.manifest.kind == "scores":
            made = artifact_scorecard(artifact)
            if made.model_digest == card.model_digest and made.scores == card.scores:
                return Named((uri,), "a file of the results store")
    models = store.of_digest(card.model_digest) if card.model_digest else []
    model = f"Its model is {card.model_digest[:12]}" if card.model_digest else f"Its model is called {card.model}"
    there = f": `mmbert trace {card.model_digest[:12]}`" if models else ", and is not there either"
    raise UserError(
        f"{what}: the scores of this record are no artifact below {store.root}: it was collected, lies in another "
        f"store, or there was none. {model}{there}"
    )


def _by_registry(what: str, store: Store, servers: Servers, looked: _Looked) -> Named | None:
    parts = _REGISTERED.fullmatch(what)
    if parts is None:
        return None
    name, sign, which, suite = parts.groups()
    registry = servers.registry()
    if registry is None:
        looked.places.append("no registered model: MLFLOW_TRACKING_URI is not set")
        return None
    kind = "alias" if sign == "@" else "version"
    looked.places.append(f"a registered model '{name}' with the {kind} '{which}'; {_registered(registry, name)}")
    try:
        version = registry.by_alias(name, which) if sign == "@" else registry.version(name, which)
    except UserError:
        version = None
    if version is None:
        return None
    if suite:
        return _scores_of(version, suite, what, store)
    places = [version.tags.get("mmbert.uri", ""), *(store.of_digest(version.digest) if version.digest else [])]
    for uri in places:
        if uri.rstrip("/") in store.artifacts:
            return Named((uri.rstrip("/"),), "a registered version", version)
    where = ", ".join(place for place in places if place) or version.source
    raise UserError(
        f"{what}: version {version.version} of '{name}' was registered from {where}; no artifact is there or "
        f"has its content ({version.digest[:12] or 'not recorded'}) below {store.root}; name its store with --root"
    )


def _scores_of(version: ModelVersion, suite: str, what: str, store: Store) -> Named:
    """A version's scores where its tag says, or in a copied store by the fingerprint that this ends with."""
    uri = version.tags.get(f"{SCORES}{suite}", "")
    if not uri:
        suites = [key.removeprefix(SCORES) for key in version.tags if key.startswith(SCORES)]
        raise UserError(f"{what}: version {version.version} has scores of {', '.join(suites) or 'no suite'} alone")
    for place in (uri.rstrip("/"), store.copy_of(uri)):
        if place in store.artifacts:
            return Named((place,), "a registered version's scores", version)
    raise UserError(
        f"{what}: version {version.version} of '{version.name}' has its scores of {suite} at {uri}; no artifact is "
        f"there, and none of that fingerprint below {store.root}; name its store with --root"
    )


def _registered(registry: Registry, name: str) -> str:
    try:
        versions = registry.versions(name)
        if versions:
            known = [f"{v.version}{''.join(f' @{alias}' for alias in v.aliases)}" for v in versions[-_SHOWN:]]
            return f"it has the versions {', '.join(known)}"
        return f"there are {', '.join(registry.names()) or 'none'}"
    except MmbertError as error:
        return str(error)


def _there(store: Store) -> str:
    """What the store holds, for a person who named something else."""
    if not store.artifacts:
        return f"Below {store.root} there is no artifact; name another store with --root or MMBERT_ROOT."
    kinds: dict[str, list[str]] = {}
    for uri in store.artifacts:
        kinds.setdefault(store.artifacts[uri].manifest.kind, []).append(uri)
    lines = []
    for kind, uris in sorted(kinds.items()):
        newest = sorted(uris, key=lambda u: -float(store.artifacts[u].manifest.producer.get("finished", 0)))[:_SHOWN]
        shown = ", ".join(f"{_digits(store.artifacts[u])} ({label(store.artifacts[u]) or kind})" for u in newest)
        lines.append(f"  {kind}: {shown}{f' and {len(uris) - _SHOWN} more' if len(uris) > _SHOWN else ''}")
    return f"Below {store.root} there are, by kind:\n" + "\n".join(lines)


def _digits(artifact: Artifact) -> str:
    """The beginning of what names it and no other."""
    return (artifact.digest if artifact.identified else artifact.manifest.fingerprint)[:12]
