"""The counted work of a training step, against torch's own count on the real model and against published figures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from mmbert.model.config import EncoderConfig, config_from_recipe
from mmbert.model.initialization import new_model
from mmbert.planning.flops import attention_pairs, step_flops
from mmbert.planning.gpus import peak_bf16_flops
from mmbert.recipe import load_recipe

PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm)


def test_matrix_products_are_those_that_torch_counts() -> None:
    """To the operation: the layers and the head of the real model, with a plain decoder."""
    config = EncoderConfig(640, 64, 96, 4, 4, attention_output_dropout=0.0)
    model = new_model(config, 1)
    lengths = [17, 200, 3]
    cu_seqlens = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    tokens, masked = int(cu_seqlens[-1]), torch.arange(0, 220, 4)
    with FlopCounterMode(display=False) as counter:
        hidden = model.bert(torch.arange(tokens), cu_seqlens, max(lengths), masked)
        torch.nn.functional.linear(model.head(hidden), model.decoder.weight, model.decoder.bias).sum().backward()
    counted = sum(counter.get_flop_counts()["Global"].get(product, 0) for product in PRODUCTS)
    formula = step_flops(config, tokens, len(masked), lengths)
    assert formula.body + formula.head == counted


@given(st.lists(st.integers(1, 70), min_size=1, max_size=8), st.integers(1, 40).map(lambda half: 2 * half))
def test_pairs_within_a_window_are_counted_exactly(lengths: list[int], window: int) -> None:
    expected = 0
    for length in lengths:
        place = np.arange(length)
        expected += int((abs(place[:, None] - place) <= window // 2).sum())
    assert attention_pairs(np.array(lengths), window) == expected
    assert attention_pairs(np.array(lengths), None) == sum(length**2 for length in lengths)


@pytest.mark.parametrize(("preset", "gigaflops"), [("base", 1.11), ("small", 0.48)])
def test_work_a_token_of_the_published_models(preset: str, gigaflops: float) -> None:
    """Published estimates of phase 1 (sequences of 1,024, 30% masked), which count the last layer at every token."""
    recipe = load_recipe(preset)
    config = config_from_recipe(recipe.model, recipe.phases.pretrain.rope_theta)
    tokens = 48 * 1024
    found = step_flops(config, tokens, round(0.3 * tokens), [1024] * 48)
    assert found.total / tokens / 1e9 == pytest.approx(gigaflops, rel=0.03)
    assert found.global_attention + found.local_attention < 0.12 * found.total


def test_unmasked_tokens_cost_the_head_and_the_last_mlp_nothing() -> None:
    config = EncoderConfig(1000, 64, 96, 4, 4)
    few, many = (step_flops(config, 1000, masked, [100] * 10) for masked in (100, 200))
    assert many.head == 2 * few.head
    assert many.body - few.body == 3 * 100 * (2 * 64 * 64 + 6 * 64 * 96)


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA B200", 2250),
    ],
)
def test_peaks_of_known_gpus(name: str, teraflops: float) -> None:
    assert peak_bf16_flops(name) == teraflops * 1e12


@pytest.mark.parametrize("name", ["NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA L20", "NVIDIA GB200", "Radeon"])
def test_no_peak_is_guessed(name: str) -> None:
    assert peak_bf16_flops(name) is None
