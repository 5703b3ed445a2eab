"""What a component says, in the store and in MLflow, that it reads: collections keep that while it runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from components import runtime
from components.contract import get_component
from components.planning import Plan
from mmbert import artifacts, ranks, storage, tracking


def test_inputs_and_recipe_are_told_before_the_work_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MMBERT_CACHE", str(tmp_path / "cache"))
    root = str(tmp_path / "store")
    recipe = runtime.run_component(get_component("recipe"), {"preset": "tiny", "overrides": []}, root).uri
    logged: list[str] = []
    monkeypatch.setattr(
        tracking.ComponentRun, "log_input", lambda self, name, digest, source_uri, context: logged.append(source_uri)
    )
    noted: list[str] = []
    uri = storage.join(root, "documents", "a" * 32)

    def reads(work: runtime.Work, **arguments: object) -> None:
        noted.extend(json.loads(storage.read_bytes(storage.join(uri, artifacts.WORK)))["inputs"])
        work.output.add_bytes("text", b"text")

    item = dataclasses.replace(get_component("tokenizer"), function=reads)
    entry = {"uri": "/store/documents/1", "digest": "d" * 64, "kind": "documents"}
    plan = Plan(item, {"recipe": recipe}, {}, {"documents": [entry]}, "a" * 32, uri)
    runtime._do(plan, "tokenizer", root, ranks.Alone())
    assert sorted(noted) == sorted(logged) == sorted([entry["uri"], recipe])
