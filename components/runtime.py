"""Run one component: plan it, find it done or do it, commit its artifact, tell MLflow.

Several processes may do it together: process 0 decides whether it is done, tracks, writes and commits; the others
compute, with a tracking run that does nothing and an output that is never committed.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import platform
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmbert
from components import planning, processes
from components.code import commit
from components.contract import Component
from mmbert import artifacts, logs, metrics, ranks, storage, tracking
from mmbert.errors import InfrastructureError, MmbertError, UserError
from mmbert.pages import links
from mmbert.places import cache_folder, scratch_folder
from mmbert.recipe import Recipe, recipe_to_yaml

DEFAULT_ROOT = "artifacts"
_MINIMUM_FREE_BYTES = 200 * 2**20
_FULL_BYTES = 2**20


@dataclass(frozen=True)
class Work:
    """What a component's entry function is given besides its arguments."""

    recipe: Recipe
    output: artifacts.ArtifactWriter
    run: tracking.ComponentRun
    tracker: tracking.Tracker
    scratch: Path
    """An empty folder that is gone afterwards."""
    cache: Path
    """A folder that is kept between runs; everything in it can be made again."""
    root: str
    """Where artifacts are kept."""
    ranks: ranks.Alone
    """The processes that do this together."""
    planned_recipe: str
    """The whole recipe as YAML, for people to read; results must not depend on it."""

    def open(self, uri: str, kind: str | None = None) -> artifacts.Artifact:
        return artifacts.open_artifact(uri, kind)

    def kept(self, name: str) -> str:
        """A prefix in the store for what is worth keeping between runs; everything in it can be made again."""
        return storage.join(self.root, "work", name)

    def links(self) -> dict[str, str]:
        """Where this work is shown besides, for the head of a page: in MLflow, in Airflow."""
        return links.work_links(self.run.run_id, links.airflow_task())

    def log_json(self, value: Any, file: str) -> None:
        """Keep a small value in MLflow as a file of the run."""
        self.run.log_text(json.dumps(value, indent=1, ensure_ascii=False), file)

    def fetch_folders(self, uris: list[str], kind: str | None, prefix: str = "") -> list[Path]:
        """Bring the files of several artifacts below `prefix` into scratch folders of their own, names kept."""
        return [
            self.open(uri, kind).fetch_folder(self.scratch / (kind or "any") / str(index), self.cache / "files", prefix)
            for index, uri in enumerate(uris)
        ]


@dataclass(frozen=True)
class Result:
    uri: str
    reused: bool
    outputs: Mapping[str, Any]
    helped: bool = False
    """True in a process that only helped: process 0 tells of it."""


def root_uri() -> str:
    """Where artifacts are kept: MMBERT_ROOT, a folder or an s3:// prefix."""
    return os.environ.get("MMBERT_ROOT", DEFAULT_ROOT)


def run_component(item: Component, arguments: Mapping[str, Any], root: str, task: str = "") -> Result:
    """Do a piece of work unless it was done before.

    Raises UserError, InfrastructureError, or whatever a bug raises; nothing is committed then.
    """
    task = task or item.name
    logs.about(component=item.name, task=task, fingerprint="")
    if (group := processes.wanted(item, arguments)) is not None:
        return _in_processes(group, item, arguments, root, task)
    with ranks.together() as among:
        if among.size > 1 and not item.distributed:
            raise UserError(f"component '{item.name}' is one process; {among.size} were started (WORLD_SIZE)")
        work_plan = _planned(item, arguments, root, task)
        done = work_plan.done() if among.leads else None
        if among.agree(lambda: done is not None):
            return _found(work_plan, task, done) if done else _helped(work_plan, reused=True)
        return _do(work_plan, task, root, among)


def _planned(item: Component, arguments: Mapping[str, Any], root: str, task: str) -> planning.Plan:
    """The plan, of which logs and metrics know from here on."""
    work_plan = planning.plan(item, arguments, root)
    logs.about(fingerprint=work_plan.fingerprint)
    workflow_run = os.environ.get("MMBERT_WORKFLOW_RUN", "")
    metrics.set_to(metrics.COMPONENT, 1, item.name, work_plan.fingerprint, task, workflow_run, mmbert.__version__)
    metrics.set_to(metrics.STARTED, time.time())
    return work_plan


def _in_processes(
    group: processes.Group, item: Component, arguments: Mapping[str, Any], root: str, task: str
) -> Result:
    work_plan = _planned(item, arguments, root, task)
    done = work_plan.done()
    # On several nodes the processes decide whether it is done, so that all nodes do the same.
    if done is not None and group.nodes == 1:
        return _found(work_plan, task, done)
    processes.start(group, work_plan, root, task)
    if not group.leads:
        return _helped(work_plan, reused=done is not None)
    artifact = artifacts.open_artifact(work_plan.uri)
    return Result(artifact.uri, done is not None, artifact.outputs)


def _found(work_plan: planning.Plan, task: str, done: artifacts.Artifact) -> Result:
    link_reused(work_plan, task, done)
    return Result(done.uri, True, done.outputs)


def _helped(work_plan: planning.Plan, reused: bool) -> Result:
    return Result(work_plan.uri, reused, {}, helped=True)


def _do(work_plan: planning.Plan, task: str, root: str, among: ranks.Alone) -> Result:
    item = work_plan.component
    writer = artifacts.ArtifactWriter(
        work_plan.uri, item.produces, work_plan.fingerprint, work_plan.parameters, work_plan.inputs
    )
    if not among.leads:
        follower = tracking.Tracker(None, "", None)
        with scratch_folder() as scratch, among.guarded():
            work = _work(work_plan, writer, tracking.ComponentRun(), follower, scratch, root, among)
            item.function(work, **work_plan.arguments)
            among.agree(_committed)
        return _helped(work_plan, reused=False)
    tracker = _tracker(work_plan)
    replay_spools(tracker, root)
    read = [(name, entry) for name, entries in work_plan.inputs.items() for entry in entries]
    if (recipe := _recipe(work_plan).get("recipe")) is not None:
        read.append(("recipe", recipe))
    writer.begin({entry["uri"] for _, entry in read})
    with _child_run(tracker, work_plan, task, root) as run, scratch_folder() as scratch, among.guarded():
        for name, entry in read:
            run.log_input(f"{name}-{entry['digest'][:8]}", entry["digest"], entry["uri"], name)
        started = time.monotonic()
        work = _work(work_plan, writer, run, tracker, scratch, root, among)
        with _full_disk_named(scratch, work.cache):
            item.function(work, **work_plan.arguments)
        seconds = time.monotonic() - started
        artifact = writer.commit(_producer(work_plan, run, task, seconds))
        among.agree(_committed)
        run.log_metrics({"component_seconds": seconds}, step=0)
        run.set_tags({"mmbert.content_digest": artifact.digest, "mmbert.uri": artifact.uri})
    return Result(artifact.uri, False, artifact.outputs)


def _committed() -> None:
    """What process 0 says once the artifact is complete; the others' nodes write its result too."""


def link_reused(work_plan: planning.Plan, task: str, done: artifacts.Artifact) -> None:
    """Show in MLflow that a step was found done, and which run made it.

    A running workflow's artifacts are known by these links and kept (docs/storage.md), so InfrastructureError is raised
    where MLflow is away, as for work that begins.
    """
    made_by = str(done.manifest.producer.get("mlflow_run_id", ""))
    _tracker(work_plan).link_reused(task, done.manifest.fingerprint, made_by, done.uri)


def _tracker(work_plan: planning.Plan) -> tracking.Tracker:
    """To the work's experiment. Its runs, and the workflow's, name and link what Airflow calls them."""
    return tracking.connect(experiment(work_plan), airflow_task=links.airflow_task())


def experiment(work_plan: planning.Plan) -> str:
    """The MLflow experiment of a piece of work: one a recipe."""
    return f"mmbert/{planning.recipe_of(work_plan.arguments).name}"


def _work(
    work_plan: planning.Plan,
    writer: artifacts.ArtifactWriter,
    run: tracking.ComponentRun,
    tracker: tracking.Tracker,
    scratch: Path,
    root: str,
    among: ranks.Alone,
) -> Work:
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(cache).free < _MINIMUM_FREE_BYTES:
        raise InfrastructureError(f"{cache}: less than 200 MB are free on this disk; free some space and run it again")
    among.scratch = scratch
    recipe: Any = None
    full = planning.recipe_of(work_plan.arguments)
    if "recipe" in work_plan.arguments:
        recipe = planning.declared_recipe(work_plan.component, full, work_plan.arguments)
    return Work(recipe, writer, run, tracker, scratch, cache, root, among, recipe_to_yaml(full))


@contextlib.contextmanager
def _full_disk_named(*folders: Path) -> Iterator[None]:
    """A full disk is told as one, with a place on it: what writes to an open file leaves the place out."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        # Of a copy the second name is where it went.
        place = (
            error.filename2 or error.filename or next((folder for folder in folders if _is_full(folder)), folders[0])
        )
        raise InfrastructureError(f"{place}: the disk is full; free some space and run it again") from error


def _is_full(folder: Path) -> bool:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize < _FULL_BYTES or not disk.f_favail


@contextlib.contextmanager
def _child_run(
    tracker: tracking.Tracker, work_plan: planning.Plan, task: str, root: str
) -> Iterator[tracking.ComponentRun]:
    run = tracker.component_run(
        task=task,
        component=work_plan.component.name,
        fingerprint=work_plan.fingerprint,
        tags={
            "mmbert.commit": commit(),
            "mmbert.image": os.environ.get("MMBERT_IMAGE", ""),
            "mmbert.place": work_plan.uri,
        },
    )
    status: tracking.Status = "FAILED"
    try:
        run.log_params(_flatten(work_plan.parameters))
        yield run
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        # An attempt that is ended because a retry took its place shares the run with it, which may have done the work.
        if status != "FINISHED" and _is_done(work_plan):
            status = "FINISHED"
        unsent = run.finish(status)
        if unsent is not None:
            name = f"{work_plan.fingerprint}-{uuid.uuid4().hex[:8]}.jsonl"
            storage.upload(storage.join(root, "spool", name), unsent)
            unsent.unlink()


def _is_done(work_plan: planning.Plan) -> bool:
    with contextlib.suppress(MmbertError):
        return work_plan.done() is not None
    return False


def replay_spools(tracker: tracking.Tracker, root: str) -> None:
    """Send what earlier components could not, MLflow having been away when they ended."""
    if not tracker.active:
        return
    spools = storage.join(root, "spool")
    for path in storage.list_files(spools):
        uri = storage.join(spools, path)
        # Another component may take it first; sending twice is harmless.
        with contextlib.suppress(storage.MissingFileError):
            tracker.replay_spool(storage.read_bytes(uri))
            storage.delete_file(uri)


def _producer(work_plan: planning.Plan, run: tracking.ComponentRun, task: str, seconds: float) -> dict[str, Any]:
    """Who made it, where, and by what call: `mmbert trace` shows it, `mmbert reproduce` repeats the call."""
    item = work_plan.component
    return {
        "component": item.name,
        "component_version": item.version,
        "arguments": work_plan.arguments,
        **_recipe(work_plan),
        "task": task,
        "package_version": mmbert.__version__,
        "commit": commit(),
        "image": os.environ.get("MMBERT_IMAGE", ""),
        "mlflow_run_id": run.run_id,
        "workflow_run": os.environ.get("MMBERT_WORKFLOW_RUN", ""),
        "seconds": round(seconds, 3),
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
        "machine": machine(),
        **({"airflow": airflow} if (airflow := links.airflow_task()) else {}),
    }


def _recipe(work_plan: planning.Plan) -> dict[str, Any]:
    """The recipe's artifact; of a preset or a file, which can change under its name, the whole text."""
    source = work_plan.arguments.get("recipe")
    if source is None:
        return {}
    found = planning.recipe_artifact(source)
    if found is None:
        return {"recipe_text": recipe_to_yaml(planning.recipe_of(work_plan.arguments))}
    return {"recipe": {"uri": found.uri, "digest": found.digest, "kind": "recipe"}}


@functools.cache
def machine() -> str:
    """The kind of machine that this is, which byte identity is promised for: architecture and processor."""
    model = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return ", ".join(part for part in (platform.machine(), model) if part)


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat.update(_flatten(item, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = item if isinstance(item, str) else json.dumps(item)
    return flat
