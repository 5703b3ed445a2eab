"""Finished runs of a component, in every recipe's experiment, as MLflow keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmbert.errors import UserError
from mmbert.tracking.api import connected, pages


@dataclass(frozen=True)
class FinishedRun:
    """`metrics` are the last values of each."""

    run_id: str
    metrics: Mapping[str, float]
    params: Mapping[str, str]
    tags: Mapping[str, str]


def finished_runs(component: str) -> list[FinishedRun]:
    """The newest first. Raises UserError where MLFLOW_TRACKING_URI names no server, InfrastructureError where it does
    not answer."""
    api = connected()
    if api is None:
        raise UserError(
            "MLFLOW_TRACKING_URI is not set, so there are no measured runs to read; set it to the server's address "
            '(eval "$(make -s env)" does for the local stack)'
        )
    experiments = [
        str(found["experiment_id"])
        for found in pages(api, "experiments/search", {"filter": "name LIKE 'mmbert/%'"}, "experiments")
    ]
    if not experiments:
        return []
    body = {
        "experiment_ids": experiments,
        "filter": f"attributes.status = 'FINISHED' and tags.`mmbert.component` = '{component}'",
        "order_by": ["attributes.start_time DESC"],
    }
    return [_parsed(raw) for raw in pages(api, "runs/search", body, "runs")]


def _parsed(raw: Any) -> FinishedRun:
    data = raw["data"]
    return FinishedRun(
        run_id=raw["info"]["run_id"],
        metrics={metric["key"]: float(metric["value"]) for metric in data.get("metrics", [])},
        params={param["key"]: param["value"] for param in data.get("params", [])},
        tags={tag["key"]: tag["value"] for tag in data.get("tags", [])},
    )
