"""One MLflow run being written: recorded at once on disk, sent by a background thread."""

from __future__ import annotations

import base64
import contextlib
import logging
import re
import threading
import time
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Self, TypeVar
from urllib.parse import urlsplit

from mmbert.errors import UserError
from mmbert.tracking import delivery
from mmbert.tracking.api import Api, Unavailable, patiently
from mmbert.tracking.election import Run
from mmbert.tracking.spool import Operation, Spool, abandoned, parse, spool_path

log = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]
T = TypeVar("T")

# One request every two seconds: a request costs the server about as much as a small training step does.
_SEND_SECONDS = 2.0
_FIRST_RETRY_SECONDS = 0.5
_LONGEST_RETRY_SECONDS = 15.0


class ComponentRun:
    """The run of a component (or of the whole workflow). Without MLflow its methods do nothing.

    No method waits for MLflow, except `finish` and `close`, for a bounded time. What is recorded goes to a file in
    `folder` first, so it survives MLflow's absence and this process; the next attempt on the same folder sends it.
    Metrics of a resumed run that MLflow already holds (same key, a step from 1 up to its last) are left out, so a
    phase that goes back to its checkpoint draws no line twice; at step 0 every value is kept.
    """

    def __init__(self, api: Api | None = None, run: Run | None = None, folder: Path | None = None) -> None:
        """Raises Unavailable where an earlier attempt's records cannot be sent."""
        self.run_id = run.run_id if run else None
        self._closing = threading.Event()
        self._stopped = threading.Event()
        self._spool: Spool | None = None
        if api is None or run is None or folder is None:
            return
        self._api = Api(api.uri)
        self._artifact_uri = run.artifact_uri
        self._last_steps = _adopt(api, run, folder)
        self._spool = Spool(spool_path(folder, run.run_id))
        self._thread = threading.Thread(target=self._send, name="mlflow", daemon=True)
        self._thread.start()

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Parameters, as text. A parameter that the run already has with another value is left as it is."""
        texts = {key: _cut(str(value), delivery.MAX_PARAM_LENGTH) for key, value in params.items()}
        self._record({"params": part} for part in _parts(texts, delivery.MAX_PARAMS))

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Points of the metrics' lines at `step`, now."""
        if self._spool is None:
            return
        now = int(time.time() * 1000)
        points = {
            key: [_metric_key(key), float(value), now, step]
            for key, value in metrics.items()
            if step <= 0 or step > self._last_steps.get(key, 0)
        }
        self._record({"metrics": list(part.values())} for part in _parts(points, delivery.MAX_METRICS))

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        texts = {key: _cut(str(value), delivery.MAX_TAG_LENGTH) for key, value in tags.items()}
        self._record({"tags": part} for part in _parts(texts, delivery.MAX_TAGS))

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """A small file (a plot, a table, a report), read now, as `folder/name`. Shards and checkpoints stay in storage.

        Raises UserError where the server does not take artifacts over HTTP.
        """
        self.log_bytes(path.read_bytes() if self._spool else b"", f"{folder}/{path.name}")

    def log_text(self, text: str, file: str) -> None:
        self.log_bytes(text.encode(), file)

    def log_input(self, name: str, digest: str, source_uri: str, context: str) -> None:
        """A data set that the run reads: `digest` is its artifact's content digest, `context` its use (`training`)."""
        self._record([{"input": delivery.dataset_input(name, digest, source_uri, context)}])

    def finish(self, status: Status, wait_seconds: float = 20.0) -> Path | None:
        """End the run, and wait until all is sent.

        Returns None when it is; else, once `wait_seconds` have passed, the file of what is unsent, for
        `Tracker.replay_spool`.
        """
        self._record([{"finish": status, "time": int(time.time() * 1000)}])
        return self.close(wait_seconds)

    def close(self, wait_seconds: float = 20.0) -> Path | None:
        """Stop writing and leave the run's status as it is. Returns as `finish` does."""
        if self._spool is None:
            return None
        self._closing.set()
        self._thread.join(wait_seconds)
        self._stopped.set()
        unsent = self._spool.close()
        self._spool = None
        if unsent:
            log.warning("MLflow is away; what it has not got is in %s, to be sent later", unsent)
        return unsent

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Ends a run that was not finished: FINISHED, KILLED (interrupted) or FAILED."""
        if kind is None:
            self.finish("FINISHED")
        else:
            self.finish("FAILED" if issubclass(kind, Exception) else "KILLED", wait_seconds=5.0)

    def _record(self, operations: Iterable[Operation]) -> None:
        if self._spool is not None:
            self._spool.append({"run": self.run_id, **operation} for operation in operations)

    def log_bytes(self, data: bytes, name: str) -> None:
        """A small file of the run, `name` with its folders. Raises as `log_artifact`."""
        if self._spool is None:
            return
        if not self._artifact_uri.startswith("mlflow-artifacts:"):
            raise UserError(
                f"MLflow keeps this run's artifacts at {self._artifact_uri}, which clients cannot reach through it; "
                "start the server with --artifacts-destination, and use a new experiment"
            )
        path = f"{urlsplit(self._artifact_uri).path}/{name}".replace("//", "/").lstrip("/")
        self._record([{"artifact": path, "base64": base64.b64encode(data).decode()}])

    def _send(self) -> None:
        """The background thread: send what is recorded until closed and empty, or stopped."""
        failures = 0
        while not self._stopped.is_set():
            closing = self._closing.is_set()
            try:
                self._send_recorded()
            except Unavailable as error:
                failures += 1
                # The first is often just an idle connection that the server closed.
                if failures == 2:
                    log.warning("%s; the work goes on and what is recorded is sent later", error)
                longest = _FIRST_RETRY_SECONDS if closing else _LONGEST_RETRY_SECONDS
                pause = min(_FIRST_RETRY_SECONDS * 2 ** min(failures - 1, 8), longest)
            else:
                if closing:
                    return
                failures, pause = 0, _SEND_SECONDS
            (self._stopped if closing else self._closing).wait(pause)

    def _send_recorded(self) -> None:
        spool = self._spool
        while spool is not None and (entries := spool.read()):
            for group, mark in delivery.groups(entries):
                if self._stopped.is_set():
                    return
                delivery.deliver(self._api, group)
                spool.mark_sent(mark, len(group))


def _adopt(api: Api, run: Run, folder: Path) -> dict[str, int]:
    """Send what earlier attempts left unsent, and return the last step of each metric after it."""
    last_steps = dict(run.last_steps)
    for path in abandoned(folder, run.run_id):
        operations = parse(path.read_bytes())
        patiently(lambda: delivery.replay(api, operations, finishing=False))  # noqa: B023 - called at once
        for key, _, _, step in (point for o in operations for point in o.get("metrics", ())):
            last_steps[key] = max(step, last_steps.get(key, 0))
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
    return last_steps


def _parts(items: Mapping[str, T], size: int) -> Iterable[dict[str, T]]:
    rest = iter(items.items())
    while part := dict(islice(rest, size)):
        yield part


def _metric_key(key: str) -> str:
    """MLflow takes letters, digits and `_-. :/` in a name."""
    return re.sub(r"[^\w\-. :/]", "_", key, flags=re.ASCII)


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    note = f" ... [cut: {len(text)} characters in all]"
    return text[: limit - len(note)] + note
