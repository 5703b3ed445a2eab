"""Suites that a recipe declares: pinned data, work that outlives a machine, scores that gate and registry know."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from components import planning
from components.contract import get_component
from components.runtime import Result, run_component
from mmbert import artifacts, hub
from mmbert.errors import UserError
from mmbert.evaluation.results.store import artifact_scorecard, history
from mmbert.evaluation.suites import data, glue, mirror
from mmbert.evaluation.suites.registry import chosen_tasks, get_suite
from mmbert.evaluation.suites.shared_work import shared_work
from mmbert.recipe import load_recipe
from mmbert.recipe.pins import pin_revisions, unpinned
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
        mirror.pinned_revisions(chosen_tasks(get_suite("glue"), ()), str(place.mirror), {}, "glue")[GLUE]
    }
    assert [kept.suite for kept in history(place.root)] == ["glue"]
    assert place.evaluate(place.recipe()).reused
    assert place.evaluate(place.recipe("evaluation.retrieval_languages=7")).reused

    capsys.readouterr()
    changed = place.evaluate(place.recipe("evaluation.suites.glue.settings.sst2.batch_size=4"))
    assert not changed.reused
    assert "glue cola: found done" in (said := capsys.readouterr().out)
    assert "glue sst2: accuracy" in said


def test_other_documents_are_no_reason_to_do_it_again(place: Place, tmp_path: Path) -> None:
    documents = artifacts.ArtifactWriter(f"{place.root}/documents/some", "documents", "some", {}, {})
    documents.add_json("index.json", {})
    recipe = place.recipe()
    first = place.evaluate(recipe)
    again = place.evaluate(recipe, documents=[documents.commit({"component": "curate", "task": "curate"}).uri])
    assert (again.uri, again.reused) == (first.uri, True)
    assert artifacts.open_artifact(first.uri).manifest.inputs["documents"] == []


def test_changed_data_are_seen_by_the_next_run_and_refused_in_this_one(place: Place) -> None:
    recipe = place.recipe()
    first = place.evaluate(recipe)
    shutil.rmtree(place.mirror)
    write_glue(place.mirror, ("cola", "sst2"), train=16, tested=12)
    data._digest.cache_clear()  # this process saw the former files
    after = place.recipe()
    assert after != recipe
    second = place.evaluate(after)
    assert second.uri != first.uri
    with pytest.raises(UserError, match=r"are not those that the recipe's `revisions` name .*; start the run again"):
        place.evaluate(recipe, model=place.model, suite="glue", tokenizer=_tokenizer(place))


def _tokenizer(place: Place) -> str:
    """An argument that makes it another piece of work, which is not found done."""
    writer = artifacts.ArtifactWriter(f"{place.root}/tokenizer/any", "tokenizer", "any", {}, {})
    writer.add_json("tokenizer.json", {})
    return writer.commit({"component": "tokenizer", "task": "tokenizer"}).uri


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
    shutil.rmtree(place.mirror / GLUE)
    with pytest.raises(UserError, match=r"nyu-mll/glue: no such folder in the mirror; mirror it .* hf download"):
        place.recipe("evaluation.suites.glue.seeds=2")


def test_a_workflows_recipe_names_the_commits_of_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def commit(repo: str, revision: str) -> str:
        asked.append((repo, revision))
        return "c" * 40

    monkeypatch.setattr(mirror, "hub_commit", commit)
    cola = "evaluation.suites.glue={tasks: [cola]}"
    branch = load_recipe("tiny", [cola, f"evaluation.suites.glue.revisions={{{GLUE}: new}}"])
    assert unpinned(branch) == ["glue"]
    pinned = pin_revisions(branch)
    assert asked == [(GLUE, "new")]
    assert pinned.evaluation.suites["glue"].revisions == {GLUE: "c" * 40}
    assert unpinned(pinned) == []
    assert pin_revisions(pinned) == pinned
    assert hub.is_commit(pin_revisions(load_recipe("tiny", [cola])).evaluation.suites["glue"].revisions[GLUE])
    assert asked[1:] == [(GLUE, "main")]
    wrong = load_recipe("tiny", [cola, "evaluation.suites.glue.revisions={some/thing: main}"])
    with pytest.raises(UserError, match=r"glue\.revisions: no task that is run reads some/thing"):
        pin_revisions(wrong)


def test_a_released_model_of_the_presets_is_measured_on_what_the_published_tables_are_of() -> None:
    for preset in ("small", "base"):
        measured = planning.read_recipe(preset).evaluation.measured()
        assert measured == ["demo", "glue", "xtreme", "mteb-english", "mteb-multilingual", "coir"]


def test_kept_work_is_whole_or_absent(tmp_path: Path) -> None:
    store, one, other = str(tmp_path / "store"), tmp_path / "one", tmp_path / "other"
    one.mkdir()
    with pytest.raises(KeyboardInterrupt), shared_work(one, store):
        (one / "made").mkdir()
        (one / "made/a.bin").write_bytes(b"a")
        (one / ".making").mkdir()
        (one / ".making/half.bin").write_bytes(b"h")
        (one / ".b.json.1234").write_text("half", "utf-8")
        raise KeyboardInterrupt
    # As a machine that died while it sent a folder leaves it.
    (Path(store) / "files/half").mkdir()
    (Path(store) / "files/half/a.bin").write_bytes(b"a")
    with shared_work(other, store):
        assert sorted(str(p.relative_to(other)) for p in other.rglob("*") if p.is_file()) == ["made/a.bin"]
        (other / "made/b.bin").write_bytes(b"b")
    with shared_work(one, store):
        assert (one / "made/b.bin").read_bytes() == b"b"


def test_kept_work_is_sent_while_it_goes_on(tmp_path: Path) -> None:
    store, one = tmp_path / "store", tmp_path / "one"
    one.mkdir()
    with shared_work(one, str(store), seconds=0.01):
        (one / "a.json").write_text("1", "utf-8")
        while not list(store.glob("complete/*.json")):
            pass
    assert (store / "files/a.json").read_text("utf-8") == "1"
