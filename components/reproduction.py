"""Doing recorded work again, in a root of its own, and comparing what comes of it, byte by byte of digests."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components import planning
from components.contract import Component, component_names, get_component
from components.steps import run_step
from mmbert import artifacts, storage
from mmbert.artifacts import Artifact
from mmbert.errors import MmbertError, UserError
from mmbert.lineage.facts import label, short_digest
from mmbert.lineage.store import Store
from mmbert.lineage.text import short_image

SAME, DIFFERENT, NOT_COMPARED, NOT_RUN = "same", "different", "not compared", "not run"
STATES = (SAME, DIFFERENT, NOT_COMPARED, NOT_RUN)
_RECIPES = "recipes"
_BLOCK = 2**20
_NOTHING = "none of its files is digested, as their bytes change with each making"


class DifferentError(MmbertError):
    """Work that was done again gave other bytes. Exit code 4: neither the user's error nor a bug of this command."""

    exit_code = 4


@dataclass(frozen=True)
class FileResult:
    """A digested file in both artifacts. `state` is same, different, `missing` (in the new one) or `new`."""

    path: str
    state: str
    detail: str = ""


@dataclass(frozen=True)
class StepResult:
    """One artifact made again. `state` is SAME, DIFFERENT, NOT_COMPARED or NOT_RUN, `reason` says why it is no SAME.

    `differences` say what around the work is not as recorded, and what that means for byte identity.
    """

    uri: str
    kind: str
    label: str
    component: str
    state: str
    recorded: str
    found: str = ""
    again: str = ""
    reason: str = ""
    files: tuple[FileResult, ...] = ()
    differences: tuple[str, ...] = ()
    needed: bool = True
    """False where it is left out by its nature, like what writes to the registry."""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class _NotAgainError(Exception):
    """This artifact cannot be made again, or is not to be."""

    def __init__(self, reason: str, needed: bool = True) -> None:
        super().__init__(reason)
        self.needed = needed


def chosen_steps(store: Store, targets: Sequence[str], from_kind: str, whole: bool) -> list[str]:
    """The artifacts to make again, in order: the targets, or with `whole` all that they were made of as well.

    With `from_kind` those of that kind and what is made of them. Raises UserError where there is none of it.
    """
    every = store.made_of(targets)
    if not from_kind:
        return every if whole else [uri for uri in every if uri in set(targets)]
    first = [uri for uri in every if store.artifacts[uri].manifest.kind == from_kind]
    if not first:
        kinds = dict.fromkeys(store.artifacts[uri].manifest.kind for uri in every)
        raise UserError(f"--from {from_kind}: nothing here is of that kind; there are {', '.join(kinds)}")
    after = set(store.made_from(first))
    return [uri for uri in every if uri in after]


def check_root(store: Store, uris: Sequence[str], root: str) -> None:
    """Raises UserError where artifacts made again would stand among those they are compared with."""
    for place in (store.root, *(uri.rsplit("/", 2)[0] for uri in uris)):
        if _resolved(root) == _resolved(place):
            raise UserError(f"{root}: what is recorded lies there; name another place for what is made again")


def _resolved(root: str) -> str:
    """Of a folder its own place, whatever links and names lead to it."""
    return root.rstrip("/") if storage.is_s3(root) else str(Path(root).resolve())


def reproduce(uri: str, store: Store, root: str, scratch: Path) -> StepResult:
    """Do one artifact's work again below `root`, from its recorded arguments and inputs, and compare the two.

    It is done by the configured launcher, without MLflow. What is below `root` already, from an earlier time, is found
    done. Raises InfrastructureError where the store, a disk or a machine fails, ComponentFailedError for a bug.
    """
    artifact = store.artifacts[uri]
    manifest, told = artifact.manifest, artifact.manifest.producer
    name = str(told.get("component", ""))
    result = StepResult(uri, manifest.kind, label(artifact), name, NOT_RUN, artifact.digest)
    try:
        with _recorded_run(artifact):
            item, arguments = recorded_call(artifact, store, scratch)
            plan = planning.plan(item, arguments, root)
            differences = _work(plan, artifact)
            step = run_step(
                name, arguments, root=root, task=str(told.get("task") or name),
                workflow_run=os.environ["MMBERT_WORKFLOW_RUN"],
            )  # fmt: skip
    except _NotAgainError as error:
        return dataclasses.replace(result, reason=str(error), needed=error.needed)
    except UserError as error:
        return dataclasses.replace(result, reason=str(error))
    again = artifacts.open_artifact(step.uri)
    if again.manifest.producer == told:
        reason = f"what stands at {again.uri} is the recorded artifact itself, or a copy of it; name another --into"
        return dataclasses.replace(result, reason=reason)
    files = compare_files(artifact, again)
    state = NOT_COMPARED if not files else SAME if again.digest == artifact.digest else DIFFERENT
    differences += ["found done there, from an earlier time"] if step.reused else []
    first = next((f for f in files if f.state != SAME), None)
    return dataclasses.replace(
        result,
        state=state,
        found=again.digest,
        again=again.uri,
        reason=f"{first.path}: {first.detail or first.state}" if first else _NOTHING * (not files),
        files=files,
        differences=(*differences, *_surroundings(artifact, again)),
    )


def recorded_call(artifact: Artifact, store: Store, scratch: Path) -> tuple[Component, dict[str, Any]]:
    """The component that made an artifact and its arguments, inputs where they are now.

    Raises _NotAgainError where they are not known, or the work is not to be done again.
    """
    told = artifact.manifest.producer
    name = str(told.get("component", ""))
    if name not in component_names():
        raise _NotAgainError(f"no component made it{f' ({name} is none today)' if name else ''}", needed=bool(name))
    item = get_component(name)
    if item.idempotent_effect:
        raise _NotAgainError("it writes to the model registry, which is left as it is", needed=False)
    if item.momentary:
        raise _NotAgainError("it reads a state that changes (a registry, a history)", needed=False)
    arguments = told.get("arguments")
    arguments = dict(arguments) if isinstance(arguments, Mapping) else _arguments(item, artifact)
    arguments |= _inputs(item, artifact, store, arguments)
    if any(p.name == "recipe" and p.kinds for p in item.parameters):
        arguments["recipe"] = _recipe(item, artifact, store, arguments, scratch)
    return item, arguments


def _arguments(item: Component, artifact: Artifact) -> dict[str, Any]:
    """Of a manifest that holds no arguments: its plain parameters. Inputs and recipe are looked up by the caller."""
    plain = artifact.manifest.parameters
    found: dict[str, Any] = {}
    for parameter in item.parameters:
        if parameter.is_source:
            found[parameter.name] = plain[parameter.name]["uri"]
        elif not parameter.kinds and parameter.name in plain:
            found[parameter.name] = plain[parameter.name]
    return found


def _inputs(item: Component, artifact: Artifact, store: Store, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that are artifacts, by the content that was read, wherever that is now."""
    gone = [i for i in store.inputs(artifact.uri) if not i.found and i.name != "recipe"]
    if gone:
        listed = ", ".join(f"{i.kind or i.name} {short_digest(i.kind, i.digest)} ({i.uri})" for i in gone)
        raise _NotAgainError(f"it was made from what is gone: {listed}")
    found: dict[str, Any] = {}
    for parameter in item.parameters:
        if not parameter.kinds or parameter.name == "recipe":
            continue
        uris = [i.found for i in store.inputs(artifact.uri) if i.name == parameter.name]
        if parameter.is_list:
            found[parameter.name] = uris
        elif uris or parameter.name in arguments or parameter.default is not None:
            found[parameter.name] = uris[0] if uris else ""
    return found


def _recipe(item: Component, artifact: Artifact, store: Store, arguments: Mapping[str, Any], scratch: Path) -> str:
    """The recipe as an artifact, or as a file of the recorded text."""
    told = artifact.manifest.producer
    if text := told.get("recipe_text"):
        path = scratch / _RECIPES / f"{artifact.manifest.fingerprint}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(text), "utf-8")
        return str(path)
    named = [i for i in store.inputs(artifact.uri) if i.name == "recipe"]
    if named and named[0].found:
        return named[0].found
    # Any other that says the same to this component is as good: the fingerprint covers all that it reads.
    run = told.get("workflow_run")
    recipes = [a for a in store.artifacts.values() if a.manifest.kind == "recipe"]
    recipes.sort(key=lambda a: (a.manifest.producer.get("workflow_run") != run, a.uri))
    version = int(told.get("component_version", item.version))
    for recipe in recipes:
        with contextlib.suppress(UserError):
            tried = {**arguments, "recipe": recipe.uri}
            plan = planning.plan(dataclasses.replace(item, version=version), tried, store.root)
            if plan.fingerprint == artifact.manifest.fingerprint:
                return recipe.uri
    lost = f"its recipe is gone ({named[0].uri})" if named else "its manifest does not name its recipe"
    raise _NotAgainError(f"{lost}, and none of the {len(recipes)} recipes of the store fits its fingerprint")


@contextlib.contextmanager
def _recorded_run(artifact: Artifact) -> Iterator[None]:
    """The workflow run that was recorded, which can be part of the work, and no MLflow: its runs stay as they are."""
    manifest = artifact.manifest
    wanted = {
        "MMBERT_WORKFLOW_RUN": str(manifest.parameters.get("run") or manifest.producer.get("workflow_run") or "again"),
        "MLFLOW_TRACKING_URI": None,
        "MMBERT_AIRFLOW_TASK": None,
    }
    before = {name: os.environ.get(name) for name in wanted}
    _set(wanted)
    try:
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _work(plan: planning.Plan, artifact: Artifact) -> list[str]:
    """What makes this other work than was recorded: another version of the component, or other parameters."""
    recorded = artifact.manifest
    said = []
    version = recorded.producer.get("component_version")
    if version != plan.component.version:
        said.append(
            f"{plan.component.name} is of version {plan.component.version} now, and was of {version}: other bytes are "
            "meant; check out the recorded commit to have the same"
        )
    now, then = (dict(_flat(value)) for value in (plan.parameters, recorded.parameters))
    for key in sorted({*now, *then}):
        if now.get(key) != then.get(key):
            told = (
                "the files or their times changed" if key.startswith("files.") else f"{then.get(key)} -> {now.get(key)}"
            )
            said.append(f"{key} is not as recorded ({told}): this is other work, and other bytes are to be expected")
    return said


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from _flat(item, f"{key}.{name}".lstrip("."))
    else:
        yield key, json.dumps(value, sort_keys=True)


def _surroundings(recorded: Artifact, again: Artifact) -> list[str]:
    """What around the work was not as recorded, and what that means."""
    then, now = recorded.manifest.producer, again.manifest.producer
    means = {
        "commit": "the same bytes are promised while the component's version is the same",
        "image": "the same bytes are promised where both hold the packages of one lock file",
        "threads": "sums are made in another order: training and evaluation may differ in their last digits",
        "machine": "byte identity is promised for one kind of machine: training and evaluation may differ",
    }
    return [
        f"{name}: {_short(now.get(name))}, recorded {_short(then.get(name))}; {meaning}"
        for name, meaning in means.items()
        if name in then and now.get(name, "") != then[name]
    ]


def _short(value: Any) -> str:
    """Commits and images by a dozen digits."""
    text = short_image(str(value or "none"))
    return text[:12] if re.fullmatch(r"[0-9a-f]{40}", text) else text


def compare_files(recorded: Artifact, again: Artifact) -> tuple[FileResult, ...]:
    """Each digested file of either, and of the first one that differs where its bytes begin to."""
    then, now = ({f.path: f for f in a.manifest.files if f.digested} for a in (recorded, again))
    results: list[FileResult] = []
    looked = False
    for path in sorted({*then, *now}):
        if path not in now or path not in then:
            results.append(FileResult(path, "missing" if path not in now else "new"))
        elif then[path].sha256 == now[path].sha256:
            results.append(FileResult(path, SAME))
        else:
            sizes = f"{then[path].size:,} and {now[path].size:,} bytes"
            where = "" if looked else _first_difference(recorded.remote(path), again.remote(path))
            looked = True
            results.append(FileResult(path, DIFFERENT, f"{sizes}{where}"))
    return tuple(results)


def _first_difference(one: str, other: str) -> str:
    try:
        with storage.open_read(one) as then, storage.open_read(other) as now:
            offset = 0
            while True:
                a, b = then.read(_BLOCK), now.read(_BLOCK)
                if a != b:
                    place = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
                    return f", different from byte {offset + place:,} on"
                if not a:
                    return ", of equal bytes: the recorded file was altered since"
                offset += len(a)
    except UserError as error:
        return f"; {error}"
