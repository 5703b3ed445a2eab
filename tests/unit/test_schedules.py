"""Learning rate and batch size over tokens, against values recorded from the original training code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmbert.errors import UserError
from mmbert.recipe.schema import Batch, Schedule
from mmbert.training.schedules import global_batch_size_at, lr_multiplier

GOLDEN = json.loads((Path(__file__).parent.parent / "fixtures/original/golden.json").read_text("utf-8"))


def tokens_of(value: str, total: int) -> int:
    return int(float(value[:-3]) * total) if value.endswith("dur") else int(value[:-3])


def recorded() -> list[Any]:
    return [entry for entry in GOLDEN["schedulers"] if entry["name"] != "cosine_inverse_sqrt"]


@pytest.mark.parametrize("entry", recorded())
def test_learning_rate_is_the_originals(entry: dict[str, Any]) -> None:
    total, arguments = tokens_of(entry["max_duration"], 0), entry["kwargs"]
    schedule = Schedule(
        warmup_tokens=tokens_of(arguments.get("t_warmup", "0tok"), total),
        decay_tokens=tokens_of(arguments["t_decay"], total),
        decay_shape="one_minus_sqrt" if entry["name"] == "one_minus_sqrt" else "linear",
        final_fraction=arguments["alpha_f"],
    )
    for tokens, expected in entry["points"]:
        if not isinstance(expected, str):
            assert lr_multiplier(tokens, schedule, total) == pytest.approx(expected, rel=1e-9), tokens


def test_learning_rate_stays_at_its_end_and_without_a_decay_at_its_peak() -> None:
    decayed = Schedule(decay_tokens=100, final_fraction=0.02)
    assert lr_multiplier(150, decayed, 100) == pytest.approx(0.02)
    assert lr_multiplier(1000, Schedule(), 1000) == 1.0
    with pytest.raises(UserError, match="warmup_tokens 60"):
        lr_multiplier(0, Schedule(warmup_tokens=60, decay_tokens=60), 100)


@pytest.mark.parametrize("entry", [e for e in GOLDEN["batch_size_warmup"] if "at" in e and e["world_size"] == 1])
def test_batch_warmup_changes_at_the_originals_thresholds(entry: dict[str, Any]) -> None:
    batch = Batch(
        global_batch_size=entry["max"],
        microbatch_size=1,
        warmup_from=entry["min"],
        warmup_tokens=entry["warmup_tokens"],
    )
    for tokens, expected in entry["at"].items():
        assert global_batch_size_at(int(tokens), batch, 1) == expected
    for number, threshold in enumerate(entry["thresholds"]):
        assert global_batch_size_at(threshold - 1, batch, 1) == entry["min"] + number
        assert global_batch_size_at(threshold, batch, 1) == entry["min"] + number + 1


@given(
    lanes=st.integers(1, 16),
    start=st.integers(1, 10),
    more=st.integers(0, 40),
    warmup=st.integers(1, 10**9),
    tokens=st.lists(st.integers(0, 2 * 10**9), min_size=2, max_size=20),
)
def test_batch_size_only_grows_in_steps_of_lanes(
    lanes: int, start: int, more: int, warmup: int, tokens: list[int]
) -> None:
    batch = Batch(
        global_batch_size=(start + more) * lanes, microbatch_size=1, warmup_from=start * lanes, warmup_tokens=warmup
    )
    sizes = [global_batch_size_at(t, batch, lanes) for t in sorted(tokens)]
    assert sizes == sorted(sizes)
    assert all(size % lanes == 0 and start * lanes <= size <= batch.global_batch_size for size in sizes)
    assert global_batch_size_at(warmup, batch, lanes) == batch.global_batch_size


def test_every_size_of_the_batch_warmup_makes_as_many_steps() -> None:
    batch = Batch(global_batch_size=32, microbatch_size=8, warmup_from=8, warmup_tokens=480_000)
    row_tokens, seen, steps = 100, 0, dict.fromkeys((8, 16, 24), 0)
    while (size := global_batch_size_at(seen, batch, 8)) < 32:
        steps[size] += 1
        seen += size * row_tokens
    assert set(steps.values()) == {100}
