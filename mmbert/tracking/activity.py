"""Which work is running, as MLflow knows it, and which artifacts it needs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mmbert.tracking.api import Api, Refused, patiently
from mmbert.tracking.delivery import get_run

_PAGE = 1000
_PLACES = ("mmbert.place", "mmbert.uri", "mmbert.reused_uri")
_PARENT = "mlflow.parentRunId"


@dataclass(frozen=True)
class RunningRun:
    """A run with status RUNNING. `uris`: its place and inputs, and for a workflow's run those of all its steps so far.

    `started` is in seconds since 1970. A run whose process was killed runs on until it is ended in MLflow.
    """

    run_id: str
    name: str
    started: float
    uris: tuple[str, ...]


def running_runs(api: Api) -> list[RunningRun]:
    """Raises InfrastructureError where MLflow is away."""
    experiments = [str(found["experiment_id"]) for found in _pages(api, "experiments/search", {}, "experiments")]
    found = []
    # A server takes the experiments of a search in one text.
    for first in range(0, len(experiments), 100):
        some = experiments[first : first + 100]
        for raw in _runs(api, some, "attributes.status = 'RUNNING'"):
            info = raw["info"]
            steps = _runs(api, [info["experiment_id"]], f"tags.`{_PARENT}` = '{info['run_id']}'")
            uris = [uri for run in (raw, *steps) for uri in _uris(run)]
            started = float(info.get("start_time") or 0) / 1000
            name = str(info.get("run_name") or "")
            found.append(RunningRun(info["run_id"], name, started, tuple(dict.fromkeys(uris))))
    return found


def knows(api: Api, run_id: str) -> bool:
    """Whether the server has or had this run; one in MLflow's bin counts."""
    try:
        patiently(lambda: get_run(api, run_id))
    except Refused as error:
        if error.code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    return True


def _runs(api: Api, experiments: list[str], wanted: str) -> Iterator[Any]:
    return _pages(api, "runs/search", {"experiment_ids": experiments, "filter": wanted}, "runs")


def _pages(api: Api, path: str, query: Mapping[str, Any], key: str) -> Iterator[Any]:
    page = ""
    while True:
        body = {**query, "max_results": _PAGE, **({"page_token": page} if page else {})}
        answer = patiently(lambda body=body: api.call(path, body))  # type: ignore[misc]
        yield from answer.get(key, [])
        page = answer.get("next_page_token", "")
        if not page:
            return


def _uris(raw: Any) -> Iterator[str]:
    tags = {tag["key"]: tag["value"] for tag in raw["data"].get("tags", [])}
    yield from (tags[key] for key in _PLACES if tags.get(key))
    for item in raw.get("inputs", {}).get("dataset_inputs", []):
        with contextlib.suppress(ValueError, KeyError, TypeError):  # a data set that another program logged
            yield str(json.loads(item["dataset"]["source"])["uri"])
