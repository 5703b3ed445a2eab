"""Finding the runs to write: experiment, workflow run, component; the registry is in registry.py."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmbert.errors import InfrastructureError, UserError
from mmbert.pages import links
from mmbert.places import cache_folder
from mmbert.tracking import delivery
from mmbert.tracking.api import Api, Refused, connected, patiently
from mmbert.tracking.component_run import ComponentRun, Status
from mmbert.tracking.election import Run, find_or_create, search
from mmbert.tracking.registry import Registry
from mmbert.tracking.spool import abandoned, parse

_PARENT = "mlflow.parentRunId"
REUSED_FROM, _REUSED_URI, _NOTE = "mmbert.reused_from", "mmbert.reused_uri", "mlflow.note.content"
_AIRFLOW_TASK = "mmbert.airflow_task"


def connect(experiment: str, workflow_run: str | None = None, airflow_task: Mapping[str, Any] | None = None) -> Tracker:
    """The tracker that MLFLOW_TRACKING_URI names; one that does nothing where it is unset.

    `experiment` is `mmbert/<recipe>`; `workflow_run` (else MMBERT_WORKFLOW_RUN) is the id of the workflow's run;
    runs link `airflow_task` (mmbert.pages.links), for which they are made.
    Raises UserError for an address that is none, InfrastructureError where no healthy server answers within 13 seconds.
    """
    api = connected()
    if api is None:
        return Tracker(None, experiment, None)
    return Tracker(api, experiment, workflow_run or os.environ.get("MMBERT_WORKFLOW_RUN") or None, airflow_task)


class Tracker:
    """The runs of one workflow run. Without a server (`active` is false) its methods do nothing.

    Without a workflow run (a component run by hand) a component's run stands by itself. All methods raise
    InfrastructureError where MLflow stays away for some seconds. `folder` is where runs keep what is not sent yet; its
    default is in MMBERT_CACHE, where a retry on the same machine finds it.
    """

    def __init__(
        self,
        api: Api | None,
        experiment: str,
        workflow_run: str | None,
        airflow_task: Mapping[str, Any] | None = None,
    ) -> None:
        self._api = api
        self._airflow_task = airflow_task or {}
        self.experiment = experiment
        self.workflow_run = workflow_run

    @property
    def active(self) -> bool:
        return self._api is not None

    @property
    def registry(self) -> Registry | None:
        """The model registry; None without a server."""
        return Registry(self._api) if self._api else None

    def component_run(
        self, *, task: str, component: str, fingerprint: str, tags: Mapping[str, str], folder: Path | None = None
    ) -> ComponentRun:
        """The child run of this task and fingerprint, found or made, and running. A retry gets the same one.

        `tags`: `mmbert.commit`, `mmbert.image` and what else is known of it.
        """
        if self._api is None:
            return ComponentRun()
        tags = {**tags, "mmbert.component": component, "mlflow.source.name": component}
        if commit := tags.get("mmbert.commit"):
            tags["mlflow.source.git.commit"] = commit
        tags |= self._airflow()
        return self._open(self._api, self._child(self._api, task, fingerprint, tags), tags, folder)

    def open_workflow(self, folder: Path | None = None) -> ComponentRun:
        """The workflow's own run, to log its recipe and report; `close` leaves it running, `finish` ends it.

        Raises UserError where MMBERT_WORKFLOW_RUN is not set.
        """
        if self._api is None:
            return ComponentRun()
        return self._open(self._api, self._workflow(self._api), {}, folder)

    def finish_workflow(self, status: Status) -> None:
        """End the workflow's own run. Raises UserError where MMBERT_WORKFLOW_RUN is not set."""
        if self._api is not None:
            _update(self._api, self._workflow(self._api), status)

    def finished(self, tasks: Sequence[str]) -> bool:
        """Whether each of these tasks of the workflow's run was done or found done."""
        if self._api is None or self.workflow_run is None:
            return False
        identity = {"mmbert.workflow_run": self.workflow_run, "mmbert.role": "component"}
        experiment_id = self._experiment_id(self._api)
        return all(
            any(run.status == "FINISHED" for run in search(self._api, experiment_id, {**identity, "mmbert.task": task}))
            for task in tasks
        )

    def link_reused(self, task: str, fingerprint: str, producer_run_id: str, uri: str) -> str | None:
        """Show a task whose artifact was found done: a finished child run that points to the run that made it.

        Returns the run's id. Calling it again changes nothing; where this workflow's own run made it, it only ends it.
        `producer_run_id` is empty where it was made without MLflow.
        """
        if self._api is None:
            return None
        api = self._api
        made_by = (
            f"[the run that made it](#/runs/{producer_run_id})" if producer_run_id else "no run: MLflow was not used"
        )
        tags = {
            REUSED_FROM: producer_run_id or "unknown",
            _REUSED_URI: uri,
        } | self._airflow(f"Nothing to do: `{uri}` was there already. Its metrics are in {made_by}.")
        run = self._child(api, task, fingerprint, tags)
        if run.run_id != producer_run_id and REUSED_FROM not in run.tags:
            patiently(lambda: delivery.deliver(api, [{"run": run.run_id, "tags": tags}]))
        if any(abandoned(cache_folder() / "mlflow", run.run_id)):
            # An attempt that was killed once its artifact was complete has left the end of its run here.
            self._open(api, run, {}, None).finish("FINISHED")
        elif run.status != "FINISHED":
            _update(api, run, "FINISHED")
        return run.run_id

    def run_of(self, airflow_task: Mapping[str, Any]) -> Run | None:
        """The run of a task of Airflow's, of its last attempt's work; None where there is none yet."""
        if self._api is None:
            return None
        experiment_id = self._experiment(self._api)
        if experiment_id is None:
            return None
        found = search(self._api, experiment_id, {_AIRFLOW_TASK: links.airflow_name(airflow_task)})
        return found[0] if found else None

    def replay_spool(self, source: Path | bytes) -> int:
        """Send what a finished run left unsent (its `mlflow-spool.jsonl`) and return the number of operations.

        Sending it twice is harmless.
        """
        if self._api is None:
            return 0
        api = self._api
        operations = parse(source if isinstance(source, bytes) else source.read_bytes())
        return patiently(lambda: delivery.replay(api, operations))

    def _experiment_id(self, api: Api) -> str:
        """The experiment, made if it is missing. Its name is unique on the server, so racers meet in one."""
        found = self._experiment(api)
        if found is None:
            _ignoring("RESOURCE_ALREADY_EXISTS", lambda: api.call("experiments/create", {"name": self.experiment}))
            found = self._experiment(api)
        if found is None:
            raise InfrastructureError(f"MLflow made the experiment '{self.experiment}' and does not find it")
        return found

    def _experiment(self, api: Api) -> str | None:
        """The experiment, where it exists. Raises UserError where it was deleted."""
        query = {"experiment_name": self.experiment}
        found = _ignoring("RESOURCE_DOES_NOT_EXIST", lambda: api.get("experiments/get-by-name", query))
        if found is None:
            return None
        experiment = found["experiment"]
        if experiment["lifecycle_stage"] != "active":
            raise UserError(
                f"the MLflow experiment '{self.experiment}' was deleted; restore it "
                f"(mlflow experiments restore --experiment-id {experiment['experiment_id']}) or rename the recipe"
            )
        return str(experiment["experiment_id"])

    def _workflow(self, api: Api, experiment_id: str | None = None) -> Run:
        if self.workflow_run is None:
            raise UserError("MMBERT_WORKFLOW_RUN is not set, so there is no workflow run in MLflow")
        identity = {"mmbert.workflow_run": self.workflow_run, "mmbert.role": "workflow"}
        place = links.airflow_run_link(self._airflow_task)
        tags = {_NOTE: links.markdown({"The DAG run in Airflow": place})} if place else {}
        return find_or_create(api, experiment_id or self._experiment_id(api), self.workflow_run, identity, tags)

    def _airflow(self, note: str = "") -> dict[str, str]:
        """Tags of a component's run: the task that it is of, and a description, `note` first, that links it."""
        named = {_AIRFLOW_TASK: links.airflow_name(self._airflow_task)} if self._airflow_task else {}
        place = links.airflow_link(self._airflow_task)
        told = "\n\n".join(part for part in (note, links.markdown({"The task in Airflow": place})) if part)
        return {**named, **({_NOTE: told} if told else {})}

    def _child(self, api: Api, task: str, fingerprint: str, tags: Mapping[str, str]) -> Run:
        experiment_id = self._experiment_id(api)
        identity = {"mmbert.task": task, "mmbert.fingerprint": fingerprint}
        if self.workflow_run is None:
            return find_or_create(api, experiment_id, task, {**identity, "mmbert.role": "component alone"}, tags)
        parent = self._workflow(api, experiment_id)
        _set_running(api, parent)  # a workflow that had ended goes on, cleared or tried again
        identity[_PARENT] = parent.run_id
        tags = {**tags, "mmbert.workflow_run": self.workflow_run, "mmbert.role": "component"}
        return find_or_create(api, experiment_id, task, identity, tags)

    def _open(self, api: Api, run: Run, tags: Mapping[str, str], folder: Path | None) -> ComponentRun:
        _set_running(api, run)
        if REUSED_FROM in run.tags:
            # It was found done here before, and its artifact has been removed since.
            for key in (_NOTE, _REUSED_URI, REUSED_FROM):
                _ignoring("RESOURCE_DOES_NOT_EXIST", functools.partial(_delete_tag, api, run.run_id, key))
        opened = ComponentRun(api, run, folder or cache_folder() / "mlflow")
        if changed := {key: value for key, value in tags.items() if run.tags.get(key) != value}:
            opened.set_tags(changed)
        return opened


def _set_running(api: Api, run: Run) -> None:
    if run.status != "RUNNING":
        patiently(lambda: api.call("runs/update", {"run_id": run.run_id, "status": "RUNNING"}))


def _update(api: Api, run: Run, status: Status) -> None:
    end = {"run_id": run.run_id, "status": status, "end_time": int(time.time() * 1000)}
    patiently(lambda: api.call("runs/update", end))


def _delete_tag(api: Api, run_id: str, key: str) -> Any:
    return api.call("runs/delete-tag", {"run_id": run_id, "key": key})


def _ignoring(code: str, action: Callable[[], Any]) -> Any:
    """`action()`, or None where MLflow refuses it with this code."""
    try:
        return patiently(action)
    except Refused as error:
        if error.code != code:
            raise
        return None
