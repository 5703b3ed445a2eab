"""What a phase logs, and what it does with batches that would spoil the weights: real training runs."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from composer import Logger, State
from safetensors import safe_open
from safetensors.torch import load_file

from components.contract import get_component
from components.runtime import run_component
from mmbert import artifacts
from mmbert.errors import UserError
from mmbert.model.config import config_from_recipe
from mmbert.ranks import Alone
from mmbert.recipe import load_recipe
from mmbert.tracking import ComponentRun
from mmbert.training.execution import Execution
from mmbert.training.forecast import log_plan_against_actual
from mmbert.training.guard import Guard
from mmbert.training.history import HistoryPoint
from tests.small_run import SmallRun, make_small_run

# So that a good part of ordinary batches counts as spikes.
EASILY_A_SPIKE = "spike_sigmas: 0.7, spike_window: 4, max_skipped: 50"
SKIPPING = f"training.bad_batches={{spike: skip, {EASILY_A_SPIKE}}}"
EXPLODING = "phases.pretrain.learning_rate=1e30"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return make_small_run(tmp_path_factory.mktemp("small"), "phases.pretrain.tokens=16k")


@pytest.fixture(scope="module")
def skipping(small: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> artifacts.Artifact:
    return train(small, tmp_path_factory.mktemp("skipping"), SKIPPING)


def train(small: SmallRun, root: Path, *overrides: str) -> artifacts.Artifact:
    """Train the first phase in this process, into `root`."""
    changed = {"preset": artifacts.open_artifact(small.recipe).remote("recipe.yaml"), "overrides": list(overrides)}
    recipe = run_component(get_component("recipe"), changed, str(root)).uri
    arguments = {**small.train, "recipe": recipe, "shards": [small.shards], "documents": [small.documents]}
    return artifacts.open_artifact(run_component(get_component("train"), arguments, str(root)).uri)


def saved_batches(root: Path) -> list[Path]:
    return sorted(root.rglob("bad_batches/*.safetensors"))


def test_each_point_holds_the_signals_of_its_batches(skipping: artifacts.Artifact) -> None:
    """With log_every 1 a point is a batch."""
    for point in skipping.read_json("history.json"):
        squares = [norm**2 for norm in point["gradient_norms"].values()]
        assert set(point["gradient_norms"]) == {"embeddings", "attention", "mlp", "norms", "head"}
        assert point["gradient_norm"] == pytest.approx(math.sqrt(sum(squares)))
        # English has a tenth of the tokens; German is all the rest.
        assert set(point["losses"]) == {"english", "high"}
        assert min(point["losses"].values()) <= point["loss"] <= max(point["losses"].values())
        assert abs(point["loss"] - point["losses"]["high"]) < abs(point["loss"] - point["losses"]["english"])
        assert 0 <= point["loader_wait_share"] <= 1
        assert point["tflops_per_second"] > 0
        assert point["mfu"] is None


class Recorder(ComponentRun):
    """What a run is told, by kind."""

    def __init__(self) -> None:
        super().__init__()
        self.told: dict[str, float] = {}
        self.tags: dict[str, Any] = {}

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        self.told.update(metrics)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        self.tags.update(tags)


def test_a_phase_tells_how_fast_it_was_against_the_plan(
    skipping: artifacts.Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load_recipe("tiny")
    settings = recipe.phases.pretrain
    config = config_from_recipe(recipe.model, settings.rope_theta)
    points = [HistoryPoint(**point) for point in skipping.read_json("history.json")]
    run = Recorder()
    execution = Execution("cpu", "fp32", "sdpa", compiled=False)
    log_plan_against_actual(config, settings, 8, execution, points, Alone(), run)
    assert run.tags["mmbert.hardware"] == "cpu"
    told = run.told
    assert told["plan/lowest_tokens_per_second"] < told["plan/expected_tokens_per_second"]
    assert told["plan/expected_tokens_per_second"] < told["plan/highest_tokens_per_second"]
    speeds = [point.tokens_per_second for point in points[1:]]
    assert min(speeds) <= told["plan/actual_tokens_per_second"] <= max(speeds)
    ratio = told["plan/actual_tokens_per_second"] / told["plan/expected_tokens_per_second"]
    assert told["plan/actual_over_expected"] == pytest.approx(ratio)
    assert 0 < told["plan/actual_utilization"] < 1
    # Whatever goes wrong there, the phase is trained.
    broken = [dataclasses.replace(point, tokens_per_second=0.0) for point in points]
    log_plan_against_actual(config, settings, 8, execution, broken, Alone(), Recorder())
    assert "warning: the plan was not compared with this run: ZeroDivisionError" in capsys.readouterr().out


def test_a_skipped_batch_makes_no_step_and_is_counted(skipping: artifacts.Artifact, tmp_path: Path) -> None:
    history = skipping.read_json("history.json")
    state = skipping.read_json("training_state.json")
    skipped = history[-1]["skipped_batches"]
    assert 1 <= skipped <= state["batches"] - 4
    with safe_open(skipping.fetch("optimizer.safetensors", tmp_path), "pt") as stored:
        steps = json.loads(stored.metadata()["steps"])
    # A skipped batch makes no point; the last may have been skipped after the last point.
    assert set(steps) == {len(history)}
    assert state["batches"] - len(history) >= skipped
    # The schedule's clock counts what was skipped.
    assert state["tokens"] >= 16_000


def test_a_run_that_died_skips_the_same_batches_when_it_goes_on(
    small: SmallRun, skipping: artifacts.Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    judge = Guard.after_train_batch

    def die(self: Guard, state: State, logger: Logger) -> None:
        judge(self, state, logger)
        if int(state.timestamp.batch.value) == 14:
            raise KeyboardInterrupt

    monkeypatch.setattr(Guard, "after_train_batch", die)
    with pytest.raises(KeyboardInterrupt):
        train(small, tmp_path, SKIPPING)
    monkeypatch.undo()
    resumed = train(small, tmp_path, SKIPPING)
    told = capsys.readouterr().out
    assert "going on from" in told
    assert re.search(r"^batch \d+: .* tokens, loss [\d.]+, [\d,.]+ tokens/s, \d+ s left$", told, re.MULTILINE)
    assert "tokens/s; the plan for such hardware is" in told
    assert resumed.digest == skipping.digest
    assert [p["batch"] for p in resumed.read_json("history.json")] == [
        p["batch"] for p in skipping.read_json("history.json")
    ]


def test_a_loss_that_is_no_number_stops_before_the_step_and_saves_the_batch(small: SmallRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"batch 2, .* the loss is nan .* Its update was not made") as caught:
        train(small, tmp_path, EXPLODING)
    assert "own/deu_Latn" in str(caught.value)
    assert "Started again with nan: skip in training.bad_batches, the phase goes on from" in str(caught.value)
    assert "Other remedies begin it anew: a lower phases.pretrain.learning_rate" in str(caught.value)
    assert "spike" not in str(caught.value)
    (saved,) = saved_batches(tmp_path)
    assert str(saved) in str(caught.value)
    batch, facts = load_file(saved), json.loads(saved.with_suffix(".json").read_text("utf-8"))
    assert batch["cu_seqlens"][-1] == len(batch["input_ids"]) == sum(facts["tokens_by_stream"].values())
    assert len(batch["targets"]) == sum(facts["masked_tokens"].values())
    assert facts["loss"] == "nan"
    assert set(facts["tokens_by_stream"]) == set(facts["streams"]) == {"own/deu_Latn", "own/eng_Latn"}
    assert not list(tmp_path.rglob("checkpoint/*/manifest.json"))


def test_a_stopped_phase_goes_on_with_skipping_until_every_batch_is_bad(
    small: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="batch 2, "):
        train(small, tmp_path, EXPLODING)
    with pytest.raises(
        UserError, match=r"batch 5, .* the 3 batches before it were skipped too .* a higher max_skipped"
    ):
        train(small, tmp_path, EXPLODING, "training.bad_batches={nan: skip, max_skipped: 3}")
    assert capsys.readouterr().out.count("is skipped: the loss is nan") == 3
    # The policy is in no fingerprint, so both belong to the same piece of work.
    assert len({saved.parent for saved in saved_batches(tmp_path)}) == 1
    assert len(saved_batches(tmp_path)) == 2


def test_a_spike_stops_the_phase_where_the_recipe_says_so_and_skipping_goes_on(
    small: SmallRun, skipping: artifacts.Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = next(n for n, point in enumerate(numbers(skipping), start=1) if point != n)
    with pytest.raises(UserError, match=rf"batch {first}, .* and the 4 batches before allow .*'stop'"):
        train(small, tmp_path, f"training.bad_batches={{spike: stop, {EASILY_A_SPIKE}}}")
    went_on = train(small, tmp_path, SKIPPING)
    assert "going on from" in capsys.readouterr().out
    assert went_on.digest == skipping.digest


def numbers(run: artifacts.Artifact) -> list[Any]:
    return [point["batch"] for point in run.read_json("history.json")]
