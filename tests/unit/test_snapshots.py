"""The weights that a phase keeps on its way, for an average of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from composer import Timestamp

from mmbert.model.config import config_from_recipe
from mmbert.model.initialization import new_model
from mmbert.recipe import load_recipe
from mmbert.training.saving import Snapshots


def kept(begin: int, scratch: Path) -> list[str]:
    """What a phase of 800 tokens that begins at `begin` keeps of four snapshots, its end aside."""
    recipe = load_recipe("tiny", ["model.vocab_size=100", "model.hidden_size=8", "model.intermediate_size=8"])
    model = new_model(config_from_recipe(recipe.model, recipe.phases.decay.rope_theta), recipe.seed, "reference")
    snapshots = Snapshots(4, 800, begin, scratch, model)
    logger: Any = None
    for tokens in range(begin + 100, 900, 100):
        state: Any = SimpleNamespace(timestamp=Timestamp(token=tokens))
        snapshots.batch_end(state, logger)
    return sorted(path.name for path in scratch.iterdir())


def test_a_phase_gone_on_with_leaves_out_the_snapshots_of_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scratch = tmp_path / "whole"
    scratch.mkdir()
    assert kept(0, scratch) == [f"snapshot-{i:03d}.safetensors" for i in range(3)]
    assert capsys.readouterr().out == ""
    scratch = tmp_path / "later"
    scratch.mkdir()
    assert kept(400, scratch) == ["snapshot-002.safetensors"]
    assert "2 of the phase's 4 snapshots (merge.snapshots) lie at or before token 400" in capsys.readouterr().out
