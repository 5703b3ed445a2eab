"""The planner: published facts, what must hold of any plan, what memory holds, what it learns from runs."""

from __future__ import annotations

import csv
import functools
import json
import math
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.cli import _exit_code, cli
from mmbert.errors import UserError
from mmbert.model.config import EncoderConfig, config_from_recipe
from mmbert.planning import calibration
from mmbert.planning.gpus import GPUS, get_device
from mmbert.planning.memory import activation_bytes_a_token, largest_rows, memory_of, parameter_count
from mmbert.planning.plan import PHASES, Plan, plan_run, planned_speed, rescaled
from mmbert.planning.ranges import Range, around
from mmbert.planning.text import as_text, as_values, few_digits
from mmbert.planning.throughput import Cluster, batches, flops_a_token
from mmbert.planning.utilization import Measured
from mmbert.recipe import Recipe, load_recipe
from mmbert.training.schedules import global_batch_size_at

ROOT = Path(__file__).resolve().parents[2]
RECIPES = {name: load_recipe(name) for name in ("tiny", "small", "base")}
DAY = 86_400


def cluster(gpu: str, count: int) -> Cluster:
    device = get_device(gpu)
    return Cluster(device, count, 1 if device.is_cpu else math.ceil(count / 8))


def plan(preset: str, gpu: str = "h100", count: int = 8, **keys: Any) -> Plan:
    return plan_run(RECIPES[preset], cluster(gpu, count), **keys)


def command(*words: str) -> int:
    return _exit_code(functools.partial(cli, ["plan", *words], standalone_mode=False))


@pytest.mark.parametrize(
    ("preset", "mfu", "days", "speed"), [("base", 0.12, 40, 108_000), ("small", 0.20, 10, 434_000)]
)
def test_published_trainings_come_out_at_their_utilisation(preset: str, mfu: float, days: float, speed: float) -> None:
    """arXiv 2509.06888: 3T tokens on 8 H100. The range that is planned without knowing it holds what was published."""
    found = plan(preset, mfu=mfu)
    assert found.seconds.expected / DAY == pytest.approx(days, rel=0.05)
    assert found.tokens_a_second_and_device.expected == pytest.approx(speed, rel=0.05)
    assert found.mfu.expected == pytest.approx(mfu, rel=0.02)
    unknowing = plan(preset)
    assert 0.98 * unknowing.seconds.low < days * DAY < 1.02 * unknowing.seconds.high


def test_modernberts_training_comes_out_too() -> None:
    """arXiv 2412.13663: 1.7T tokens of 1,024 in 194 hours on 8 H100, 30% masked, 50,368 words."""
    work = flops_a_token(EncoderConfig(50_368, 768, 1152, 22, 12), 1024, 0.3)
    assert 1.7e12 * work / (0.26 * 8 * 989e12) / 3600 == pytest.approx(194, rel=0.15)


@settings(max_examples=20)
@given(st.sampled_from(sorted(RECIPES)), st.sampled_from(["h100", "a100", "l4", "b200", "cpu"]), st.integers(1, 5000))
def test_ranges_are_in_order_and_none_is_too_wide(preset: str, gpu: str, count: int) -> None:
    values = as_values(plan(preset, gpu, count))
    found = [values[key] for key in ("days", "tokens_per_second_per_gpu", "mfu", "gpu_hours")]
    for phase in values["phases"].values():
        found += [phase["days"], phase["tokens_per_second_per_gpu"], phase["mfu"]]
    for one in found:
        assert 0 < one["low"] <= one["expected"] <= one["high"] <= 3 * one["low"]
    assert sum(phase["days"]["expected"] for phase in values["phases"].values()) == pytest.approx(
        values["days"]["expected"]
    )


@settings(max_examples=20)
@given(
    st.sampled_from(sorted(RECIPES)), st.sampled_from(["h100", "l4", "cpu"]), st.integers(1, 3000), st.integers(1, 99)
)
def test_more_gpus_are_never_slower(preset: str, gpu: str, count: int, more: int) -> None:
    few, many = plan(preset, gpu, count), plan(preset, gpu, count + more)
    assert many.seconds.expected <= few.seconds.expected * (1 + 1e-9)


@settings(max_examples=20)
@given(st.floats(0.01, 0.99), st.floats(0.001, 0.01))
def test_more_utilisation_is_faster_and_a_given_one_leaves_little_open(mfu: float, more: float) -> None:
    slow, fast = plan("base", mfu=mfu), plan("base", mfu=mfu + more)
    assert fast.seconds.expected < slow.seconds.expected
    assert slow.seconds.high < 1.12 * slow.seconds.low


@pytest.mark.parametrize("count", [3, 64, 100, 256, 1024, 5000])
def test_the_changes_that_a_plan_names_make_a_valid_recipe_that_needs_none(count: int) -> None:
    first = plan("base", count=count)
    changed = load_recipe("base", first.changes)
    again = plan_run(changed, cluster("h100", first.processes))
    assert again.changes == ()
    assert again.seconds.expected == pytest.approx(first.seconds.expected)
    assert changed.training.lanes % again.processes == 0


def test_gpus_that_share_no_batch_evenly_are_idle_and_said_to_be() -> None:
    found = plan("base", count=1024)
    assert found.processes == 768
    assert "768 of 1,024 GPUs work" in found.warnings[0]
    assert found.gpu_hours.expected == pytest.approx(1024 * found.seconds.expected / 3600)


@pytest.mark.parametrize("preset", ["small", "base"])
def test_steps_are_those_of_the_schedule(preset: str) -> None:
    recipe = rescaled(RECIPES[preset], 30_000_000_000)
    phase, lanes = recipe.phases.pretrain, recipe.training.lanes
    counted: dict[int, int] = {}
    tokens = 0
    while tokens < phase.tokens:
        rows = global_batch_size_at(tokens, phase.batch, lanes)
        counted[rows] = counted.get(rows, 0) + 1
        tokens += rows * phase.max_seq_len
    planned = dict(batches(phase, lanes))
    assert planned.keys() == counted.keys()
    for rows, steps in planned.items():
        assert steps == pytest.approx(counted[rows], abs=2)
    assert sum(rows * steps for rows, steps in planned.items()) * phase.max_seq_len == pytest.approx(phase.tokens)


def test_tokens_are_scaled_with_the_batch_warm_up() -> None:
    found = rescaled(RECIPES["base"], 300_000_000_000).phases
    assert [getattr(found, name).tokens for name in PHASES] == [230_000_000_000, 60_000_000_000, 10_000_000_000]
    assert found.pretrain.batch.warmup_tokens == 6_000_000_000


def config_of(preset: str) -> EncoderConfig:
    return config_from_recipe(RECIPES[preset].model, RECIPES[preset].phases.pretrain.rope_theta)


@pytest.mark.parametrize(("preset", "weights"), [("base", 307_786_240), ("small", 140_897_536)])
def test_weights_are_counted_as_in_the_published_checkpoints(preset: str, weights: int) -> None:
    assert parameter_count(config_of(preset)) == weights


@pytest.mark.parametrize(
    ("way", "shape", "counted"),
    [
        ("sdpa", (128, 192, 7, 2), 52_104),
        ("sdpa", (768, 1152, 4, 12), 165_216),
        ("eager", (128, 192, 7, 2), 30_734),
        ("eager", (384, 1152, 4, 6), 62_415),
        ("compiled", (128, 192, 7, 2), 29_799),
        ("compiled", (768, 1152, 4, 12), 98_660),
    ],
)
def test_activations_are_what_autograd_was_seen_to_keep(way: str, shape: tuple[int, ...], counted: int) -> None:
    """Counts of benchmarks/plan_memory.py."""
    assert activation_bytes_a_token(EncoderConfig(640, *shape), way, 0.3) == pytest.approx(counted, rel=0.05)


@settings(max_examples=20)
@given(st.sampled_from(["small", "base"]), st.sampled_from([g.name for g in GPUS]), st.sampled_from([1024, 8192]))
def test_the_largest_microbatch_fits_and_a_row_more_does_not(preset: str, gpu: str, length: int) -> None:
    config, capacity = config_of(preset), get_device(gpu).memory_bytes
    assert capacity is not None
    rows = largest_rows(config, length, 0.3, "compiled", 8, capacity)
    totals = [memory_of(config, length, 0.3, n, "compiled", 8).total for n in (1, rows, rows + 1)]
    assert totals == sorted(totals)
    assert totals[1] <= capacity < totals[2]


def test_weights_and_moments_take_what_a_checkpoint_of_them_takes() -> None:
    found = plan("base")
    memory = found.phases[0].memory
    assert memory is not None
    assert memory.weights + memory.optimizer == found.checkpoints.resume
    assert memory.total > 22 * 307_786_240 + memory.activations + memory.loss
    alone = plan("base", count=1).phases[0].memory
    assert alone is not None
    assert memory.total - alone.total == pytest.approx(4 * 307_786_240)


def test_a_phase_computes_no_more_rows_than_fit() -> None:
    found = plan("base", "l4", 1)
    for phase in found.phases:
        assert phase.memory is not None
        assert phase.microbatch <= (phase.largest_microbatch or 0)
        assert phase.memory.total <= 24e9
    assert f"phases.extend.batch.microbatch_size={found.phases[1].microbatch}" in found.changes


def test_a_model_that_does_not_fit_is_refused_with_what_would() -> None:
    def wide(width: int) -> Recipe:
        return load_recipe("base", [f"model.hidden_size={width}", "model.num_attention_heads=64"])

    with pytest.raises(
        UserError, match=r"mmbert-base does not fit: .* has 24 GB.* It fits on .*b200 \(180 GB\)"
    ) as one:
        plan_run(wide(4096), cluster("l4", 64))
    assert "l40s" not in str(one.value)
    with pytest.raises(UserError, match="No GPU that is known here holds it; lower the model's size"):
        plan_run(wide(32768), cluster("b200", 64))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--gpu", "v100"), "--gpu v100: not known"),
        (("--gpu", "h100", "--gpus", "0"), "--gpus 0: give a number from 1"),
        (("--gpu", "h100", "--gpus", "-8"), "--gpus -8"),
        (("--gpu", "h100", "--gpus", "99999999"), "--gpus 99,999,999: give a number from 1 to 1,000,000"),
        (("--gpu", "h100", "--gpus", "1000000", "--nodes", "2"), "--gpus x --nodes 2,000,000: give"),
        (("--gpu", "h100", "--nodes", "0"), "--nodes 0"),
        (("--gpu", "h100", "--mfu", "30"), "--mfu 30: give a number from 0.001 to 1; 30% is 0.3"),
        (("--gpu", "h100", "--mfu", "nan"), "--mfu nan"),
        (("--gpu", "h100", "--price", "-1"), "--price -1"),
        (("--gpu", "h100", "--price", "inf"), "--price inf"),
        (("--gpu", "h100", "--preset", "large"), "no preset 'large'"),
        (("--gpu", "h100", "--mfu", "0.3", "--calibrate"), "give one"),
        (("--gpu", "h100", "--calibrate"), "MLFLOW_TRACKING_URI is not set"),
        ((), "--gpu"),
    ],
)
def test_nonsense_ends_with_2_and_says_why(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert command(*words) == 2
    assert said in capsys.readouterr().err


def test_an_unknown_gpu_is_told_all_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    command("--gpu", "tpu")
    said = capsys.readouterr().err
    assert all(gpu.name in said for gpu in GPUS)


def test_a_laptops_gpu_is_not_taken_for_the_whole_one() -> None:
    assert get_device("NVIDIA GeForce RTX 4090").memory_bytes == 24e9
    for other in ("RTX 4090 Laptop GPU", "RTX 4090 D", "RTX 3090 Ti", "A10-4C", "A100 MIG 1g.10gb"):
        with pytest.raises(UserError, match="not known"):
            get_device(f"NVIDIA {other}")


def test_gpus_are_named_in_any_case_and_by_their_own_names() -> None:
    assert get_device("H100").name == get_device("NVIDIA H100 80GB HBM3").name == "h100"
    assert get_device("a100-40gb").memory_bytes == 40e9
    assert get_device("NVIDIA A100-SXM4-80GB").memory_bytes == 80e9


def test_nodes_multiply_the_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--gpu", "h100", "--gpus", "8", "--nodes", "4", "--json") == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["gpus"], values["nodes"]) == (32, 4)
    assert command("--gpu", "h100", "--gpus", "32", "--json") == 0
    assert json.loads(capsys.readouterr().out) == values


def test_the_command_imports_no_ml_library() -> None:
    program = (
        "import sys; from components.cli import cli; cli(['plan', '--gpu', 'h100'], standalone_mode=False); "
        "print([m for m in ('torch', 'composer', 'transformers', 'datasets', 'mlflow') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"


def test_the_text_says_what_the_figures_rest_on() -> None:
    text = as_text(plan("base"))
    assert "published encoder trainings on H100" in text
    assert "not measured with this project" in text
    assert "further decay variants  2, each" in text
    assert "as given (--mfu 0.3)" in as_text(plan("base", mfu=0.3))
    assert "none of them ran on a100" in as_text(plan("base", "a100"))


def test_the_known_price_is_the_one_that_was_looked_up() -> None:
    with (ROOT / "infra" / "terraform" / "prices.csv").open(encoding="utf-8", newline="") as stream:
        (row,) = (row for row in csv.DictReader(stream) if row["part"] == "H100 on demand")
    cost = plan("base").cost
    assert cost is not None
    assert cost.price == pytest.approx(float(row["price"]) / 8)
    assert row["seen"] in cost.source


def test_cost_is_hours_by_price_and_no_price_is_made_up() -> None:
    assert plan("base", "a100").cost is None
    found = plan("base", "a100", price=2.5)
    assert found.cost is not None
    assert found.cost.dollars.expected == pytest.approx(2.5 * found.gpu_hours.expected)


def test_storage_and_data_follow_the_recipe() -> None:
    base, tiny = plan("base"), plan("tiny", "cpu", 2)
    assert base.checkpoints.resume == 12 * 307_786_240
    assert base.checkpoints.resume_kept == 10 * base.checkpoints.resume
    assert base.checkpoints.permanent == 0
    assert base.shards.tokens == 2_000_000_000_000
    # docs/scale.md: 178,852 objects of 64 MiB hold 3T tokens.
    assert base.shards.objects == pytest.approx(178_852 * 2 / 3, rel=0.01)
    four = plan_run(load_recipe("base", ["training.permanent_checkpoint_tokens=1T"]), cluster("h100", 32))
    assert four.checkpoints.permanent == 2 * four.checkpoints.resume
    assert four.shards.read_bytes == 4 * base.shards.read_bytes
    # The tokenizers library makes a fifth of the tokens of the engine for Gemma 2's tokenizer.
    ratio = tiny.data.tokenization_core_hours.expected / tiny.shards.tokens
    assert ratio > 4 * base.data.tokenization_core_hours.expected / base.shards.tokens


@dataclass(frozen=True)
class Finished:
    """A run as MLflow tells of it."""

    run_id: str = "r"
    metrics: dict[str, float] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


def finished(share: float, device: str = "NVIDIA H100 80GB HBM3", phase: str = "pretrain", **model: int) -> Finished:
    shape = {"hidden_size": 768, "num_hidden_layers": 22, "vocab_size": 256_000, **model}
    length = {"pretrain": "1024", "extend": "8192"}[phase]
    return Finished(
        metrics={calibration.SHARE: share, calibration.ACTUAL: 1000.0, calibration.EXPECTED: 900.0},
        params={
            "phase": phase,
            f"recipe.phases.{phase}.max_seq_len": length,
            **{f"recipe.model.{key}": str(value) for key, value in shape.items()},
        },
        tags={calibration.HARDWARE: device, calibration.PROCESSES: "8"},
    )


def learnt(*runs: Finished) -> Plan:
    return plan("base", runs=calibration.measured(runs))


def test_a_plan_learns_from_runs_like_its_phases() -> None:
    found = learnt(finished(0.30), finished(0.32), finished(0.34), finished(0.22, phase="extend"))
    pretrain, extend, decay = (phase.utilization for phase in found.phases)
    assert pretrain.share.expected == 0.32
    assert pretrain.share.low <= 0.30
    assert pretrain.share.high >= 0.34
    assert "3 runs here on h100 of this model at 1,024 tokens (30.0% to 34.0%)" in pretrain.why
    assert extend.share.expected == decay.share.expected == 0.22
    assert found.phases[0].mfu.expected == pytest.approx(0.32, rel=0.02)


def test_what_is_less_alike_leaves_more_open() -> None:
    exact = learnt(finished(0.3)).phases[0].utilization.share
    other_length = learnt(finished(0.3, phase="extend")).phases[0].utilization
    other_model = learnt(finished(0.3, hidden_size=384), finished(0.1, hidden_size=64)).phases[0].utilization
    several = learnt(*[finished(0.3)] * 2).phases[0].utilization.share
    widths = [one.high / one.low for one in (several, exact, other_length.share, other_model.share)]
    assert widths == sorted(widths)
    assert len(set(widths)) == 4
    assert "the nearest length" in other_length.why
    assert "another model, of hidden size 384" in other_model.why


def test_runs_that_disagree_widely_still_make_a_range() -> None:
    share = learnt(finished(0.01), finished(0.3), finished(0.9)).phases[0].utilization.share
    assert share.expected == 0.3
    assert 2.9 * share.low < share.high < 3 * share.low


def test_runs_that_say_nothing_are_left_out() -> None:
    unknown, silent, elsewhere = finished(0.3, device="NVIDIA V100"), Finished(), finished(0.3, device="cpu")
    broken = finished(math.nan)
    assert calibration.measured([unknown, silent, broken]) == []
    found = learnt(unknown, silent, elsewhere)
    assert found.phases[0].utilization.why == plan("base").phases[0].utilization.why


@dataclass(frozen=True)
class Point:
    tokens: int
    tokens_per_second: float
    tflops_per_second: float


def test_a_run_is_as_fast_as_its_whole_but_for_its_start() -> None:
    where = calibration.cluster_of("cpu", 1, 1, 2)
    assert where is not None
    # The first point has the start; then 100 tokens in 1 s and 300 in 9 s.
    points = [Point(50, 1.0, 0.001), Point(150, 100.0, 0.010), Point(450, 300 / 9, 0.020)]
    found = calibration.summary(points, where)
    assert found[calibration.ACTUAL] == pytest.approx(40)
    assert found[calibration.SHARE] == pytest.approx((0.010 * 1 + 0.020 * 9) / 10 * 1e12 / (2 * 86e9))
    assert calibration.summary(points[:1], where)[calibration.ACTUAL] == 1.0
    assert calibration.summary([], where) == {}
    assert calibration.cluster_of("NVIDIA V100", 8, 1, 1) is None


def test_a_speed_that_was_measured_is_planned_again() -> None:
    """From tokens a second to utilisation and back, on cores that do other work besides the model's."""
    phase, lanes = RECIPES["tiny"].phases.extend, RECIPES["tiny"].training.lanes
    config = config_from_recipe(RECIPES["tiny"].model, phase.rope_theta)
    where = calibration.cluster_of("cpu", 1, 1, 2)
    assert where is not None
    work = flops_a_token(config, phase.max_seq_len, phase.mask_probability)
    seen = Measured("r", "cpu", 128, 4, 8192, 512, 1, 7000 * work / where.peak_a_process, 7000, None)
    assert planned_speed(config, phase, lanes, where, [seen]).expected == pytest.approx(7000)


def test_the_tables_and_the_picture_are_those_of_the_planner() -> None:
    subprocess.run([sys.executable, ROOT / "scripts" / "plan_tables.py", "--check"], check=True)


@settings(max_examples=20)
@given(st.floats(0.01, 1), st.floats(0.01, 1), st.floats(0.01, 1))
def test_ends_too_far_apart_are_drawn_in(expected: float, low: float, high: float) -> None:
    found = around(expected, low, high)
    assert found.expected == expected
    if max(high, expected) <= 2.9 * min(low, expected):
        assert (found.low, found.high) == (min(low, expected), max(high, expected))


def test_a_range_out_of_order_is_refused() -> None:
    with pytest.raises(ValueError, match="no range"):
        Range(2, 1, 3)


@pytest.mark.parametrize(("value", "text"), [(0.0123, "0.012"), (3.14159, "3.1"), (38.098, "38"), (12_345, "12,300")])
def test_no_more_digits_are_told_than_are_known(value: float, text: str) -> None:
    assert few_digits(value) == text
