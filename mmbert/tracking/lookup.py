"""What MLflow knows of runs that were made: the artifact of a run, the artifacts of a workflow run. Writes nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from mmbert.tracking.api import Api, Refused, patiently
from mmbert.tracking.election import Run, parse_run

WORKFLOW_RUN = "mmbert.workflow_run"
_URIS = ("mmbert.uri", "mmbert.reused_uri")
_PAGE = 1000


class Lookup:
    """All methods raise InfrastructureError where MLflow stays away for some seconds."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.uri = api.uri

    def run(self, run_id: str) -> Run | None:
        """The run of that id; None where there is none."""
        try:
            return parse_run(patiently(lambda: self._api.get("runs/get", {"run_id": run_id}))["run"])
        except Refused:
            return None

    def uris_of_workflow(self, workflow_run: str) -> list[str]:
        """The artifacts that a workflow run made or found done, each once."""
        quoted = workflow_run.replace("'", "''")
        wanted = f"tags.`{WORKFLOW_RUN}` = '{quoted}' and tags.`mmbert.role` = 'component'"
        runs = self._search({"experiment_ids": self._experiments(), "filter": wanted, "max_results": _PAGE})
        return list(dict.fromkeys(uri for run in runs for uri in uris_of(run)))

    def _experiments(self) -> list[str]:
        body = {"max_results": _PAGE, "filter": "name LIKE 'mmbert/%'"}
        found = patiently(lambda: self._api.call("experiments/search", body)).get("experiments", [])
        return [str(item["experiment_id"]) for item in found]

    def _search(self, body: dict[str, Any]) -> Iterable[Run]:
        if not body["experiment_ids"]:
            return
        page = ""
        while True:
            asked = {**body, **({"page_token": page} if page else {})}
            answer = patiently(lambda asked=asked: self._api.call("runs/search", asked))  # type: ignore[misc]
            yield from (parse_run(raw) for raw in answer.get("runs", []))
            page = answer.get("next_page_token", "")
            if not page:
                return


def uris_of(run: Run) -> list[str]:
    """The artifact that a component's run made, or found done."""
    return [run.tags[key] for key in _URIS if key in run.tags][:1]


def connect_lookup() -> Lookup | None:
    """Of the server at MLFLOW_TRACKING_URI; None where that is unset. Raises as `tracking.connect`."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return None
    api = Api(uri)
    api.check()
    return Lookup(api)
