"""Which work is running, as MLflow knows it, and which artifacts it needs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mmbert.tracking.api import Api, Refused, pages, patiently
from mmbert.tracking.delivery import get_run

_PLACES = ("mmbert.place", "mmbert.uri", "mmbert.reused_uri")
_PARENT = "mlflow.parentRunId"


@dataclass(frozen=True)
class RunningRun:
    """A run with status RUNNING. `uris`: its place and inputs, and those of all steps so far of the workflow it is of.

    `started` is in seconds since 1970. A run whose process was killed runs on until it is ended in MLflow.
    """

    run_id: str
    name: str
    started: float
    uris: tuple[str, ...]


def running_runs(api: Api) -> list[RunningRun]:
    """This project's, of all experiments that the server shows.

    A run that is RUNNING keeps its workflow's other runs, whatever the status of the workflow's own, which may have
    failed before it was begun again. Raises InfrastructureError where MLflow is away.
    """
    found = []
    families: dict[str, list[str]] = {}
    shown = experiments(api)
    # A server takes the experiments of a search in one text.
    for first in range(0, len(shown), 100):
        for raw in _runs(api, shown[first : first + 100], "attributes.status = 'RUNNING'"):
            info, tags = raw["info"], _tags(raw)
            if not any(key.startswith("mmbert.") for key in tags):
                continue
            workflow = tags.get(_PARENT, info["run_id"])
            if workflow not in families:
                families[workflow] = _family(api, info["experiment_id"], workflow)
            uris = tuple(dict.fromkeys((*_uris(raw), *families[workflow])))
            started = float(info.get("start_time") or 0) / 1000
            found.append(RunningRun(info["run_id"], str(info.get("run_name") or ""), started, uris))
    return found


def experiments(api: Api) -> list[str]:
    """The ids of all experiments that the server shows this user, those in its bin among them."""
    found = pages(api, "experiments/search", {"view_type": "ALL"}, "experiments")
    return [str(one["experiment_id"]) for one in found]


def experiment_of(api: Api, run_id: str) -> str:
    """The id of a run's experiment, of one in MLflow's bin too; empty where the server knows no such run."""
    try:
        return str(patiently(lambda: get_run(api, run_id))["info"]["experiment_id"])
    except Refused as error:
        if error.code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return ""


def _family(api: Api, experiment: str, workflow: str) -> list[str]:
    """What a workflow's own run and its steps' runs name."""
    runs = [*_runs(api, [experiment], f"tags.`{_PARENT}` = '{workflow}'")]
    with contextlib.suppress(Refused):  # the workflow's own run was deleted for good
        runs.append(patiently(lambda: get_run(api, workflow)))
    return list(dict.fromkeys(uri for run in runs for uri in _uris(run)))


def _runs(api: Api, experiments: list[str], wanted: str) -> Iterator[Any]:
    return pages(api, "runs/search", {"experiment_ids": experiments, "filter": wanted}, "runs")


def _uris(raw: Any) -> Iterator[str]:
    tags = _tags(raw)
    yield from (tags[key] for key in _PLACES if tags.get(key))
    for item in raw.get("inputs", {}).get("dataset_inputs", []):
        with contextlib.suppress(ValueError, KeyError, TypeError):  # a data set that another program logged
            yield str(json.loads(item["dataset"]["source"])["uri"])


def _tags(raw: Any) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in raw["data"].get("tags", [])}
