"""What a manifest tells of an artifact's making, in plain values for a terminal, a page or a program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mmbert.artifacts import Artifact, identifies
from mmbert.pages.links import airflow_link, mlflow_link
from mmbert.tables import now

DIGITS = 12
NOT_DIGESTED = "not digested"


@dataclass(frozen=True)
class Making:
    """Who made an artifact, when and with what. Texts are empty, and numbers None, where the manifest does not tell.

    `identified`: its content digest tells it from others of its kind.
    """

    uri: str
    kind: str
    label: str
    content_digest: str
    fingerprint: str
    component: str
    component_version: int | None
    task: str
    package_version: str
    commit: str
    image: str
    host: str
    machine: str
    threads: str
    finished: str
    seconds: float | None
    workflow_run: str
    mlflow_run_id: str
    mlflow_url: str
    airflow: Mapping[str, Any]
    airflow_url: str
    identified: bool

    @property
    def digits(self) -> str:
        """Its content digest, short, or that it has none of its own."""
        return short_digest(self.kind, self.content_digest) or NOT_DIGESTED

    @property
    def title(self) -> str:
        return f"{self.kind}: {self.label}" if self.label and self.label != self.kind else self.kind

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def making(artifact: Artifact) -> Making:
    manifest = artifact.manifest
    told = manifest.producer
    run_id = str(told.get("mlflow_run_id") or "")
    airflow = told.get("airflow") or {}
    version, seconds, finished = (told.get(key) for key in ("component_version", "seconds", "finished"))
    return Making(
        uri=artifact.uri,
        kind=manifest.kind,
        label=label(artifact),
        content_digest=artifact.digest,
        fingerprint=manifest.fingerprint,
        component=str(told.get("component", "")),
        component_version=int(version) if version is not None else None,
        task=str(told.get("task", "")),
        package_version=str(told.get("package_version", "")),
        commit=str(told.get("commit", "")),
        image=str(told.get("image", "")),
        host=str(told.get("host", "")),
        machine=str(told.get("machine", "")),
        threads=str(told.get("threads", "")),
        finished=now(float(finished)) if finished else "",
        seconds=float(seconds) if seconds is not None else None,
        workflow_run=str(told.get("workflow_run", "")),
        mlflow_run_id=run_id,
        mlflow_url=mlflow_link(f"runs/{run_id}") if run_id else "",
        airflow=airflow,
        airflow_url=airflow_link(airflow),
        identified=artifact.identified,
    )


def short_digest(kind: str, digest: str) -> str:
    """A dozen digits; none of a digest that says the kind alone."""
    return digest[:DIGITS] if identifies(kind, digest) else ""


def label(artifact: Artifact) -> str:
    """What a person calls it: its task, and which of the task's instances (`train_decay: decay-all`)."""
    task, own = str(artifact.manifest.producer.get("task", "")), artifact.outputs.get("label")
    if own is None or not task:
        return task or str(own or "")
    return task if task.endswith(str(own)) else f"{task}: {own}"
