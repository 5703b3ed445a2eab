"""Pieces of work and profiles for tests of the launcher: nothing of them is in a store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from components import launchers
from components.contract import get_component
from components.planning import Plan
from tests.fixtures_stack import ROOT

DIGEST = "sha256:" + "0123456789abcdef" * 4
PLACE = "s3://bucket/artifacts"
RUNTIME = ROOT / "infra" / "kubernetes" / "base" / "training-runtime.yaml"
URI = f"{PLACE}/any/0123456789abcdef"

PROFILE = """
threads: {small: 1, data: 2, train: 3, train.decay: 2, eval: 1}
processes: {train: 2}
memory: {train: 4, small: 2.5}
kubernetes:
  namespace: mmbert
  service_account: mmbert-component
  training: TRAINING
  pending_minutes: PENDING
  classes:
    small: {scratch: 1, grace_seconds: 1, queue: "QUEUE"}
    data: {scratch: 1}
    train: {nodes: 2, scratch: 1, grace_seconds: 1, restarts: 1}
    train.decay: {nodes: 1}
    eval: {scratch: 1}
"""


def use_profile(
    patch: pytest.MonkeyPatch,
    folder: Path,
    text: str = PROFILE,
    training: str = "job",
    pending: float = 10,
    queue: str = "",
) -> Path:
    """Set MMBERT_PROFILE and the images for this test."""
    path = folder / "own.yaml"
    path.write_text(
        text.replace("TRAINING", training).replace("PENDING", str(pending)).replace("QUEUE", queue), "utf-8"
    )
    patch.setenv("MMBERT_PROFILE", str(path))
    for target in ("DATA", "TRAIN", "EVAL"):
        patch.setenv(f"MMBERT_IMAGE_{target}", f"registry.example/mmbert-{target.lower()}@{DIGEST}")
    for name in ("AWS_ENDPOINT_URL", "S3_ENDPOINT_URL", "MMBERT_WORKFLOW_RUN", "MMBERT_DEBUG", "MMBERT_USER"):
        patch.delenv(name, raising=False)
    return path


def arguments_of(name: str) -> dict[str, Any]:
    """Arguments for a component that fit, of inputs that nobody looks for."""
    made: dict[str, Any] = {}
    for parameter in get_component(name).parameters:
        value = "tiny" if parameter.name in ("recipe", "preset") else URI
        if parameter.choices:
            value = parameter.choices[0]
        elif not parameter.kinds and not parameter.is_source and parameter.default is not None:
            value = parameter.default
        made[parameter.name] = ([] if parameter.name == "overrides" else [URI]) if parameter.is_list else value
    return made


def plan_of(name: str, **arguments: Any) -> Plan:
    item = get_component(name)
    fingerprint = "ab" * 16
    return Plan(
        item, {**arguments_of(name), **arguments}, {}, {}, fingerprint, f"{PLACE}/{item.produces}/{fingerprint}"
    )


def words(plan: Plan) -> list[str]:
    return launchers.command_line(plan.component, plan.arguments, PLACE, plan.component.name)
