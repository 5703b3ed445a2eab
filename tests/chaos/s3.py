"""An S3 that misbehaves: components read and write through a proxy that does something to one of their requests.

They go on by themselves, or end with exit code 3 and one message; what they made in the end is the same to the byte.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import boto3

from mmbert import storage
from mmbert.artifacts import Artifact, ArtifactWriter, open_artifact
from mmbert.errors import InfrastructureError, MmbertError
from tests.chaos.matrix import Fault, Setting, Trial
from tests.chaos.proxy import OF_BODIES, Action, Request, Rule
from tests.chaos.stores import BUCKET, Store, in_this_process, small_run, start_store

FOR_GOOD = 10**6
_OF_READS: tuple[tuple[Action, int], ...] = (
    ("slow", 1), ("503", 1), ("503", 3), ("503 checksum", FOR_GOOD), ("cut before", 1),
    ("cut before", FOR_GOOD), ("cut body", 1), ("cut body", FOR_GOOD), ("short body", 1), ("shorter", 1), ("flip", 1),
    ("wrong etag", 1),
)  # fmt: skip
_OF_WRITES: tuple[tuple[Action, int], ...] = (
    ("slow", 1), ("503", 1), ("503", FOR_GOOD), ("500 after", 1), ("500 after", FOR_GOOD), ("cut before", 1),
    ("reset upload", 1), ("reset upload", FOR_GOOD), ("wrong etag", 1),
)  # fmt: skip
"""What happens, and to how many requests one after the other."""


@dataclass(frozen=True)
class Subject:
    """What is tried: `work` does it below a root, with an empty cache, and returns what must be the same."""

    name: str
    work: Callable[[Store, str, Path], object]
    most: int = 100
    """How many kinds of fault are tried at it, where it takes long."""
    writes: bool = True


def trials(setting: Setting) -> Iterator[Trial]:
    @functools.cache
    def store() -> Store:
        started = start_store(setting.folder, small_run(setting.folder.parent), setting.stack)
        in_this_process(started.environment, setting.stack)
        return started

    for subject in SUBJECTS:
        yield from _trials_of(subject, store, setting)


FAULT = Fault("s3", "an S3 that misbehaves", trials)


def _trials_of(subject: Subject, store: Callable[[], Store], setting: Setting) -> Iterator[Trial]:
    """Each kind at requests that chance chooses among those that the undisturbed work makes."""

    @functools.cache
    def undisturbed() -> tuple[object, list[Request]]:
        store().proxy.clear()
        made = _do(subject, store(), f"{subject.name}-undisturbed", setting.folder)
        return made, list(store().proxy.requests)

    chance = setting.random(f"s3/{subject.name}")
    kinds = [(kind, True) for kind in _OF_READS] + [(kind, False) for kind in _OF_WRITES if subject.writes]
    kinds = chance.sample(kinds, min(subject.most, len(kinds)))
    if setting.quick:
        kinds = [chance.choice(kinds), (("flip", 1), True)]
    for number, ((action, times), reads) in enumerate(kinds):
        seed = chance.random()
        name = (
            f"s3/{subject.name}/{'read' if reads else 'write'}-{action.replace(' ', '-')}-x{min(times, 999)}-{number}"
        )
        place = f"{subject.name}-{number}"
        yield Trial(
            name,
            functools.partial(_attempt, subject, store, undisturbed, action, times, reads, seed, place, setting.folder),
        )


def _attempt(
    subject: Subject,
    started: Callable[[], Store],
    undisturbed: Callable[[], tuple[object, list[Request]]],
    action: Action,
    times: int,
    reads: bool,
    seed: float,
    place: str,
    folder: Path,
) -> float:
    store = started()
    wanted, requests = undisturbed()
    rule = _rule(requests, action, times, reads, random.Random(seed), subject.name)
    if rule is None:
        raise AssertionError(f"{subject.name} makes no request that '{action}' can be tried at")
    store.proxy.clear()
    store.proxy.rules = [rule]
    began = time.monotonic()
    try:
        made = _do(subject, store, place, folder)
    except InfrastructureError as error:
        _check_told(error, store)
        store.proxy.clear()
        made = _do(subject, store, place, folder)
    else:
        assert store.proxy.met, f"{rule} was never met"
    seconds = time.monotonic() - began
    store.proxy.clear()
    assert made == wanted, f"{made} instead of {wanted}"
    return seconds


def _check_told(error: InfrastructureError, store: Store) -> None:
    assert len(str(error).splitlines()) == 1, error
    assert store.proxy.met, "it ended without the fault"


def _do(subject: Subject, store: Store, place: str, folder: Path) -> object:
    from components import planning

    planning.read_recipe.cache_clear()
    cache = folder / "cache" / place
    shutil.rmtree(cache, ignore_errors=True)
    os.environ["MMBERT_CACHE"] = str(cache)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        made = subject.work(store, store.root(place), cache)
    if isinstance(made, Artifact):
        _check_whole(made, store)
        return made.digest
    return made


def _check_whole(artifact: Artifact, store: Store) -> None:
    """Each file of an artifact is in the store as its manifest says, seen past the proxy."""
    import hashlib

    client = boto3.session.Session(store.s3.key, store.s3.secret, region_name="us-east-1").client(
        "s3", endpoint_url=store.s3.endpoint
    )
    for file in artifact.manifest.files:
        key = storage.join(artifact.uri, file.key).removeprefix(f"s3://{BUCKET}/")
        data = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        assert hashlib.sha256(data).hexdigest() == file.sha256, file.path


def _rule(
    requests: Sequence[Request], action: Action, times: int, reads: bool, chance: random.Random, name: str
) -> Rule | None:
    methods = ("GET",) if reads else ("PUT", "POST", "DELETE")
    fitting = [r for r in requests if r.method in methods]
    if action in OF_BODIES:
        fitting = [r for r in fitting if r.status < 300 and r.bytes > 1 and "list-type" not in r.target]
    if action in ("wrong etag", "slow"):
        fitting = [r for r in fitting if r.status < 300]
    if action == "reset upload":
        fitting = [r for r in fitting if r.method == "PUT"]
    if not fitting:
        return None
    chosen = chance.choice(fitting)
    pattern = _pattern(chosen.target, name)
    alike = [r for r in requests if r.method == chosen.method and _pattern(r.target, name) == pattern]
    place = chance.choice([n for n, request in enumerate(alike, 1) if request in fitting]) if reads else 1
    return Rule(action, chosen.method, pattern, at=place, times=times)


def _pattern(target: str, name: str) -> str:
    """What is the same in every run of a request's target: not the root, nor the attempt."""
    path, _, query = target.partition("?")
    path = path.replace(f"{name}-undisturbed", f"{name}-*")
    path = re.sub(r"/[0-9a-f]{12}(?=/|$)|(?<=/)[0-9a-f]{32}\.json", "/*", path)
    kind = re.search(r"list-type|uploads|partNumber|uploadId|delete", query)
    return f"{path}*{kind[0]}*" if kind else f"{path}*"


def _component(name: str, **arguments: object) -> Callable[[Store, str, Path], Artifact]:
    """Run a component. Of its arguments those that begin with `run.` are artifacts of the small run."""

    def given(store: Store, value: object) -> object:
        if isinstance(value, list):
            return [given(store, one) for one in value]
        return getattr(store.run, str(value)[4:]) if str(value).startswith("run.") else value

    def work(store: Store, root: str, cache: Path) -> Artifact:
        from components.contract import get_component
        from components.runtime import run_component

        filled = {key: given(store, value) for key, value in arguments.items()}
        return open_artifact(run_component(get_component(name), filled, root).uri)

    return work


def _checkpoints(store: Store, root: str, cache: Path) -> object:
    """Keep three resume checkpoints and a permanent one of a phase, and go on from the newest as a later run would."""
    from mmbert.training import resume

    def saved(batch: int, name: str = "resume") -> resume.Saved:
        folder = cache / f"{name}-{batch}"
        folder.mkdir(parents=True)
        (folder / "composer.pt").write_bytes(bytes([batch]) * 50_000)
        (folder / "loader.bin").write_bytes(bytes([batch + 100]) * 5_000)
        return resume.Saved(batch, batch * 100, folder)

    def writer() -> ArtifactWriter:
        return ArtifactWriter(f"{root}/checkpoint/f", "checkpoint", "f" * 32, {}, {})

    before, resume._RETRY_SECONDS = resume._RETRY_SECONDS, (0.05, 0.05)
    kept = resume.CheckpointStore(writer(), keep=2)
    try:
        for batch in (1, 2, 3):
            kept.save(saved(batch), saved(batch, "permanent") if batch == 2 else None)
        kept.finish()
        found = cache / "found"
        newest = resume.CheckpointStore(writer(), keep=2).fetch_newest(found)
    except MmbertError:
        with contextlib.suppress(MmbertError):
            kept.finish()
        raise
    finally:
        resume._RETRY_SECONDS = before
    assert newest is not None, "the phase would start anew"
    files = {path.name: path.read_bytes() for path in sorted(found.iterdir())}
    assert files == {"composer.pt": bytes([newest.batch]) * 50_000, "loader.bin": bytes([newest.batch + 100]) * 5_000}
    assert newest.batch >= 2, "more than one checkpoint was lost"
    permanent = resume.permanent_checkpoints(f"{root}/checkpoint/f")
    assert permanent == ["permanent/000000000002"]
    return open_artifact(f"{root}/checkpoint/f/{permanent[0]}").digest


def _batches(store: Store, root: str, cache: Path) -> object:
    """The first tokens of a phase, read by the streaming library."""
    import hashlib

    from mmbert.loader.loader import build_loader
    from mmbert.recipe import recipe_from_text
    from mmbert.training.data import loader_settings, mixture_streams

    recipe = recipe_from_text(open_artifact(store.run.recipe, "recipe").read("recipe.yaml").decode(), "recipe")
    rows = open_artifact(store.run.mixture, "mixture").read_json("mixture.json")["rows"]
    streams = mixture_streams(rows, [open_artifact(store.run.shards, "shards")])
    loader = iter(build_loader(streams, loader_settings(recipe, "pretrain", cache), 0, 1, 0))
    return hashlib.sha256(b"".join(next(loader).input_ids.numpy().tobytes() for _ in range(3))).hexdigest()


_RECIPE = {"recipe": "run.recipe"}
SUBJECTS = (
    Subject("mixture", _component("mixture", **_RECIPE, shards=["run.shards"], phase="pretrain")),
    Subject("tokenizer", _component("tokenizer", **_RECIPE, documents=["run.documents"])),
    Subject("tokenize", _component("tokenize", **_RECIPE, documents="run.documents", tokenizer="run.tokenizer")),
    Subject("curate", _component("curate", **_RECIPE, group="0"), most=8),
    Subject("checkpoints", _checkpoints),
    Subject("loader", _batches, writes=False),
)
