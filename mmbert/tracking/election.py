"""One MLflow run for one identity, however many processes ask for it at once.

MLflow has no unique key on runs, so those who find none elect one by Lamport's bakery algorithm ("A New Solution of
Dijkstra's Concurrent Programming Problem", 1974): make a run (now seen by all), take a ticket above every ticket seen,
wait until each run that is seen has its ticket; the lowest wins and the others are deleted by their makers.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmbert.tracking.api import Api, Refused, patiently, quoted

TICKET = "mmbert.ticket"
_CHOOSING_SECONDS = 10.0
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Run:
    """What a server said of a run. `last_steps`: the highest step it holds of each metric."""

    run_id: str
    experiment_id: str
    status: str
    artifact_uri: str
    tags: Mapping[str, str]
    last_steps: Mapping[str, int]


def parse_run(raw: Any) -> Run:
    info, data = raw["info"], raw["data"]
    return Run(
        run_id=info["run_id"],
        experiment_id=info["experiment_id"],
        status=info["status"],
        artifact_uri=info["artifact_uri"],
        tags={t["key"]: t["value"] for t in data.get("tags", [])},
        last_steps={m["key"]: int(m.get("step", 0)) for m in data.get("metrics", [])},
    )


def find_or_create(
    api: Api, experiment_id: str, name: str, identity: Mapping[str, str], tags: Mapping[str, str]
) -> Run:
    """The one run that carries the tags `identity`; made with `tags` as well if there is none. Raises Unavailable.

    Racers end with the same run unless one of them stalls for more than 10 s between two of its requests here; even
    then the one that stalled joins the others.
    """
    while True:
        found = _settled(api, experiment_id, identity)
        if found is not None:
            return found
        made = _create(api, experiment_id, name, {**identity, **tags})
        tickets = [int(r.tags[TICKET]) for r in search(api, experiment_id, identity) if TICKET in r.tags]
        ticket = {"run_id": made, "key": TICKET, "value": str(max(tickets, default=0) + 1)}
        # Refused: others took this run for one whose maker had died, and deleted it.
        with contextlib.suppress(Refused):
            patiently(lambda: api.call("runs/set-tag", ticket))  # noqa: B023 - called at once
        winner = _settled(api, experiment_id, identity)
        if winner is None or winner.run_id != made:
            _delete(api, made)
        if winner is not None:
            return winner


def search(api: Api, experiment_id: str, identity: Mapping[str, str]) -> list[Run]:
    """All active runs of an experiment that carry these tags."""
    wanted = " and ".join(f"tags.`{key}` = {quoted(value)}" for key, value in identity.items())
    body = {"experiment_ids": [experiment_id], "filter": wanted, "max_results": 100}
    return [parse_run(raw) for raw in patiently(lambda: api.call("runs/search", body)).get("runs", [])]


def _settled(api: Api, experiment_id: str, identity: Mapping[str, str]) -> Run | None:
    """The elected run, once nobody is still choosing a ticket; runs whose makers died choosing are deleted."""
    deadline = time.monotonic() + _CHOOSING_SECONDS
    while True:
        runs = search(api, experiment_id, identity)
        choosing = [r for r in runs if TICKET not in r.tags]
        if not choosing:
            return min(runs, key=lambda r: (int(r.tags[TICKET]), r.run_id), default=None)
        if time.monotonic() > deadline:
            for run in choosing:
                _delete(api, run.run_id)
        time.sleep(_POLL_SECONDS)


def _create(api: Api, experiment_id: str, name: str, tags: Mapping[str, str]) -> str:
    body = {
        "experiment_id": experiment_id,
        "run_name": name,
        "start_time": int(time.time() * 1000),
        "tags": [{"key": key, "value": value} for key, value in tags.items()],
    }
    return str(patiently(lambda: api.call("runs/create", body))["run"]["info"]["run_id"])


def _delete(api: Api, run_id: str) -> None:
    # Refused: it was deleted by another at the same moment.
    with contextlib.suppress(Refused):
        patiently(lambda: api.call("runs/delete", {"run_id": run_id}))
