"""The attention back ends against attending segment by segment, and which of them a run gets."""

from __future__ import annotations

import sys
from itertools import pairwise
from types import ModuleType

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from mmbert.errors import UserError
from mmbert.model.attention import attention_backend
from mmbert.model.attention.choose import choose_attention
from mmbert.model.attention.flex import block_mask
from mmbert.model.attention.kernels import KernelPlan
from mmbert.model.attention.sdpa import SdpaPlan
from mmbert.model.attention.segments import places
from mmbert.model.config import EncoderConfig
from mmbert.model.initialization import new_model

HEADS, DIM, WIDTH, THETA = 2, 4, 8, 100.0
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def naive_attention(hidden: Tensor, weight: Tensor, borders: list[int], window: int | None) -> Tensor:
    """Segment by segment, with rotary positions half against half as the original writes them."""
    qkv = hidden @ weight.T
    out = torch.empty_like(hidden)
    for start, end in pairwise(borders):
        q, k, v = qkv[start:end].view(end - start, 3, HEADS, DIM).permute(1, 2, 0, 3)
        spots = torch.arange(end - start)
        angles = spots[:, None] * THETA ** (-torch.arange(0, DIM, 2) / DIM)
        cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
        q, k = (x * cos + torch.cat([-x[..., DIM // 2 :], x[..., : DIM // 2]], -1) * sin for x in (q, k))
        scores = q @ k.transpose(1, 2) / DIM**0.5
        if window is not None:
            far = (spots[:, None] - spots).abs() > window // 2
            scores = scores.masked_fill(far, -torch.inf)
        out[start:end] = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
    return out


def borders_of(lengths: list[int]) -> list[int]:
    return [0, *torch.tensor(lengths).cumsum(0).tolist()]


def agrees(name: str, lengths: list[int], window: int | None, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    borders = borders_of(lengths)
    hidden = torch.randn(borders[-1], WIDTH, generator=generator).requires_grad_()
    weight = (torch.randn(3 * WIDTH, WIDTH, generator=generator) / WIDTH**0.5).requires_grad_()
    towards = torch.randn(hidden.shape, generator=generator)
    plan = attention_backend(name).plan(torch.tensor(borders, dtype=torch.int32), max(lengths), hidden)
    ours = plan.attend(hidden, weight, HEADS, THETA, window)
    plain = naive_attention(hidden, weight, borders, window)
    torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)
    gradients = torch.autograd.grad((ours * towards).sum(), (hidden, weight))
    expected = torch.autograd.grad((plain * towards).sum(), (hidden, weight))
    torch.testing.assert_close(gradients, expected, atol=1e-3, rtol=1e-3)


@settings(max_examples=40)
@given(
    name=st.sampled_from(["sdpa", "reference"]),
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=12).filter(any),
    window=st.sampled_from([None, 2, 8, 16]),
    seed=st.integers(0, 1000),
)
def test_attention_equals_attending_segment_by_segment(
    name: str, lengths: list[int], window: int | None, seed: int
) -> None:
    agrees(name, lengths, window, seed)


@settings(
    max_examples=12,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.generate],  # an example takes most of a second
)
@given(
    lengths=st.lists(st.integers(0, 300), min_size=1, max_size=6).filter(any),
    window=st.sampled_from([None, 2, 16]),
    seed=st.integers(0, 1000),
)
@pytest.mark.usefixtures("flex_learns_on_cpu")
def test_flex_equals_attending_segment_by_segment(lengths: list[int], window: int | None, seed: int) -> None:
    torch._dynamo.reset()
    agrees("flex", lengths, window, seed)


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(0, 600), min_size=1, max_size=8).filter(any),
    reach=st.sampled_from([None, 1, 64, 126]),
)
def test_flex_block_tables_are_those_of_the_whole_mask(lengths: list[int], reach: int | None) -> None:
    borders = torch.tensor(borders_of(lengths), dtype=torch.int32)
    tokens = int(borders[-1])
    ours = block_mask(borders, places(borders, tokens), reach)
    theirs = create_block_mask(ours.mask_mod, None, None, tokens, tokens, device="cpu")
    for counts, indices in (
        ("kv_num_blocks", "kv_indices"),
        ("full_kv_num_blocks", "full_kv_indices"),
        ("q_num_blocks", "q_indices"),
        ("full_q_num_blocks", "full_q_indices"),
    ):
        listed = [
            [
                sorted(row[:n].tolist())
                for n, row in zip(getattr(m, counts)[0, 0], getattr(m, indices)[0, 0], strict=True)
            ]
            for m in (ours, theirs)
        ]
        assert listed[0] == listed[1], counts


def test_places_skip_empty_segments() -> None:
    where = places(torch.tensor([0, 0, 3, 3, 5, 5], dtype=torch.int32), 5)
    assert where.segments.tolist() == [1, 1, 1, 3, 3]
    assert where.positions.tolist() == [0, 1, 2, 0, 1]


def test_back_ends_share_weights_and_half_only_ones_leave_fp32_to_sdpa() -> None:
    config = EncoderConfig(100, 32, 48, 4, 2)
    ids, cu_seqlens = torch.arange(5, 95), torch.tensor([0, 30, 90], dtype=torch.int32)
    plain, sdpa = (new_model(config, 1, name).eval() for name in ("reference", "sdpa"))
    assert plain.state_dict().keys() == sdpa.state_dict().keys()
    with torch.no_grad():
        torch.testing.assert_close(
            plain.encode(ids, cu_seqlens, 60), sdpa.encode(ids, cu_seqlens, 60), atol=1e-5, rtol=0
        )
        # torch's kernel knows neither fp32 nor CPUs, so this works only because fp32 goes to SDPA.
        varlen = new_model(config, 1, "varlen").eval()
        assert torch.equal(varlen.encode(ids, cu_seqlens, 60), sdpa.encode(ids, cu_seqlens, 60))
        # FlexAttention evaluates there: it would be compiled for each number of tokens, and soon hold every score.
        flex = new_model(config, 1, "flex").eval()
        assert torch.equal(flex.encode(ids, cu_seqlens, 60), sdpa.encode(ids, cu_seqlens, 60))
        assert isinstance(attention_backend("flex").plan(cu_seqlens, 60, torch.zeros(90, 32)), SdpaPlan)
    assert isinstance(attention_backend("flex").plan(cu_seqlens, 60, torch.zeros(90, 32)), KernelPlan)


def test_on_a_cpu_auto_is_sdpa_and_the_others_say_what_they_need() -> None:
    assert choose_attention("auto", CPU, torch.float32) == "sdpa"
    assert choose_attention("sdpa", CPU, torch.float32) == "sdpa"
    for name in ("flash", "varlen", "flex"):
        with pytest.raises(UserError, match=rf"training.attention: {name}: .* on cpu; train on a GPU"):
            choose_attention(name, CPU, torch.float32)


def test_on_a_gpu_the_first_that_can_run_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    capability = (9, 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert choose_attention("auto", GPU, torch.bfloat16) == "varlen"
    assert choose_attention("auto", GPU, torch.float32) == "sdpa"
    with pytest.raises(UserError, match=r"varlen: .*half precision only.* set training.precision to bf16"):
        choose_attention("varlen", GPU, torch.float32)
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with pytest.raises(UserError, match=r"flash: flash-attn cannot be imported .*docs/performance.md"):
        choose_attention("flash", GPU, torch.bfloat16)
    # What flash-attn-4 by itself leaves of the name.
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    with pytest.raises(UserError, match=r"flash: flash-attn cannot be imported .*flash_attn_varlen_func"):
        choose_attention("flash", GPU, torch.bfloat16)
    installed = ModuleType("flash_attn")
    installed.flash_attn_varlen_func = lambda: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", installed)
    assert choose_attention("flash", GPU, torch.bfloat16) == "flash"
    assert choose_attention("auto", GPU, torch.bfloat16) == "varlen"
    with pytest.raises(UserError, match="flex: triton is not installed"):
        choose_attention("flex", GPU, torch.bfloat16)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert choose_attention("auto", GPU, torch.float32) == "flex"
    capability = (7, 5)
    assert choose_attention("auto", GPU, torch.float16) == "flex"
    with pytest.raises(UserError, match=r"compute capability 8.0 or later, and this one has 7.5"):
        choose_attention("varlen", GPU, torch.float16)
