"""Suites that a recipe declares: pinned data, work that outlives a machine, scores that gate and registry know."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from components import planning
from components.contract import get_component
from components.runtime import Result, run_component
from mmbert import artifacts, storage
from mmbert.errors import InfrastructureError, UserError
from mmbert.evaluation.results.store import artifact_scorecard, history
from mmbert.evaluation.suites import data, glue, mirror
from mmbert.evaluation.suites import shared_work as shared_work_module
from mmbert.evaluation.suites.base import DataSet
from mmbert.evaluation.suites.registry import chosen_tasks, get_suite
from mmbert.evaluation.suites.settings import changed_tasks
from mmbert.evaluation.suites.shared_work import shared_work
from mmbert.evaluation.suites.states import in_use
from mmbert.evaluation.suites.subsets import check_subsets
from mmbert.model.config import config_from_recipe
from mmbert.model.initialization import new_model
from mmbert.recipe import load_recipe
from mmbert.recipe.pins import pin_revisions, unpinned
from mmbert.release.checkpoints import save_weights
from mmbert.training.canonical import WEIGHTS
from tests.fixtures_stack import S3
from tests.sentence_data import texts, write_glue
from tests.suite_data import tiny_model

GLUE = "nyu-mll/glue"
QUICK = "epochs: 1, learning_rates: [1e-3], max_length: 24"
RUN = f"evaluation.suites.glue={{tasks: [cola, sst2], seeds: 1, settings: {{{QUICK}, sst2: {{batch_size: 8}}}}}}"


class Place:
    """A store with a model, and a mirror that can change."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root, self.mirror = folder, str(folder / "root"), folder / "mirror"
        write_glue(self.mirror, ("cola", "sst2"), train=16, tested=8)
        made = tiny_model(folder / "hf", texts())
        writer = artifacts.ArtifactWriter(f"{self.root}/model/one", "model", "one", {}, {})
        writer.add_folder("", made.path)
        writer.outputs["label"] = "one"
        self.model = writer.commit({"component": "convert", "task": "convert"}).uri

    def recipe(self, *overrides: str) -> str:
        overrides = (RUN, f"evaluation.data_root={self.mirror}", "evaluation.bootstrap_samples=20", *overrides)
        return run_component(get_component("recipe"), {"preset": "tiny", "overrides": list(overrides)}, self.root).uri

    def evaluate(self, recipe: str, **arguments: Any) -> Result:
        given = {"recipe": recipe, "model": self.model, "suite": "glue", **arguments}
        return run_component(get_component("evaluate"), given, self.root)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("MMBERT_CACHE", str(tmp_path / "cache"))
    return Place(tmp_path)


def test_a_suite_is_scored_once_for_the_same_model_settings_and_data(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = place.recipe()
    assert artifacts.open_artifact(recipe).outputs["suites"] == ["demo", "glue"]
    first = place.evaluate(recipe)
    card = artifact_scorecard(artifacts.open_artifact(first.uri))
    assert (card.suite, card.model, card.model_digest) == ("glue", "one", artifacts.open_artifact(place.model).digest)
    assert {score.task for score in card.scores} == {"cola", "sst2"}
    assert {score.data_revision for score in card.scores} == {
        mirror.present_states(chosen_tasks(get_suite("glue"), ("cola",)), str(place.mirror), {})[GLUE]
    }
    assert [kept.suite for kept in history(place.root)] == ["glue"]
    assert place.evaluate(place.recipe()).reused
    assert place.evaluate(place.recipe("evaluation.retrieval_languages=7")).reused

    capsys.readouterr()
    changed = place.evaluate(place.recipe("evaluation.suites.glue.settings.sst2.batch_size=4"))
    assert not changed.reused
    assert "glue cola: found done" in (said := capsys.readouterr().out)
    assert "glue sst2: accuracy" in said


def test_a_checkpoint_that_does_not_state_its_shape_is_converted_by_the_recipe(place: Place) -> None:
    shape = ["model.vocab_size=600", "model.hidden_size=32", "model.intermediate_size=48"]
    recipe = place.recipe(*shape)
    settings = planning.read_recipe(recipe)
    weights = new_model(config_from_recipe(settings.model, settings.phases.decay.rope_theta), 1).weights()
    writer = artifacts.ArtifactWriter(f"{place.root}/checkpoint/merged", "checkpoint", "merged", {}, {})
    save_weights(weights, place.folder / WEIGHTS)
    writer.add_file(WEIGHTS, place.folder / WEIGHTS)
    writer.outputs["label"] = "merged"
    checkpoint = writer.commit({"component": "merge", "task": "merge"}).uri
    words = artifacts.ArtifactWriter(f"{place.root}/tokenizer/words", "tokenizer", "words", {}, {})
    words.add_folder("", place.folder / "hf")
    tokenizer = words.commit({"component": "tokenizer", "task": "tokenizer"}).uri
    found = place.evaluate(recipe, model=checkpoint, tokenizer=tokenizer)
    assert artifact_scorecard(artifacts.open_artifact(found.uri)).model == "merged"
    another = place.evaluate(
        place.recipe(*shape, "phases.decay.rope_theta.global_attention=10000"), model=checkpoint, tokenizer=tokenizer
    )
    assert not another.reused


def test_what_is_not_read_is_no_reason_to_do_it_again(place: Place, tmp_path: Path) -> None:
    tokenizer = artifacts.ArtifactWriter(f"{place.root}/tokenizer/some", "tokenizer", "some", {}, {})
    tokenizer.add_json("tokenizer.json", {})
    documents = artifacts.ArtifactWriter(f"{place.root}/documents/some", "documents", "some", {}, {})
    documents.add_json("index.json", {})
    recipe = place.recipe()
    first = place.evaluate(recipe)
    again = place.evaluate(
        recipe,
        documents=[documents.commit({"component": "curate", "task": "curate"}).uri],
        tokenizer=tokenizer.commit({"component": "tokenizer", "task": "tokenizer"}).uri,
    )
    assert (again.uri, again.reused) == (first.uri, True)
    assert artifacts.open_artifact(first.uri).manifest.inputs["documents"] == []


def test_changed_data_are_seen_by_the_next_run_and_refused_in_this_one(place: Place) -> None:
    recipe = place.recipe()
    not_done = place.recipe("evaluation.suites.glue.settings.sst2.batch_size=4")
    first = place.evaluate(recipe)
    shutil.rmtree(place.mirror)
    write_glue(place.mirror, ("cola", "sst2"), train=16, tested=12)
    data._digest.cache_clear()  # this process saw the former files
    after = place.recipe()
    assert after != recipe
    second = place.evaluate(after)
    assert second.uri != first.uri
    with pytest.raises(UserError, match=r"its files changed since this run began .*; start the run again"):
        place.evaluate(not_done)


def test_another_machine_goes_on_where_one_was_killed(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = place.recipe()
    with monkeypatch.context() as patch:
        whole = glue.fine_tune

        def killed_in_the_second(*arguments: Any, **more: Any) -> Any:
            if list((place.folder / "cache").rglob("glue.cola-*.json")):
                raise KeyboardInterrupt
            return whole(*arguments, **more)

        patch.setattr(glue, "fine_tune", killed_in_the_second)
        with pytest.raises(KeyboardInterrupt):
            place.evaluate(recipe)
    monkeypatch.setenv("MMBERT_CACHE", str(place.folder / "another machine"))
    capsys.readouterr()
    place.evaluate(recipe)
    assert "glue cola: found done" in capsys.readouterr().out


def test_what_a_suite_needs_is_said(place: Place) -> None:
    recipe = place.recipe()
    with pytest.raises(
        UserError, match=r"--suite xtreme: the recipe's evaluation.suites do not have it; there are demo, glue"
    ):
        place.evaluate(recipe, suite="xtreme")
    with pytest.raises(UserError, match="needs --model for the suite glue"):
        place.evaluate(recipe, model="")
    with pytest.raises(UserError, match="needs --documents for the suite demo"):
        place.evaluate(recipe, suite="demo")
    shutil.rmtree(place.mirror / GLUE / "sst2")
    with pytest.raises(UserError, match=r"glue: the mirror has no files of subset sst2; it has those of cola; mirror"):
        place.recipe("evaluation.suites.glue.seeds=2")
    shutil.rmtree(place.mirror / GLUE)
    with pytest.raises(UserError, match=r"nyu-mll/glue: no such folder in the mirror; mirror it .* hf download"):
        place.recipe("evaluation.suites.glue.seeds=2")


def test_a_workflows_recipe_names_the_commits_of_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def commit(repo: str, revision: str) -> str:
        asked.append((repo, revision))
        return f"{len(asked):040x}"

    monkeypatch.setattr(mirror, "hub_commit", commit)
    cola = "evaluation.suites.glue={tasks: [cola]}"
    branch = load_recipe("tiny", [cola, f"evaluation.suites.glue.revisions={{{GLUE}: new}}"])
    assert unpinned(branch) == ["glue"]
    pinned = pin_revisions(branch)
    assert asked == [(GLUE, "new")]
    assert pinned.evaluation.suites["glue"].pinned == {GLUE: f"{1:040x}"}
    # The recipe of an earlier run: what it found is no wish.
    again = pin_revisions(pinned)
    assert again.evaluation.suites["glue"].pinned == {GLUE: f"{2:040x}"}
    pin_revisions(load_recipe("tiny", [cola]))
    assert asked[1:] == [(GLUE, "new"), (GLUE, "main")]
    fixed = load_recipe("tiny", [cola, f"evaluation.suites.glue.revisions={{{GLUE}: {'c' * 40}}}"])
    assert unpinned(fixed) == []


def test_a_hub_that_does_not_answer_is_no_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    recipe = load_recipe("tiny", ["evaluation.suites.glue={tasks: [cola]}"])
    with pytest.raises(InfrastructureError, match=r"data set nyu-mll/glue cannot be reached at .*; or mirror it"):
        pin_revisions(recipe)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluation.suites.glu={}"], "suites.glu: no suite 'glu' .is 'glue' meant"),
        (["evaluation.suites.demo={}"], "suites.demo: it always runs"),
        (["evaluation.suites.efficiency={}"], "suites.efficiency: its figures are of the machine that measures them"),
        (["evaluation.suites.glue={tasks: [rt]}"], "suite glue: no task 'rt' .is 'rte' meant"),
        (["evaluation.suites.glue={settings: {epoch: 3}}"], "suites.glue.settings.epoch: no task .* has this setting"),
        (["evaluation.suites.glue={settings: {epochs: x}}"], "suites.glue.settings.epochs='x': it must be of the kind"),
        (["evaluation.suites.glue={settings: {learning_rates: []}}"], "learning_rates: an empty list"),
        (["evaluation.suites.glue={revisions: {a/b: main}}"], "no task that is run reads a/b; they read nyu-mll/glue"),
        (
            ["evaluation.suites.glue={revisions: {nyu-mll/glue: main}}", "evaluation.data_root=/mirror"],
            "with data_root the mirror's own files count",
        ),
        (["release.gate.minimum={glue: 0.5}"], "does not evaluate suite 'glue'; it does demo"),
        (
            ["evaluation.suites.glue={tasks: [cola]}", "release.gate.minimum={glue/rte: 0.5}"],
            "release.gate.minimum.glue/rte: this recipe does not evaluate task 'rte' of suite 'glue'; it does cola",
        ),
        (["release.gate.largest_drops={demo/nonsense: 0.5}"], "does not evaluate task 'nonsense' of suite 'demo'"),
    ],
)
def test_what_a_recipe_cannot_ask_of_suites(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe("tiny", overrides)


def test_a_tasks_own_setting_goes_before_the_general_one() -> None:
    recipe = load_recipe("tiny", ["evaluation.suites.glue={settings: {rte: {epochs: 5}, epochs: 1}}"])
    run = recipe.evaluation.suites["glue"]
    epochs = {task.name: task.settings["epochs"] for task in changed_tasks(get_suite("glue"), (), run.changes())}
    assert (epochs["rte"], epochs["cola"]) == (5, 1)


def test_a_released_model_of_the_presets_is_measured_on_what_the_published_tables_are_of() -> None:
    for preset in ("small", "base"):
        measured = planning.read_recipe(preset).evaluation.measured()
        assert measured == ["demo", "glue", "xtreme", "mteb-english", "mteb-multilingual", "coir"]


def test_finished_work_of_the_tasks_at_hand_is_shared_and_nothing_else(tmp_path: Path) -> None:
    store, one, other = str(tmp_path / "store"), tmp_path / "one", tmp_path / "other"
    names = ["glue.cola-1", "scores/glue.cola-1.json"]
    with pytest.raises(KeyboardInterrupt), shared_work(one, store, names):
        write(one / "glue.cola-1/seed-1/a.json", "a")
        write(one / "glue.cola-1/.made/half.json", "half")
        write(one / "glue.cola-1/.b.json.1234", "half")
        write(one / "glue.sst2-1/a.json", "another task's")
        write(one / "shared/model/weights", "a fine-tuned model")
        raise KeyboardInterrupt
    with shared_work(other, store, names):
        assert files(other) == ["glue.cola-1/seed-1/a.json"]
        write(other / "scores/glue.cola-1.json", "scores")
    with shared_work(one, store, names):
        assert (one / "scores/glue.cola-1.json").read_text("utf-8") == "scores"


def test_finished_work_is_sent_while_it_goes_on(tmp_path: Path) -> None:
    store, one = tmp_path / "store", tmp_path / "one"
    with shared_work(one, str(store), ["task"], seconds=0.01):
        write(one / "task/a.json", "1")
        deadline = time.monotonic() + 60
        while not (store / "task/a.json").is_file():
            assert time.monotonic() < deadline


def test_a_store_that_is_away_at_the_end_does_not_hide_why_the_work_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> None:
        raise InfrastructureError("no store")

    monkeypatch.setattr(shared_work_module.storage, "upload", away)
    with pytest.raises(UserError, match="wrong input"), shared_work(tmp_path / "one", str(tmp_path / "s"), ["task"]):
        write(tmp_path / "one/task/a.json", "1")
        raise UserError("wrong input")
    with (
        pytest.raises(InfrastructureError, match="no store"),
        shared_work(tmp_path / "one", str(tmp_path / "s"), ["task"]),
    ):
        pass


def test_a_mirror_in_s3_is_fetched_whole_in_the_state_that_was_seen(s3_server: S3, tmp_path: Path) -> None:
    bucket = s3_server.make_bucket("data")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environment.items():
            patch.setenv(name, value)
        storage.s3_client.cache_clear()
        tasks = chosen_tasks(get_suite("glue"), ["cola"])
        storage.write_bytes(f"{bucket}/{GLUE}/cola/a.txt", b"a")
        with pytest.raises(UserError, match="the mirror has no files of subset cola; it has those of none"):
            mirror.present_states(tasks, bucket, {})
        storage.write_bytes(f"{bucket}/{GLUE}/README.md", CARD.encode())
        states = mirror.present_states(tasks, bucket, {})
        storage.write_bytes(f"{bucket}/{GLUE}/.cache/huggingface/a.metadata", b"noted")
        assert mirror.present_states(tasks, bucket, {}) == states
        access = mirror.open_data(tasks, bucket, tmp_path / "cache", states)
        assert access.revision(DataSet(GLUE)) == states[GLUE]
        folder = access.folder(DataSet(GLUE))
        assert folder is not None
        assert files(folder) == ["README.md", "cola/a.txt"]

        whole = storage.download

        def refreshed_meanwhile(uri: str, target: Path) -> None:
            whole(uri, target)
            storage.write_bytes(f"{bucket}/{GLUE}/b.txt", b"b")

        patch.setattr(storage, "download", refreshed_meanwhile)
        with pytest.raises(InfrastructureError, match="its files changed while they were fetched"):
            mirror.open_data(tasks, bucket, tmp_path / "another", states)
        assert not list((tmp_path / "another").rglob("a.txt"))
    storage.s3_client.cache_clear()


CARD = """---
configs:
- {config_name: cola, data_files: [{split: train, path: cola/*}, {split: test, path: [other/*]}]}
- {config_name: sst2, data_dir: sst2}
- {config_name: rte, data_files: {train: ./rte.json}}
- {config_name: far, data_files: "https://host/a.json"}
---
"""


@pytest.mark.parametrize(
    ("there", "missing"),
    [
        (["cola/a.txt", "sst2/a.txt", "rte.json"], ""),
        (["other/a.txt", "sst2/part/a.txt", "sub/rte.json"], "rte"),
        (["cola/a.txt", "rte.json"], "sst2"),
        ([], "cola, sst2, rte"),
    ],
)
def test_a_mirrors_subsets_are_those_whose_files_are_there(there: list[str], missing: str) -> None:
    wanted = DataSet("a/b", ("default", "cola", "sst2", "rte", "far"))
    if not missing:
        check_subsets(wanted, "mirror/a/b", ["README.md", *there], CARD.encode)
        return
    with pytest.raises(UserError, match=f"mirror/a/b: the mirror has no files of subset {missing}; "):
        check_subsets(wanted, "mirror/a/b", ["README.md", *there], CARD.encode)


def test_states_that_nothing_used_for_a_week_are_dropped(tmp_path: Path) -> None:
    for name, days in {"old": 8, "recent": 1, "now": 30}.items():
        write(tmp_path / name / "a.txt", name)
        os.utime(tmp_path / name, times=2 * (time.time() - days * 24 * 3600,))
    in_use(tmp_path / "now")
    assert files(tmp_path) == ["now/a.txt", "recent/a.txt"]


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
