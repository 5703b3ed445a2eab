"""The workflow `reevaluate` with real S3 and MLflow: what is done again, who becomes champion, what is told."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from components import launchers, planning
from components.contract import get_component
from components.local import LocalRunner, run_workflow
from components.runtime import run_component
from mmbert import artifacts, storage
from mmbert.errors import UserError
from mmbert.evaluation.results.store import history, record
from mmbert.tracking.api import Api
from mmbert.tracking.registry import CANDIDATE, CHAMPION, Registry, connect_registry
from tests.fixtures_stack import S3, MlflowServer
from tests.sentence_data import write_glue
from tests.small_run import OVERRIDES, own_text, run_here

NAME = "mmbert-reevaluated"
SETTINGS = (
    f"name={NAME}",
    f"release.model_name={NAME}",
    "evaluation.bits_per_byte_bytes_per_language=3000",
    "evaluation.bootstrap_samples=100",
    "evaluation.intent_languages=1",
    "evaluation.intent_sentences=20",
    "release.gate={}",
)


@dataclass
class Scene:
    """A store with held-out text and a tokenizer, and a registry."""

    root: str
    recipe_file: str
    documents: str
    tokenizer: str
    registry: Registry
    folder: Path

    def model(self, label: str, spread: float) -> str:
        """Register an untrained model; the larger the spread of its weights, the more bits it needs."""
        import torch

        from mmbert.model.config import config_from_recipe
        from mmbert.model.initialization import new_model
        from mmbert.release.hugging_face import export

        recipe = planning.read_recipe(self.recipe_file)
        config = config_from_recipe(recipe.model, recipe.phases.decay.rope_theta)
        weights = {name: value * spread for name, value in new_model(config, 1).state_dict().items()}
        out = self.folder / label
        tokenizer = artifacts.open_artifact(self.tokenizer).fetch_folder(out / "from", self.folder / "cache" / "files")
        with torch.no_grad():
            export(weights, config, tokenizer, 256, out / "hf", card="A model of a test.")
        documents = artifacts.open_artifact(self.documents)
        inputs = {"documents": [{"uri": documents.uri, "digest": documents.digest, "kind": "documents"}]}
        writer = artifacts.ArtifactWriter(f"{self.root}/model/{label}", "model", label, {}, inputs)
        writer.add_folder("", out / "hf")
        writer.outputs["label"] = label
        uri = writer.commit({"component": "convert", "task": "convert"}).uri
        digest = artifacts.open_artifact(uri).digest
        self.registry.register(
            name=NAME,
            source_uri=artifacts.open_artifact(uri).remote_folder(""),
            content_digest=digest,
            run_id=None,
            tags={"mmbert.uri": uri},
            description=label,
            alias=CANDIDATE,
        )
        return uri

    def run(self, name: str, *overrides: str, **arguments: str) -> LocalRunner:
        return run_workflow("reevaluate", self.recipe_file, list(overrides), self.root, name, **arguments)

    def champion(self) -> str:
        found = self.registry.by_alias(NAME, CHAMPION)
        return found.version if found else ""


def alerts(runner: LocalRunner) -> dict[str, list[str]]:
    found: dict[str, list[str]] = artifacts.open_artifact(uri(runner, "trend")).read_json("alerts.json")
    return found


def uri(runner: LocalRunner, task: str) -> str:
    return next(step.uri for name, step in runner.steps if name == task)


def scores(runner: LocalRunner) -> list[tuple[str, bool]]:
    return [(step.uri, step.reused) for name, step in runner.steps if name == "evaluate"]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, s3_server: S3, mlflow_server: MlflowServer) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("reevaluation")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environment.items():
            patch.setenv(name, value)
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
        patch.setenv("MMBERT_CACHE", str(folder / "cache"))
        storage.s3_client.cache_clear()
        root = f"{s3_server.make_bucket('reevaluation')}/artifacts"

        def run(component: str, **arguments: object) -> str:
            return run_component(get_component(component), arguments, root).uri

        recipe = run("recipe", preset="tiny", overrides=[*OVERRIDES, own_text(folder), *SETTINGS])
        documents = run("curate", recipe=recipe, group="0")
        tokenizer = run("tokenizer", recipe=recipe, documents=[documents])
        recipe_file = artifacts.open_artifact(recipe).remote("recipe.yaml")
        patch.setitem(launchers.LAUNCHERS, "here", run_here)
        patch.setenv("MMBERT_LAUNCHER", "here")
        registry = connect_registry()
        assert registry is not None
        yield Scene(root, recipe_file, documents, tokenizer, registry, folder)
    storage.s3_client.cache_clear()


@pytest.fixture(scope="module")
def first(scene: Scene) -> LocalRunner:
    scene.model("good", 1.0)
    return scene.run("first")


def test_the_first_candidate_becomes_champion_through_the_gate(scene: Scene, first: LocalRunner) -> None:
    assert scene.champion() == "1"
    assert scene.registry.version(NAME, "1").tags["mmbert.gate"] == "passed"
    assert alerts(first) == {"alerts": [], "new": []}


def test_the_trend_page_is_in_mlflow_and_holds_what_the_results_store_does(
    scene: Scene, first: LocalRunner, mlflow_server: MlflowServer
) -> None:
    api = Api(mlflow_server.uri)
    experiment = api.get("experiments/get-by-name", {"experiment_name": f"mmbert/{NAME}"})["experiment"]
    wanted = "tags.`mmbert.role` = 'workflow' and tags.`mmbert.workflow_run` = 'first'"
    (run,) = api.call("runs/search", {"experiment_ids": [experiment["experiment_id"]], "filter": wanted})["runs"]
    assert run["info"]["status"] == "FINISHED"
    listed = api.get("artifacts/list", {"run_id": run["info"]["run_id"], "path": "trend"})["files"]
    assert [file["path"] for file in listed] == ["trend/trend.html"]
    page = artifacts.open_artifact(uri(first, "trend")).read("trend.html").decode()
    (card,) = history(scene.root)
    overall = next(score for score in card.scores if score.language is None)
    assert f"{overall.value:.3f}" in page
    assert "version 1" in page


def test_what_did_not_change_is_found_done(scene: Scene, first: LocalRunner) -> None:
    again = scene.run("again")
    assert scores(again) == [(place, True) for place, _ in scores(first)]
    assert uri(again, "trend") != uri(first, "trend")
    assert len(history(scene.root)) == 1


def test_a_worse_candidate_is_refused_and_told_once(scene: Scene, first: LocalRunner) -> None:
    scene.model("bad", 40.0)
    refused = scene.run("refused")
    assert [reused for _, reused in scores(refused)] == [True, False]
    assert scene.champion() == "1"
    assert scene.registry.version(NAME, "2").tags["mmbert.gate"] == "refused"
    told = alerts(refused)["new"]
    assert any("the gate refused version 2" in line for line in told)
    assert any("version 2 (candidate), against the champion" in line and "bits per byte" in line for line in told)
    later = scene.run("later")
    assert alerts(later) == {"alerts": told, "new": []}


def test_a_drop_since_the_evaluation_before_is_told(scene: Scene, first: LocalRunner) -> None:
    (card,) = history(scene.root, scene_digest(scene, "1"))
    better = [replace(s, value=s.value / 2, low=s.low / 2, high=s.high / 2, data_revision="old") for s in card.scores]
    record(scene.root, replace(card, scores=tuple(better), when="2026-01-05T03:00:00+00:00"))
    told = alerts(scene.run("dropped"))["new"]
    assert any(line.startswith("version 1 (champion), against its evaluation before: demo") for line in told)
    assert any("data revision: old / -" in line for line in told)


def test_a_model_named_by_hand_is_evaluated_and_not_promoted(scene: Scene, first: LocalRunner) -> None:
    scene.model("third", 1.05)
    by_hand = scene.run("by-hand", model="3")
    assert len(scores(by_hand)) == 2
    assert scene.champion() == "1"
    assert "mmbert.gate" not in scene.registry.version(NAME, "3").tags
    with pytest.raises(UserError, match="no version 9 of the registered model"):
        scene.run("wrong", model="9")


def test_two_at_once_do_no_harm(scene: Scene, first: LocalRunner) -> None:
    scene.model("fourth", 0.9)
    command = [sys.executable, "-m", "components.cli", "workflow", "reevaluate", "--preset", scene.recipe_file]
    command += ["--root", scene.root]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMBERT_LAUNCHER", "process")
        patch.setenv("MMBERT_COMMAND", str(Path(sys.executable).with_name("mmbert")))
        running = [
            subprocess.Popen(
                [*command, "--run-name", name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            for name in ("left", "right")
        ]
    printed = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], printed
    assert scene.champion() == "4"
    kept = history(scene.root, scene_digest(scene, "4"))
    assert len(kept) == 1, [card.when for card in kept]


def test_the_recipes_suites_count_too_and_only_what_changed_is_done_again(
    scene: Scene, first: LocalRunner, s3_server: S3
) -> None:
    bucket = s3_server.make_bucket("mirror")

    def mirror(tested: int) -> None:
        folder = scene.folder / f"mirror-{tested}"
        write_glue(folder, ("rte", "mnli"), train=16, tested=tested)
        for path in storage.list_files(str(folder)):
            storage.upload(storage.join(bucket, path), folder / path)

    settings = "{epochs: 1, learning_rates: [1e-3], max_length: 24, start_epochs: 0}"
    glue = f"evaluation.suites.glue={{tasks: [rte], seeds: 1, settings: {settings}}}"
    asked = (glue, f"evaluation.data_root={bucket}")
    mirror(8)
    scene.model("fifth", 0.9001)
    found = scene.run("suites", *asked, "release.gate={minimum: {glue/rte: 1.0}}")
    assert len(scores(found)) == 4
    outcome = artifacts.open_artifact(uri(found, "promote")).read_json("promotion.json")
    assert outcome["outcome"] == "refused"
    assert [finding["name"] for finding in outcome["findings"] if finding["refuses"]] == ["glue/rte"]
    tags = scene.registry.by_alias(NAME, CANDIDATE).tags  # type: ignore[union-attr]
    assert {tags["mmbert.scores.demo"], tags["mmbert.scores.glue"]} < {place for place, _ in scores(found)}
    assert "glue" in artifacts.open_artifact(uri(found, "trend")).read("trend.html").decode()

    mirror(12)
    changed = scene.run("suites-again", *asked)
    suites = [artifacts.open_artifact(place).read_json("scores.json")["suite"] for place, _ in scores(changed)]
    assert dict(zip(suites, [reused for _, reused in scores(changed)], strict=True)) == {"demo": True, "glue": False}


def test_an_empty_registry_is_said_so(scene: Scene) -> None:
    with pytest.raises(UserError, match="neither a champion nor a candidate of 'nothing-there'"):
        scene.run("empty", "release.model_name=nothing-there")


def scene_digest(scene: Scene, version: str) -> str:
    return scene.registry.version(NAME, version).digest
