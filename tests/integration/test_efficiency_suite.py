"""The suite `efficiency` with a tiny model: every variant in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmbert.evaluation.suites.base import ModelFolder
from mmbert.evaluation.suites.data import DataAccess
from mmbert.evaluation.suites.registry import get_suite
from mmbert.evaluation.suites.runner import Options, run_tasks
from tests.suite_data import tiny_model

CHANGES = {"tokens_cpu": 1000, "seconds": 0.0, "batch_tokens": 2048}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return tiny_model(tmp_path_factory.mktemp("model"), ["a few words", "and some more words"])


def test_tasks_are_the_published_chart_of_every_variant() -> None:
    names = [task.name for task in get_suite("efficiency").tasks]
    assert len(names) == 18
    assert [name for name in names if name.startswith("xlm-r")] == ["xlm-r-512-uniform", "xlm-r-512-variable"]


@pytest.mark.parametrize("variant", ["packed", "transformers", "onnx", "xlm-r", "mgte"])
def test_a_variant_is_measured(model: ModelFolder, tmp_path: Path, variant: str) -> None:
    options = Options((f"{variant}-512-variable",), (17,), 20, CHANGES, "cpu")
    found = run_tasks(
        model, get_suite("efficiency"), data=DataAccess(), cache=tmp_path, options=options, say=lambda _: None
    )
    speed, memory = found
    assert (speed.metric, memory.metric) == ("tokens_per_second", "peak_memory_mb")
    assert 0 < speed.low <= speed.value <= speed.high
    assert speed.n == 2
    assert 100 < memory.value < 20_000
    # The packed encoder computes no padding; the same documents padded do.
    assert (speed.settings["padding"] == 0) == (variant == "packed")
