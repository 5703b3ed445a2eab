"""Runs datatrove pipelines, one task a piece of work: in this process, in processes beside it, or on a Ray cluster.

MMBERT_EXECUTOR is `local` (the default) or `ray`; Ray's cluster is the one that RAY_ADDRESS names, or this machine.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import functools
import hmac
import itertools
import logging
import os
import pickle
import secrets
import struct
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import dill
from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from loguru import logger

from mmbert import logs, storage
from mmbert.data.curation.work import WorkStore
from mmbert.errors import InfrastructureError, MmbertError, UserError
from mmbert.places import scratch_folder, scratch_parent
from mmbert.progress import Advance
from mmbert.workers import Workers

# In every process that a task is sent to: what is worth telling, the stages tell themselves.
logger.disable("datatrove")

EXECUTORS = ("local", "ray")
_SEAL_BYTES = 32
_PASSED_ON = ("AWS_", "S3_", "HF_", "MMBERT_")
"""Beginnings of the variables by which a cluster's processes find the stores that this one uses."""


class Jobs:
    """What a pipeline's tasks have to do, in a file that each task reads its own part of.

    Executors send the whole pipeline to every task: with a list in it, sending would take time with the square of the
    number of tasks. The file: where each job begins (uint64), then the jobs, pickled, each behind its seal: the key is
    sent with the pipeline and is not in the store, so nobody who may write there can have a pickle of his own run.
    """

    def __init__(self, uri: str, key: bytes) -> None:
        self._uri, self._key = uri, key

    def __getitem__(self, task: int) -> Any:
        """Raises UserError where the file was altered."""
        data = storage.fetched_twice(lambda: self._read(task), UserError)
        return pickle.loads(data)  # noqa: S301 - sealed by this run

    def _read(self, task: int) -> bytes:
        place = storage.read_range(self._uri, 8 * task, 16)
        begin, end = struct.unpack("<QQ", place.ljust(16, b"\0"))
        sealed = storage.read_range(self._uri, begin, max(0, end - begin))
        seal, data = sealed[:_SEAL_BYTES], sealed[_SEAL_BYTES:]
        if not hmac.compare_digest(seal, self._seal(task, data)):
            raise UserError(f"{self._uri}: it was altered since this run wrote it; see who can write there")
        return data

    def _seal(self, task: int, data: bytes) -> bytes:
        return hmac.digest(self._key, struct.pack("<Q", task) + data, "sha256")

    @classmethod
    @contextlib.contextmanager
    def written(cls, store: WorkStore, attempt: str, jobs: Sequence[Any]) -> Iterator[Jobs]:
        uri = storage.join(store.uri, "jobs", attempt)
        made = cls(uri, secrets.token_bytes(_SEAL_BYTES))
        pickled = [pickle.dumps(job) for job in jobs]
        data = [made._seal(task, job) + job for task, job in enumerate(pickled)]
        begins = itertools.accumulate(map(len, data), initial=8 * (len(data) + 1))
        storage.write_bytes(uri, struct.pack(f"<{len(data) + 1}Q", *begins) + b"".join(data))
        try:
            yield made
        finally:
            storage.delete_file(uri)


@dataclass(frozen=True)
class Executor:
    """Where tasks run, and how many at a time. Results depend on neither."""

    kind: Literal["local", "ray"] = "local"
    workers: int = 1

    @classmethod
    def from_environment(cls, workers: int) -> Executor:
        """Raises UserError where MMBERT_EXECUTOR names none."""
        kind = os.environ.get("MMBERT_EXECUTOR", "local")
        if kind not in EXECUTORS:
            raise UserError(f"MMBERT_EXECUTOR={kind}: there is no such executor; it can be {', '.join(EXECUTORS)}")
        return cls(cast(Literal["local", "ray"], kind), workers)

    def run(
        self,
        steps: Callable[[Jobs], Sequence[PipelineStep]],
        jobs: Sequence[Any],
        store: WorkStore,
        workers: Workers,
        advance: Advance,
    ) -> None:
        """Run a pipeline once for each job: task number n does `jobs[n]`.

        `steps` makes the pipeline; `workers` do local work in more than one process; `advance` is told of each task
        that is done, but of Ray's. Raises what a task raises, in whatever process.
        """
        attempt = uuid.uuid4().hex[:12]
        with self._logs(store, attempt) as logs, Jobs.written(store, attempt, jobs) as listed:
            *first, last = steps(listed)
            pipeline = [*first, _Guarded(last, store, attempt)]
            # Finished work is known by its fingerprint; datatrove's own markers do not know the settings.
            options: dict[str, Any] = {"tasks": len(jobs), "logging_dir": logs, "skip_completed": False}
            if self.kind == "ray":
                self._run_on_ray(pipeline, options)
                store.raise_failure(attempt)
                return
            try:
                _Local(pipeline, workers=min(self.workers, len(jobs)), **options).run_in(workers, advance)
            except MmbertError:
                storage.delete_tree(storage.join(store.uri, "failed", attempt))
                raise

    def _run_on_ray(self, pipeline: list[PipelineStep], options: dict[str, Any]) -> None:
        import ray

        if not ray.is_initialized():
            address = os.environ.get("RAY_ADDRESS")
            try:
                # Without an address Ray starts on this machine, with as many cores as tasks may run at a time.
                local: dict[str, Any] = {} if address else {"num_cpus": self.workers, "include_dashboard": False}
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise InfrastructureError(f"RAY_ADDRESS={address}: no Ray cluster answers there: {error}") from error
        variables = {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}
        options |= {"ray_remote_kwargs": {"runtime_env": {"env_vars": variables}}, "mem_per_cpu_gb": _gigabytes(ray)}
        RayPipelineExecutor(pipeline, workers=self.workers, **options).run()

    @contextlib.contextmanager
    def _logs(self, store: WorkStore, attempt: str) -> Iterator[str]:
        """Where datatrove keeps its logs and statistics; the machines of a cluster share only the store."""
        if self.kind == "local":
            with scratch_folder() as folder:
                yield str(folder)
            return
        logs = storage.join(store.uri, "logs", attempt)
        try:
            yield logs
        finally:
            storage.delete_tree(logs)


class _Local(LocalPipelineExecutor):
    """datatrove's, with processes of ours: its own outlive a killed parent, and a killed one is waited for for ever."""

    def run_in(self, workers: Workers, advance: Advance) -> None:
        if self.workers == 1:
            for task in range(self.tasks):
                copy.deepcopy(self)._run_for_rank(task)
                advance(1)
        else:
            # Steps hold what plain pickle does not take.
            workers.each(functools.partial(_run_task, dill.dumps(self)), range(self.tasks), advance)


def _run_task(executor: bytes, task: int) -> None:
    dill.loads(executor)._run_for_rank(task)  # noqa: S301 - of the process that started this one


def _gigabytes(ray: Any) -> float:
    """Memory to ask for a task: 2 GB, or less where the cluster has less a core."""
    resources = ray.cluster_resources()
    return float(min(2.0, 0.8 * resources.get("memory", 2**31) / 2**30 / max(1.0, resources.get("CPU", 1.0))))


class _Guarded(PipelineStep):
    """The last step, whose errors are left in the store: Ray's executor only logs them."""

    type = "guard"
    name = "guard"

    def __init__(self, step: PipelineStep, store: WorkStore, attempt: str) -> None:
        super().__init__()
        self.step = step
        self.store = store
        self.attempt = attempt

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        logs.set_up()
        try:
            self.step.run(data, rank, world_size)
        except MmbertError as error:
            self.store.fail(self.attempt, error)
            raise
        except OSError as error:
            full = "the disk is full; free some space and run it again"
            what = full if error.errno == errno.ENOSPC else error.strerror or str(error)
            failure = InfrastructureError(f"curation, {error.filename or scratch_parent()}: {what}")
            with contextlib.suppress(MmbertError):  # the store may be on the full disk
                self.store.fail(self.attempt, failure)
            raise failure from error
        except Exception:
            self.store.fail(self.attempt, MmbertError(traceback.format_exc()))
            raise
