"""`mmbert reproduce`: recorded work done again by the launcher `process`, without MLflow hearing of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

from components import planning, reproduction
from components.cli import cli
from components.contract import get_component
from components.reproduction import DifferentError
from components.runtime import run_component
from components.steps import Step
from mmbert import storage
from mmbert.artifacts import MANIFEST, Artifact, ArtifactWriter, open_artifact
from mmbert.errors import UserError
from mmbert.recipe import load_recipe, recipe_to_yaml
from mmbert.sealed import unseal
from tests.fixtures_stack import MlflowServer
from tests.lineage_stores import put

RUN = "again and again"
LANGUAGES = "phases.pretrain.languages=[deu_Latn, eng_Latn]"


@dataclass
class Made:
    root: Path
    recipe: Artifact
    shards: Artifact
    mixture: Artifact

    def copy(self, folder: Path) -> Made:
        """The same store elsewhere, to be spoilt."""
        shutil.copytree(self.root, folder)
        moved = [
            open_artifact(a.uri.replace(str(self.root), str(folder))) for a in (self.recipe, self.shards, self.mixture)
        ]
        return Made(folder, *moved)


@pytest.fixture(scope="module")
def made(mlflow_server: MlflowServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("reproduce")
    root = folder / "root"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
        patch.setenv("MMBERT_CACHE", str(folder / "cache"))
        patch.setenv("MMBERT_WORKFLOW_RUN", RUN)
        recipe = _run("recipe", root, preset="tiny", overrides=[LANGUAGES])
        counts = {"own": {language: {"tokens": n} for language, n in (("deu_Latn", 10_000), ("eng_Latn", 90_000))}}
        shards = put(str(root), "shards", "shards", files={"counts.json": counts})
        mixture = _run("mixture", root, recipe=recipe.uri, shards=[shards.uri], phase="pretrain")
        patch.delenv("MMBERT_WORKFLOW_RUN")
        yield Made(root, recipe, shards, mixture)


def _run(component: str, root: Path, **arguments: object) -> Artifact:
    return open_artifact(run_component(get_component(component), arguments, str(root)).uri)


def reproduced(root: Path, *arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(cli, ["reproduce", *arguments, "--root", str(root), "--json"], catch_exceptions=False)
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def fails(root: Path, *arguments: str) -> tuple[Exception, str]:
    result = CliRunner().invoke(cli, ["reproduce", *arguments, "--root", str(root)])
    assert isinstance(result.exception, Exception)
    return result.exception, result.stdout


def altered(artifact: Artifact, **producer: Any) -> dict[str, Any]:
    """Rewrite its manifest, outside of the content digest."""
    path = Path(artifact.uri, MANIFEST)
    manifest: dict[str, Any] = unseal(path.read_bytes())
    manifest["producer"] = {k: v for k, v in {**manifest["producer"], **producer}.items() if v is not None}
    path.write_text(json.dumps(manifest), "utf-8")
    return manifest


def test_a_workflow_run_is_done_again_to_the_byte_and_mlflow_does_not_change(
    made: Made, mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    client = MlflowClient(mlflow_server.uri)

    def runs() -> list[Any]:
        experiment = client.get_experiment_by_name(f"mmbert/{load_recipe('tiny').name}")
        return sorted(
            (r.info.run_id, r.info.status, r.info.end_time) for r in client.search_runs([experiment.experiment_id])
        )

    before = runs()
    release = put(
        str(made.root), "release", "register", {"shards": [made.shards]}, component="register", workflow_run=RUN
    )
    try:
        found = reproduced(made.root, RUN, "--into", str(tmp_path / "again"))
    finally:
        storage.delete_tree(release.uri)
    assert {step["kind"]: step["state"] for step in found["steps"]} == {
        "recipe": "same", "mixture": "same", "release": "not run",
    }  # fmt: skip
    for step in found["steps"]:
        if step["state"] == "same":
            assert step["found"] == step["recorded"]
            assert open_artifact(step["again"]).digest == step["recorded"]
            assert [file["state"] for file in step["files"]] == ["same"]
        else:
            assert "registry, which is left as it is" in step["reason"]
    assert not found["steps"][0]["differences"]
    assert runs() == before


def test_other_bytes_end_with_4_and_say_where_they_begin(made: Made, tmp_path: Path) -> None:
    spoilt = made.copy(tmp_path / "root")
    recorded = spoilt.mixture
    text = recorded.read("mixture.json")
    place = text.index(b"90") if b"90" in text else 10
    manifest = recorded.manifest
    writer = ArtifactWriter(recorded.uri, "mixture", manifest.fingerprint, manifest.parameters, manifest.inputs)
    writer.add_bytes("mixture.json", text[:place] + b"#" + text[place + 1 :])
    writer.add_bytes("removed.json", b"{}")
    writer.commit({**manifest.producer, "commit": "0" * 40, "threads": "7"})
    error, told = fails(spoilt.root, recorded.uri)
    assert isinstance(error, DifferentError)
    assert error.exit_code == 4
    assert f"different: mixture.json ({len(text):,} and {len(text):,} bytes, different from byte {place:,} on)" in told
    assert "missing: removed.json" in told
    assert "commit: " in told
    assert "recorded 000000000000" in told
    assert "recorded 7; sums are made in another order" in told


def test_manifests_without_a_recorded_call_are_reproduced_by_the_recipe_that_fits_their_fingerprint(
    made: Made, tmp_path: Path
) -> None:
    old = made.copy(tmp_path / "root")
    altered(old.mixture, arguments=None, recipe=None)
    _run("recipe", old.root, preset="tiny", overrides=["phases.pretrain.temperature=0.9"])
    (step,) = reproduced(old.root, old.mixture.uri)["steps"]
    assert (step["state"], step["found"]) == ("same", made.mixture.digest)


def test_what_cannot_be_made_again_ends_with_2_and_says_why(made: Made, tmp_path: Path) -> None:
    spoilt = made.copy(tmp_path / "root")
    storage.delete_tree(spoilt.shards.uri)
    # Its inputs are recorded in the store that it was copied from, which is there.
    manifest = altered(spoilt.mixture)
    manifest["inputs"]["shards"][0]["uri"] = "/gone/shards"
    Path(spoilt.mixture.uri, MANIFEST).write_text(json.dumps(manifest), "utf-8")
    error, told = fails(spoilt.root, spoilt.mixture.uri)
    assert isinstance(error, UserError)
    assert f"made from what is gone: shards {made.shards.digest[:12]} (/gone/shards)" in str(error)
    assert "1 not run" in told
    error, _ = fails(made.root, made.shards.uri)
    assert "no component made it" in str(error)
    error, _ = fails(made.root, made.mixture.uri, "--into", str(made.root))
    assert "what is recorded lies there" in str(error)
    error, _ = fails(made.root, made.mixture.uri, "--from", "checkpoint")
    assert "there are shards, recipe, mixture" in str(error)


def test_the_record_is_never_compared_with_itself(made: Made, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(made.root)
    error, _ = fails(made.root, made.mixture.uri, "--into", str(tmp_path / "link"))
    assert "what is recorded lies there" in str(error)
    copied = made.copy(tmp_path / "copy")
    error, told = fails(made.root, made.mixture.uri, "--into", str(copied.root))
    assert isinstance(error, UserError)
    assert "is the recorded artifact itself, or a copy of it" in told
    assert "1 not run" in told


def test_pages_are_made_again_and_not_compared(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = put(str(tmp_path / "root"), "data_report", "page", digested=False, component="data_report")
    again = put(str(tmp_path / "again"), "data_report", "page", digested=False, component="data_report")
    monkeypatch.setattr(reproduction, "recorded_call", lambda *_: (get_component("data_report"), {}))
    monkeypatch.setattr(planning, "plan", lambda item, *_: planning.Plan(item, {}, {}, {}, "", ""))
    monkeypatch.setattr(reproduction, "run_step", lambda *_, **__: Step(again.uri, "", False, {}))
    error, told = fails(tmp_path / "root", page.uri)
    assert isinstance(error, UserError)
    assert "nothing was compared" in str(error)
    assert "not compared  data_report" in told
    assert "none of its files is digested" in told
    assert page.digest[:12] not in told
    assert "\n1 not compared\n" in told


def test_where_no_step_was_run_it_ends_with_2_and_says_what_to_do(made: Made) -> None:
    release = put(str(made.root), "release", "alone", {"mixture": [made.mixture]}, component="register")
    try:
        error, told = fails(made.root, release.uri)
    finally:
        storage.delete_tree(release.uri)
    assert isinstance(error, UserError)
    assert "nothing was made again" in str(error)
    assert "--all" in str(error)
    assert "registry, which is left as it is" in told


def test_what_is_gone_afterwards_is_not_named(made: Made, tmp_path: Path) -> None:
    def told(*more: str) -> str:
        return CliRunner().invoke(cli, ["reproduce", made.mixture.uri, "--root", str(made.root), *more]).stderr

    assert '{"uri": ' not in told()
    assert '{"uri": ' in told("--into", str(tmp_path / "kept"))


def test_steps_before_a_bug_are_told(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = reproduction.reproduce

    def breaks(uri: str, *more: Any) -> reproduction.StepResult:
        if uri == made.mixture.uri:
            raise RuntimeError("a bug")
        return real(uri, *more)

    monkeypatch.setattr(reproduction, "reproduce", breaks)
    result = CliRunner().invoke(cli, ["reproduce", RUN, "--root", str(made.root), "--json"])
    assert str(result.exception) == "a bug"
    assert [step["kind"] for step in json.loads(result.stdout)["steps"]] == ["recipe"]


def test_a_recipe_file_that_is_gone_was_recorded_whole(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    file = tmp_path / "mine.yaml"
    file.write_text(recipe_to_yaml(load_recipe("tiny", [LANGUAGES, "phases.pretrain.temperature=0.6"])), "utf-8")
    mixture = _run("mixture", tmp_path / "root", recipe=str(file), shards=[made.shards.uri], phase="pretrain")
    file.unlink()
    (step,) = reproduced(tmp_path / "root", mixture.digest)["steps"]
    assert (step["state"], step["differences"]) == ("same", [])
