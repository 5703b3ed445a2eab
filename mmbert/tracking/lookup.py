"""What MLflow knows of runs that were made: the artifact of a run, the artifacts of a workflow run. Writes nothing."""

from __future__ import annotations

from mmbert.tracking.api import Api, Refused, connected, pages, patiently, quoted
from mmbert.tracking.election import Run, parse_run

WORKFLOW_RUN = "mmbert.workflow_run"
_URIS = ("mmbert.uri", "mmbert.reused_uri")


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
        wanted = f"tags.`{WORKFLOW_RUN}` = {quoted(workflow_run)} and tags.`mmbert.role` = 'component'"
        query = {"filter": "name LIKE 'mmbert/%'"}
        found = [str(one["experiment_id"]) for one in pages(self._api, "experiments/search", query, "experiments")]
        uris: dict[str, None] = {}
        # A server takes the experiments of a search in one text.
        for first in range(0, len(found), 100):
            asked = {"experiment_ids": found[first : first + 100], "filter": wanted}
            for raw in pages(self._api, "runs/search", asked, "runs"):
                uris |= dict.fromkeys(uris_of(parse_run(raw)))
        return list(uris)


def uris_of(run: Run) -> list[str]:
    """The artifact that a component's run made, or found done."""
    return [run.tags[key] for key in _URIS if key in run.tags][:1]


def connect_lookup() -> Lookup | None:
    """Of the server at MLFLOW_TRACKING_URI; None where that is unset. Raises as `tracking.connect`."""
    api = connected()
    return Lookup(api) if api else None
