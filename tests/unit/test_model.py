"""The encoder against the original training code's outputs, and its parts against plain arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file
from torch import Tensor

from mmbert.errors import UserError
from mmbert.model.config import EncoderConfig, config_from_recipe
from mmbert.model.head import MaskedLanguageModel
from mmbert.model.initialization import new_model
from mmbert.recipe.schema import Model, RopeTheta
from mmbert.release.checkpoints import load_weights

ORIGINAL = Path(__file__).parent.parent / "fixtures" / "original"
BACKENDS = ["sdpa", "flex", "reference"]
THETAS = [(10_000, 10_000), (160_000, 10_000), (160_000, 160_000)]


def original_config(global_theta: float = 10_000, local_theta: float = 10_000) -> EncoderConfig:
    return EncoderConfig(
        vocab_size=768,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=7,
        num_attention_heads=4,
        global_rope_theta=global_theta,
        local_rope_theta=local_theta,
    )


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return load_weights(ORIGINAL / "ep0-ba8-rank0.pt")


def original_model(
    weights: dict[str, Tensor], thetas: tuple[float, float], attention: str = "sdpa"
) -> MaskedLanguageModel:
    model = MaskedLanguageModel(original_config(*thetas), attention)
    model.load_weights(weights)
    return model.eval()


def unpadded(reference: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    real = reference["unpad_indices"]
    lengths = reference["attention_mask"].sum(1)
    cu_seqlens = F.pad(lengths.cumsum(0), (1, 0)).int()
    return reference["input_ids"].flatten()[real], reference["labels"].flatten()[real], cu_seqlens


@pytest.mark.parametrize("attention", BACKENDS)
@pytest.mark.parametrize("thetas", THETAS)
@pytest.mark.usefixtures("flex_learns_on_cpu")
def test_hidden_states_and_loss_are_the_originals(
    weights: dict[str, Tensor], thetas: tuple[int, int], attention: str
) -> None:
    name = f"g{thetas[0]}_l{thetas[1]}"
    reference = load_file(ORIGINAL / f"ref_{name}.safetensors")
    model = original_model(weights, thetas, attention)
    tokens, labels, cu_seqlens = unpadded(reference)
    masked = (labels != -100).nonzero().squeeze(1)
    with torch.no_grad():
        hidden = model.encode(tokens, cu_seqlens, 200)
        logits = model.masked_logits(hidden, masked)
    torch.testing.assert_close(hidden, reference["hidden_unpadded"], atol=1e-4, rtol=0)
    torch.testing.assert_close(logits, reference["masked_logits"], atol=1e-4, rtol=0)

    loss = model(tokens, cu_seqlens, 200, masked, labels[masked]).total / len(masked)
    expected = json.loads((ORIGINAL / "ref_losses_gradnorms.json").read_text("utf-8"))[name]
    assert loss.item() == pytest.approx(expected["loss"], abs=1e-5)
    loss.backward()
    norms = {n: p.grad.norm().item() for n, p in model.named_parameters() if p.grad is not None}
    assert norms == pytest.approx({n: expected["grad_norms"][n] for n in norms}, rel=1e-4)
    assert len(norms) == len(list(model.parameters()))


@pytest.mark.parametrize("attention", BACKENDS)
@pytest.mark.parametrize("thetas", THETAS)
def test_packed_row_with_a_padding_segment_is_the_originals(
    weights: dict[str, Tensor], thetas: tuple[int, int], attention: str
) -> None:
    name = f"g{thetas[0]}_l{thetas[1]}"
    reference = load_file(ORIGINAL / f"ref_{name}.safetensors")
    tokens, cu_seqlens, labels = (reference[f"packed_{key}"] for key in ("input_ids", "cu_seqlens", "labels"))
    model = original_model(weights, thetas, attention)
    masked = (labels != -100).nonzero().squeeze(1)
    with torch.no_grad():
        hidden = model.encode(tokens, cu_seqlens, 200)
        logits = model.masked_logits(hidden, masked)
        loss = model(tokens, cu_seqlens, 200, masked, labels[masked]).total / len(masked)
    expected = json.loads((ORIGINAL / "ref_losses_gradnorms.json").read_text("utf-8"))[name]
    assert loss.item() == pytest.approx(expected["packed_loss"], abs=1e-5)
    torch.testing.assert_close(hidden, reference["packed_hidden"], atol=1e-4, rtol=0)
    torch.testing.assert_close(logits, reference["packed_masked_logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("size", "hidden", "heads"), [("base", 768, 12), ("small", 384, 6)])
def test_parameter_names_and_counts_of_mmbert(size: str, hidden: int, heads: int) -> None:
    truth = json.loads((ORIGINAL / "true_config_params.json").read_text("utf-8"))[size]
    with torch.device("meta"):
        model = MaskedLanguageModel(EncoderConfig(256_000, hidden, 1152, 22, heads))
    assert {n: list(p.shape) for n, p in model.state_dict().items()} == truth["state"]
    assert sum(p.numel() for p in model.parameters()) == truth["total"]


def test_configuration_takes_the_recipes_values() -> None:
    recipe = Model(
        vocab_size=768, hidden_size=64, intermediate_size=96, num_hidden_layers=7, num_attention_heads=4, norm_eps=1e-4
    )
    config = config_from_recipe(recipe, RopeTheta(global_attention=160_000, local_attention=10_000))
    assert (config.norm_eps, config.global_rope_theta, config.local_rope_theta) == (1e-4, 160_000, 10_000)
    assert [config.is_global(n) for n in range(4)] == [True, False, False, True]
    with pytest.raises(UserError, match="sliding_window 7"):
        EncoderConfig(768, 64, 96, 7, 4, sliding_window=7)


def test_new_model_follows_its_seed_and_the_megatron_widths() -> None:
    config = EncoderConfig(2000, 64, 96, 7, 4)
    state = torch.random.get_rng_state()
    first, second, other = (new_model(config, seed).weights() for seed in (1, 1, 2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(first[n], second[n]) for n in first)
    assert not torch.equal(first["head.dense.weight"], other["head.dense.weight"])
    residual = 0.02 / 14**0.5
    for name, value in first.items():
        if name.endswith("bias"):
            assert not value.any()
        elif value.ndim == 1:
            assert (value == 1).all()
        else:
            sigma = residual if name.endswith("Wo.weight") else 0.02
            assert value.abs().max() <= 2 * sigma
            assert value.std().item() == pytest.approx(0.88 * sigma, rel=0.05)  # 0.88: a normal cut off at 2 sigma


def test_dropout_acts_in_training_only() -> None:
    model = new_model(original_config(), 3)
    tokens, cu_seqlens = torch.arange(5, 45), torch.tensor([0, 40], dtype=torch.int32)
    trained = [model.train().encode(tokens, cu_seqlens, 40) for _ in range(2)]
    assert not torch.equal(*trained)
    evaluated = [model.eval().encode(tokens, cu_seqlens, 40) for _ in range(2)]
    assert torch.equal(*evaluated)
