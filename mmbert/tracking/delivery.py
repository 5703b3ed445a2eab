"""Sending recorded operations to MLflow, so that sending one twice changes nothing.

MLflow keeps one point for equal key, step, timestamp and value; equal parameters, tags, inputs and artifacts overwrite.
"""

from __future__ import annotations

import base64
import json
import logging
import math
from collections.abc import Iterator
from typing import Any

from mmbert.tracking.api import Api, Refused
from mmbert.tracking.spool import Operation

log = logging.getLogger(__name__)

# The server's limits (mlflow/utils/validation.py): items a batch (1000 of all kinds together), characters a value.
MAX_METRICS = 1000
MAX_PARAMS = MAX_TAGS = 100
MAX_PARAM_LENGTH = 6000
MAX_TAG_LENGTH = 8000

_Item = tuple[str, Any]


def groups(entries: list[tuple[Operation, int]]) -> Iterator[tuple[list[Operation], int]]:
    """Consecutive operations that fit one request, with the mark of the last."""
    group: list[Operation] = []
    mark = 0
    for operation, end in entries:
        if group and not _fits(group, operation):
            yield group, mark
            group = []
        group.append(operation)
        mark = end
    if group:
        yield group, mark


def _is_batchable(operation: Operation) -> bool:
    return bool(operation.keys() & {"metrics", "params", "tags"})


def _fits(group: list[Operation], operation: Operation) -> bool:
    both = [*group, operation]
    counts = [sum(len(o.get(kind, ())) for o in both) for kind in ("metrics", "params", "tags")]
    return (
        all(_is_batchable(o) and o["run"] == operation["run"] for o in both)
        and counts[1] <= MAX_PARAMS
        and counts[2] <= MAX_TAGS
        and sum(counts) <= MAX_METRICS
    )


def deliver(api: Api, group: list[Operation]) -> None:
    """Send one group. What MLflow refuses is dropped with a warning. Raises Unavailable."""
    first = group[0]
    if _is_batchable(first):
        items = [(kind, item) for o in group for kind in ("metrics", "params", "tags") for item in _items(o, kind)]
        _log_batch(api, first["run"], items)
        return
    try:
        if "artifact" in first:
            api.upload(first["artifact"], base64.b64decode(first["base64"]))
        elif "input" in first:
            api.call("runs/log-inputs", {"run_id": first["run"], "datasets": [first["input"]]})
        else:
            api.call("runs/update", {"run_id": first["run"], "status": first["finish"], "end_time": first["time"]})
    except Refused as error:
        log.warning("not logged: %s of run %s: %s", _named(first), first["run"], error)


def _named(operation: Operation) -> str:
    return str(operation.get("artifact") or operation.get("finish") or operation["input"]["dataset"]["name"])


def _items(operation: Operation, kind: str) -> list[Any]:
    return list(operation.get(kind, [])) if kind == "metrics" else list(operation.get(kind, {}).items())


def _log_batch(api: Api, run_id: str, items: list[_Item]) -> None:
    """One log-batch; where MLflow refuses it, halves of it, so that one bad item is dropped alone."""
    body: dict[str, Any] = {"run_id": run_id, "metrics": [], "params": [], "tags": []}
    for kind, item in items:
        if kind == "metrics":
            key, value, timestamp, step = item
            body[kind].append({"key": key, "value": _number(value), "timestamp": timestamp, "step": step})
        else:
            body[kind].append({"key": item[0], "value": item[1]})
    try:
        api.call("runs/log-batch", body)
    except Refused as error:
        if len(items) == 1 or not _is_active(api, run_id):
            log.warning("not logged: %d items (first: %s) of run %s: %s", len(items), items[0], run_id, error)
            return
        middle = len(items) // 2
        _log_batch(api, run_id, items[:middle])
        _log_batch(api, run_id, items[middle:])


def _number(value: float) -> float | str:
    """JSON has no NaN; the server reads these names."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


def _is_active(api: Api, run_id: str) -> bool:
    try:
        return bool(get_run(api, run_id)["info"]["lifecycle_stage"] == "active")
    except Refused:
        return False


def get_run(api: Api, run_id: str) -> Any:
    return api.get("runs/get", {"run_id": run_id})["run"]


def replay(api: Api, operations: list[Operation], finishing: bool = True) -> int:
    """Send all operations and return their number. A run that ended later than a recorded end keeps its own status.

    `finishing=False` leaves out the recorded ends, for a run that goes on. Raises Unavailable.
    """
    kept = [o for o in operations if "finish" not in o or (finishing and not _ended_after(api, o))]
    for group, _ in groups([(o, 0) for o in kept]):
        deliver(api, group)
    return len(operations)


def _ended_after(api: Api, finish: Operation) -> bool:
    try:
        info = get_run(api, finish["run"])["info"]
    except Refused:
        return False
    return int(info.get("end_time") or 0) > int(finish["time"])


def dataset_input(name: str, digest: str, source_uri: str, context: str) -> dict[str, Any]:
    """MLflow's data set input. Its digest holds 36 characters, so the whole one stands in the profile."""
    return {
        "tags": [{"key": "mlflow.data.context", "value": context}],
        "dataset": {
            "name": name,
            "digest": digest[:36],
            "source_type": "s3" if source_uri.startswith("s3://") else "local",
            "source": json.dumps({"uri": source_uri}),
            "profile": json.dumps({"content_digest": digest}),
        },
    }
