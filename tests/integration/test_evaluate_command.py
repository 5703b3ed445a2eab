"""The suites' runner, and `mmbert evaluate` as a user meets it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from click.testing import CliRunner

from components.cli import _exit_code, cli
from mmbert.errors import UserError
from mmbert.evaluation.results.scorecard import read_scorecard
from mmbert.evaluation.scores import Score
from mmbert.evaluation.suites.base import DataSet, ModelFolder, Setup, Suite, Task
from mmbert.evaluation.suites.data import DataAccess
from mmbert.evaluation.suites.models import folder_digest
from mmbert.evaluation.suites.registry import get_suite, suite_names
from mmbert.evaluation.suites.runner import Options, run_tasks
from tests.sentence_data import classified, texts, write_glue
from tests.suite_data import tiny_model, write_data_set

SMALL = ("--seeds", "2", "--bootstrap-samples", "20", "--device", "cpu")
QUICK = ("--set", "epochs=1", "--set", "learning_rates=1e-3", "--set", "max_length=24")
OPTIONS = Options(seeds=(1, 2), bootstrap_samples=10, device="cpu")
MODEL = ModelFolder(Path("unused"), "a" * 64, "counted")


@dataclass
class Counted:
    """A suite of three tasks that count their runs; each keeps a file by seed. `dies_in` is killed in its last seed."""

    root: Path
    dies_in: str = ""
    runs: list[str] = field(default_factory=list)
    seeds: list[tuple[str, int]] = field(default_factory=list)

    def suite(self, version: int = 1) -> Suite:
        tasks = [
            Task(name, version, (DataSet("some/data"),), ("en",), ("accuracy",), {"epochs": 3}, self._task(name))
            for name in ("first", "second", "third")
        ]
        return Suite("counted", "Counted", tuple(tasks))

    def _task(self, name: str) -> Callable[[ModelFolder, Setup], list[Score]]:
        def run(_: ModelFolder, setup: Setup) -> list[Score]:
            self.runs.append(name)
            for seed in setup.seeds:
                if name == self.dies_in and seed == setup.seeds[-1]:
                    raise KeyboardInterrupt
                if not (setup.kept / f"{seed}").exists():
                    self.seeds.append((name, seed))
                    (setup.kept / f"{seed}").write_text("done", "utf-8")
            return [Score("counted", name, "accuracy", 0.5, 0.4, 0.6, n=4, seeds=setup.seeds)]

        return run

    def evaluate(self, model: ModelFolder = MODEL, options: Options = OPTIONS, version: int = 1) -> list[Score]:
        return run_tasks(
            model,
            self.suite(version),
            data=DataAccess(self.root / "mirror"),
            cache=self.root / "cache",
            options=options,
            say=lambda _: None,
        )


@pytest.fixture
def counted(tmp_path: Path) -> Counted:
    write_text(tmp_path / "mirror", "one")
    return Counted(tmp_path)


def write_text(root: Path, text: str) -> None:
    (root / "some/data").mkdir(parents=True)
    (root / "some/data/rows.csv").write_text(text, "utf-8")


def test_a_killed_evaluation_goes_on_with_the_next_task_and_seed(counted: Counted) -> None:
    counted.dies_in = "second"
    with pytest.raises(KeyboardInterrupt):
        counted.evaluate()
    assert counted.runs == ["first", "second"]
    counted.dies_in = ""
    scores = counted.evaluate()
    assert counted.runs == ["first", "second", "second", "third"]
    assert counted.seeds == [("first", 1), ("first", 2), ("second", 1), ("second", 2), ("third", 1), ("third", 2)]
    assert [score.task for score in scores] == ["first", "second", "third"]
    assert scores == counted.evaluate()
    assert len(counted.runs) == 4


def test_another_seed_is_added_to_those_there_are(counted: Counted) -> None:
    counted.evaluate()
    counted.evaluate(options=replace(OPTIONS, seeds=(1, 2, 3)))
    assert counted.seeds[6:] == [("first", 3), ("second", 3), ("third", 3)]


@pytest.mark.parametrize(
    "changed",
    [
        {"model": ModelFolder(MODEL.path, "b" * 64, "counted")},
        {"options": replace(OPTIONS, changes={"epochs": 4})},
        {"version": 2},
    ],
    ids=["model", "settings", "version"],
)
def test_nothing_is_found_of_another_evaluation(changed: Mapping[str, Any], counted: Counted) -> None:
    counted.evaluate()
    counted.evaluate(**changed)
    assert counted.runs == ["first", "second", "third"] * 2
    assert len(counted.seeds) == 12


def test_nothing_is_found_of_other_data(counted: Counted, tmp_path: Path) -> None:
    (before, *_) = counted.evaluate()
    other = Counted(tmp_path / "other")
    write_text(other.root / "mirror", "two")
    (other.root / "cache").symlink_to(counted.root / "cache")
    (after, *_) = other.evaluate()
    assert other.runs == ["first", "second", "third"]
    assert before.data_revision != after.data_revision
    same = Counted(tmp_path / "same")
    write_text(same.root / "mirror", "one")
    (same.root / "cache").symlink_to(counted.root / "cache")
    assert same.evaluate()[0] == before
    assert same.runs == []


def test_the_name_of_a_model_does_not_matter(counted: Counted) -> None:
    counted.evaluate()
    counted.evaluate(replace(MODEL, label="renamed"))
    assert len(counted.runs) == 3


def test_a_setting_of_one_task_alone_redoes_that_one(counted: Counted) -> None:
    counted.evaluate()
    counted.evaluate(options=replace(OPTIONS, changes={"third.epochs": 5}))
    assert counted.runs == ["first", "second", "third", "third"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epoch": 1}, r"--set epoch: no task of suite counted that is run has this setting; there are epochs"),
        ({"fourth.epochs": 1}, r"--set fourth.epochs: suite counted has no task 'fourth'; it has first"),
        ({"epochs": "many"}, r"--set epochs='many': it must be of the kind of 3"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_run(
    changes: dict[str, Any], message: str, counted: Counted
) -> None:
    with pytest.raises(UserError, match=message):
        counted.evaluate(options=replace(OPTIONS, changes=changes))
    assert counted.runs == []


def test_every_registered_suite_can_be_listed() -> None:
    for name in suite_names():
        suite = get_suite(name)
        assert suite.name == name
        assert suite.tasks
        assert set(suite.columns) <= {task.name for task in suite.tasks}


def run(*arguments: str) -> tuple[int, str, str]:
    """Exit code and both outputs of `mmbert evaluate`, through the command's own translation of errors."""
    outputs = CliRunner().isolation()
    with outputs as (out, err, _):
        code = _exit_code(lambda: cli(["evaluate", *arguments], standalone_mode=False))
        return code, out.getvalue().decode(), err.getvalue().decode()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny-model", texts())


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mirror")
    write_glue(root, ("cola", "sst2"), train=16, tested=8)
    return root


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMBERT_CACHE", str(tmp_path / "own-cache"))


def test_scores_are_written_and_found_again(model: ModelFolder, mirror: Path, tmp_path: Path) -> None:
    arguments = (str(model.path), "--suite", "glue", "--data-root", str(mirror), *SMALL, *QUICK)
    out, second = tmp_path / "out", tmp_path / "second"
    code, said, error = run(*arguments, "--tasks", "cola", "--out", str(out))
    assert (code, said) == (0, f"{out / 'scores.json'}\n")
    assert error.startswith("glue cola: matthews ")
    content = json.loads((out / "scores.json").read_text("utf-8"))
    assert content["schema_version"] == 2
    card = read_scorecard(content, "scores.json")
    assert (card.model, card.model_digest, card.suite) == ("tiny-model", folder_digest(model.path), "glue")
    assert [(s.task, s.metric, len(s.seeds)) for s in card.scores] == [("cola", "matthews", 2)]
    assert card.scores[0].data_revision
    assert (out / "scores.parquet").is_file()
    code, said, error = run(*arguments, "--tasks", "sst2,cola", "--out", str(second), "--json")
    assert code == 0
    assert "glue cola: found done\n" in error
    assert "glue sst2: accuracy " in error
    told = json.loads(said)
    assert [(score["task"], "units" in score) for score in told["scores"]] == [("cola", False), ("sst2", False)]
    both = read_scorecard((second / "scores.json").read_bytes(), "scores.json")
    assert [score.task for score in both.scores] == ["cola", "sst2"]
    assert both.scores[0] == card.scores[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--suite", "gleu"), "no suite 'gleu' (is 'glue' meant?); there are demo, glue, xtreme"),
        (("--suite", "glue", "--tasks", "colla"), "suite glue: no task 'colla' (is 'cola' meant?); it has cola, sst2"),
        (("--suite", "glue", "--tasks", "cola", "--set", "epoch=1"), "--set epoch: no task of suite glue"),
        (("--suite", "glue", "--seeds", "0"), "Invalid value for '--seeds'"),
    ],
)
def test_wrong_arguments_are_the_users(
    arguments: tuple[str, ...], message: str, model: ModelFolder, mirror: Path, tmp_path: Path
) -> None:
    code, _, error = run(str(model.path), *arguments, "--data-root", str(mirror), "--out", str(tmp_path / "out"))
    assert code == 2
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_a_missing_mirror_tells_how_to_make_it(model: ModelFolder, tmp_path: Path) -> None:
    arguments = ("--suite", "glue", "--data-root", str(tmp_path), "--out", str(tmp_path / "out"))
    code, _, error = run(str(model.path), *arguments)
    assert code == 2
    assert f"{tmp_path / 'nyu-mll/glue'}: no such folder in the mirror" in error
    assert "hf download nyu-mll/glue --repo-type dataset --revision main --local-dir DIR/nyu-mll/glue" in error
    assert not (tmp_path / "out").exists()


def test_a_column_of_another_schema_is_named_and_nothing_is_written(model: ModelFolder, tmp_path: Path) -> None:
    wrong = classified(("text",), 2, 4, 0)
    write_data_set(tmp_path, "nyu-mll/glue", {"cola": {"train": wrong, "validation": wrong}})
    arguments = ("--suite", "glue", "--tasks", "cola", "--data-root", str(tmp_path), "--out", str(tmp_path / "out"))
    code, _, error = run(str(model.path), *arguments, *SMALL)
    assert code == 2
    assert "subset cola, split validation: no column sentence; it has text, label" in error
    assert "https://huggingface.co/datasets/nyu-mll/glue" in error
    assert not (tmp_path / "out").exists()


def test_a_hub_that_does_not_answer_is_worth_a_retry(
    model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    code, _, error = run(str(model.path), "--suite", "glue", "--tasks", "cola", "--out", str(tmp_path / "out"))
    assert code == 3
    assert "nyu-mll/glue cannot be reached at" in error
    assert "--data-root DIR" in error


def test_a_folder_without_a_model_is_the_users(tmp_path: Path) -> None:
    code, _, error = run(str(tmp_path / "nothing"), "--suite", "glue", "--out", str(tmp_path / "out"))
    assert code == 2
    assert str(tmp_path / "nothing") in error


def test_two_mirrors_with_the_same_card_are_not_taken_for_each_other(model: ModelFolder, tmp_path: Path) -> None:
    tested = {}
    for name, count in (("one", 8), ("other", 12)):
        write_glue(tmp_path / name, ("cola",), train=16, tested=count)
        arguments = ("--suite", "glue", "--tasks", "cola", "--data-root", str(tmp_path / name), *SMALL, *QUICK)
        code, _, error = run(str(model.path), *arguments, "--out", str(tmp_path / f"{name}-out"))
        assert code == 0, error
        card = read_scorecard((tmp_path / f"{name}-out" / "scores.json").read_bytes(), name)
        tested[name] = card.scores[0].n
    assert tested == {"one": 8, "other": 12}


def test_damaged_files_are_named(model: ModelFolder, tmp_path: Path) -> None:
    write_glue(tmp_path / "mirror", ("cola",), train=16, tested=8)
    rows = next((tmp_path / "mirror").rglob("validation*.parquet"))
    rows.write_bytes(rows.read_bytes()[:700])
    arguments = ("--suite", "glue", "--tasks", "cola", "--data-root", str(tmp_path / "mirror"), *SMALL, *QUICK)
    code, _, error = run(str(model.path), *arguments, "--out", str(tmp_path / "out"))
    assert code == 2, error
    assert "nyu-mll/glue, subset cola" in error
    broken = tmp_path / "broken"
    shutil.copytree(model.path, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    code, _, error = run(str(broken), *arguments, "--out", str(tmp_path / "out"))
    assert code == 2, error
    assert f"{weights}: damaged" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--device", "cuda:99"), "--device cuda:99: it cannot be used here"),
        (("--device", "foo"), "--device foo: it cannot be used here"),
        (("--device", "cpu", "--set", "epochs=-1"), "--set epochs=-1: it cannot be negative"),
        (("--set", "batch_size=0"), "--set batch_size=0: it must be above 0"),
        (("--set", "rte.epochs=2"), "--set rte.epochs: task rte is not run; of suite glue these are: cola"),
    ],
)
def test_what_cannot_be_is_refused(
    model: ModelFolder, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    write_glue(tmp_path / "mirror", ("cola",), train=16, tested=8)
    given = ("--suite", "glue", "--tasks", "cola", "--data-root", str(tmp_path / "mirror"), *arguments)
    code, _, error = run(str(model.path), *given, "--out", str(tmp_path / "out"))
    assert code == 2, error
    assert message in error
