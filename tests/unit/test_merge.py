"""Merging: mergekit's numbers, TIES worked by hand, properties, and what is refused.

And checkpoints: what is read, what is refused.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from mmbert.errors import UserError
from mmbert.model.config import EncoderConfig
from mmbert.model.initialization import new_model
from mmbert.release import merge
from mmbert.release.checkpoints import check_weights, load_weights, save_weights
from mmbert.release.merge import ema, linear, ties

CHECKPOINT = Path(__file__).parent.parent / "fixtures" / "original" / "ep0-ba8-rank0.pt"
GOLDEN = Path(__file__).parent.parent / "golden" / "mergekit.safetensors"  # make_mergekit.py beside it made it
CONFIG = EncoderConfig(768, 64, 96, 7, 4)


def one(*values: float) -> dict[str, Tensor]:
    return {"w": torch.tensor(values)}


def golden_cases() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key in load_file(GOLDEN):
        case, kind, *settings = key.split("/")
        if settings:
            found.setdefault(case, []).append("/".join([kind, *settings]))
    return found


@pytest.mark.parametrize("case", golden_cases())
def test_ties_and_linear_are_mergekits_to_the_bit(case: str) -> None:
    stored = load_file(GOLDEN)
    base = {"w": stored[f"{case}/base"]}
    variants = {name: {"w": stored[f"{case}/{name}"]} for name in ("variant1", "variant2", "variant3")}
    for setting in golden_cases()[case]:
        kind, given, *density = setting.split("/")
        weights = [float(weight) for weight in given.split(",")]
        if kind == "linear":
            merged = linear(list(variants.values()), weights)
        else:
            merged, _ = ties(base, variants, float(density[0]), weights)
        assert torch.equal(merged["w"], stored[f"{case}/{setting}"]), setting


def test_blocks_of_a_large_tensor_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    base, *variants = ({"w": torch.randint(-3, 4, (23, 31), generator=generator) / 2} for _ in range(4))
    named = dict(zip("abc", variants, strict=True))
    whole, (report,) = ties(base, named, 0.3, [1, 2, 1])
    monkeypatch.setattr(merge, "_BLOCK", 64)
    blocked, (line,) = ties(base, named, 0.3, [1, 2, 1])
    assert torch.equal(whole["w"], blocked["w"])
    assert (line.kept_by_variant, line.conflicting) == (report.kept_by_variant, report.conflicting)
    assert set(line.kept_by_variant.values()) == {int(0.3 * 23 * 31)}


def test_ties_worked_by_hand() -> None:
    base = one(10, 10, 10, 10)
    # Changes: a +4 -3 +1 0, b +2 +5 0 +1, c -3 0 +1 +6. With density 0.5 two of each stay: a +4 -3, b +2 +5, c -3 +6.
    variants = {"a": one(14, 7, 11, 10), "b": one(12, 15, 10, 11), "c": one(7, 10, 11, 16)}
    merged, (line,) = ties(base, variants, 0.5, [1, 1, 1])
    assert merged["w"].tolist() == [13, 15, 10, 16]
    found = line.to_json()
    assert (found["kept_share"], found["sign_conflict_share"], found["agreement_share"]) == (0.75, 0.5, 0.0)
    assert found["kept_shares"] == {"a": 0.5, "b": 0.5, "c": 0.5}
    assert found["change_norms"]["b"] == pytest.approx(30**0.5)
    assert found["merged_change_norm"] == pytest.approx((9 + 25 + 36) ** 0.5)
    weighted, _ = ties(base, variants, 0.5, [1, 1, 4])
    assert weighted["w"].tolist() == [7, 15, 10, 16]


def test_a_place_whose_pulls_cancel_out_goes_up_and_of_equal_changes_the_first_stay() -> None:
    merged, (line,) = ties(one(0, 0), {"a": one(2, 3), "b": one(-2, 3)}, 1.0, [1, 1])
    assert merged["w"].tolist() == [2, 3]
    assert line.to_json()["agreement_share"] == 0.5
    merged, _ = ties(one(0, 0, 0, 0), {"a": one(1, -1, 1, 1)}, 0.5, [1])
    assert merged["w"].tolist() == [1, -1, 0, 0]


@given(seed=st.integers(0, 10_000), density=st.floats(0.05, 1))
def test_ties_stays_between_the_base_and_the_furthest_variant(seed: int, density: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    base, *variants = ({"w": torch.randn(40, generator=generator)} for _ in range(4))
    merged, _ = ties(base, dict(zip("abc", variants, strict=True)), density, [1.0, 2.0, 0.5])
    all_of_them = torch.stack([base["w"], *(v["w"] for v in variants)])
    assert (merged["w"] >= all_of_them.amin(0) - 1e-5).all()
    assert (merged["w"] <= all_of_them.amax(0) + 1e-5).all()


def test_linear_and_ema() -> None:
    assert linear([one(1, 0), one(4, 3)], [2, 1])["w"].tolist() == pytest.approx([2, 1])
    first = one(0, 8)
    assert ema([first, one(4, 0), one(4, 4)], 0.5)["w"].tolist() == [3, 4]
    assert first["w"].tolist() == [0, 8]


def test_models_that_do_not_match_are_refused() -> None:
    with pytest.raises(UserError, match="'x' is missing in variant 'a'"):
        ties({"w": torch.ones(2), "x": torch.ones(2)}, {"a": one(1, 2)}, 0.5, [1])
    with pytest.raises(UserError, match="'w' has shape"):
        linear([one(1, 2), one(1, 2, 3)], [1, 1])
    with pytest.raises(UserError, match="density"):
        ties(one(1), {"a": one(2)}, 0, [1])
    with pytest.raises(UserError, match="weights"):
        linear([one(1), one(1)], [1])
    with pytest.raises(UserError, match="'v' is missing in the first"):
        ema([one(1), {"v": torch.ones(1)}], 0.5)


def test_an_original_checkpoint_loads_with_every_weight_once() -> None:
    weights = load_weights(CHECKPOINT)
    assert "decoder.weight" not in weights
    assert "decoder.bias" in weights
    assert all(value.dtype == torch.float32 for value in weights.values())
    check_weights(weights, CONFIG, "original")


def test_saved_weights_come_back_and_have_the_same_bytes(tmp_path: Path) -> None:
    weights = new_model(CONFIG, 1).weights()
    save_weights(weights, tmp_path / "a.safetensors")
    save_weights(dict(reversed(weights.items())), tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    loaded = load_weights(tmp_path / "a.safetensors")
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (__import__, ("antigravity_of_the_test",))


def test_a_checkpoint_that_could_run_code_is_refused_and_the_reason_named(tmp_path: Path) -> None:
    torch.save({"state": {"model": {}, "extra": Evil()}}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match=r"__import__"):
        load_weights(tmp_path / "evil.pt")


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save({"weights": {}}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"state\.model"):
        load_weights(tmp_path / "other.pt")
    for name in ("cut.pt", "cut.safetensors"):
        (tmp_path / name).write_bytes(CHECKPOINT.read_bytes()[:100_000])
        with pytest.raises(UserError, match="damaged"):
            load_weights(tmp_path / name)
    with pytest.raises(UserError, match="no such file"):
        load_weights(tmp_path / "absent.pt")
    shutil.copyfile(CHECKPOINT, tmp_path / "model.bin")
    with pytest.raises(UserError, match="not a checkpoint that can be read"):
        load_weights(tmp_path / "model.bin")


def test_weights_of_another_shape_or_not_finite_are_named() -> None:
    weights = new_model(CONFIG, 1).weights()
    with pytest.raises(UserError, match="vocab_size is 768 in the weights and 900"):
        check_weights(weights, EncoderConfig(900, 64, 96, 7, 4), "here")
    with pytest.raises(UserError, match="num_hidden_layers is 7 in the weights and 10"):
        check_weights(weights, EncoderConfig(768, 64, 96, 10, 4), "here")
    with pytest.raises(UserError, match=r"'decoder\.bias' has shape \[5\].*\[768\]"):
        check_weights({**weights, "decoder.bias": torch.zeros(5)}, CONFIG, "here")
    with pytest.raises(UserError, match=r"'head\.norm\.weight' is missing"):
        check_weights({n: w for n, w in weights.items() if n != "head.norm.weight"}, CONFIG, "here")
    with pytest.raises(UserError, match=r"'head\.other' does not belong"):
        check_weights({**weights, "head.other": torch.zeros(5)}, CONFIG, "here")
    weights["head.dense.weight"][3, 2] = torch.nan
    with pytest.raises(UserError, match=r"here: 'head\.dense\.weight' holds NaN"):
        check_weights(weights, CONFIG, "here")
