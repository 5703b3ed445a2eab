"""StableAdamW against a recorded run of the original training code, and against its formula."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmbert.model.config import EncoderConfig
from mmbert.model.head import MaskedLanguageModel
from mmbert.training.optimizer import StableAdamW, parameter_groups

TRACE = Path(__file__).parent.parent / "fixtures" / "original" / "trace"


def test_replaying_a_recorded_run_ends_at_its_weights() -> None:
    model = MaskedLanguageModel(EncoderConfig(768, 64, 96, 7, 4, attention_output_dropout=0.0))
    model.load_weights(load_file(TRACE / "weights_step0.safetensors"))
    batches = load_file(TRACE / "batches.safetensors")
    optimizer = StableAdamW(parameter_groups(model.named_parameters(), 8e-5), lr=8e-4)
    for number, step in enumerate(json.loads((TRACE / "trace.json").read_text("utf-8"))):
        optimizer.zero_grad()
        segments = sum(part["n_seq"] for part in step["microbatches"])
        for row, part in enumerate(step["microbatches"]):
            tokens, labels = (batches[f"b{number}.{key}"][row].long() for key in ("input_ids", "labels"))
            cu_seqlens = batches[f"b{number}.cu_seqlens.{row}"]
            masked = (labels != -100).nonzero().squeeze(1)
            loss = model(tokens, cu_seqlens, int(cu_seqlens.diff().max()), masked, labels[masked]).total / len(masked)
            assert loss.item() == pytest.approx(part["loss"], abs=1e-5)
            (loss * part["n_seq"] / segments).backward()
        for group in optimizer.param_groups:
            group["lr"] = step["lr_used"]
        optimizer.step()
    weights = model.weights()
    final = load_file(TRACE / "weights_final.safetensors")
    assert final.keys() == weights.keys()
    for name, expected in final.items():
        torch.testing.assert_close(weights[name], expected, atol=1e-6, rtol=0)


def test_steps_follow_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(5, generator=generator, dtype=torch.float64)
    gradients = [torch.randn(5, generator=generator, dtype=torch.float64) * s for s in (1, 0.01, 30)]
    parameter = torch.nn.Parameter(start.clone())
    optimizer = StableAdamW([parameter], lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.2)
    p, m, v, clipped = start.clone(), torch.zeros(5), torch.zeros(5), 0
    for t, (gradient, lr) in enumerate(zip(gradients, (0.1, 0.05, 0.02), strict=True), start=1):
        optimizer.param_groups[0]["lr"] = lr
        parameter.grad = gradient.clone()
        optimizer.step()
        assert torch.equal(parameter.grad, gradient)
        b1, b2 = ((b**t - b) / (b**t - 1) for b in (0.9, 0.95))
        m, v = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient**2
        rms = math.sqrt((gradient**2 / v.clamp(min=1e-16)).mean())
        clipped += rms > 1.01
        step = lr / max(1, rms)
        p = p * (1 - step / 0.1 * 0.2) - step * m / (v.sqrt() + 1e-8)
        torch.testing.assert_close(parameter.detach(), p, rtol=1e-5, atol=1e-7)
    assert clipped == 1


def test_a_zero_gradient_moves_nothing_but_the_decay() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = StableAdamW([parameter], lr=0.1, weight_decay=0.5)
    parameter.grad = torch.zeros(3)
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.full((3,), 0.5))


def test_norms_and_biases_are_spared_the_decay() -> None:
    model = MaskedLanguageModel(EncoderConfig(50, 16, 8, 2, 2))
    spared, decayed = parameter_groups(model.named_parameters(), 0.1)
    names = {id(p): n for n, p in model.named_parameters()}
    assert {names[id(p)].rsplit(".", 2)[-2] for p in spared["params"]} >= {"norm", "final_norm", "attn_norm", "decoder"}
    assert (spared["weight_decay"], decayed["weight_decay"]) == (0.0, 0.1)
    assert "bert.embeddings.tok_embeddings.weight" in {names[id(p)] for p in decayed["params"]}
    assert len(spared["params"]) + len(decayed["params"]) == len(names)


def test_state_survives_saving_and_loading() -> None:
    def run(steps: int, saved: dict[str, object] | None, parameter: torch.nn.Parameter) -> StableAdamW:
        optimizer = StableAdamW([parameter], lr=0.1, weight_decay=0.1)
        if saved:
            optimizer.load_state_dict(saved)
        for number in range(steps):
            parameter.grad = torch.full((4,), 1.0 + number)
            optimizer.step()
        return optimizer

    through, stopped = (torch.nn.Parameter(torch.arange(4.0)) for _ in range(2))
    optimizer = run(1, None, stopped)
    stopped_again = torch.nn.Parameter(stopped.detach().clone())
    saved = optimizer.state_dict()
    assert set(saved["state"][0]) == {"exp_avg", "exp_avg_sq", "eps_sq"}
    whole = StableAdamW([through], lr=0.1, weight_decay=0.1)
    for gradient in (1.0, 1.0, 2.0):
        through.grad = torch.full((4,), gradient)
        whole.step()
    run(2, saved, stopped_again)
    assert torch.equal(through, stopped_again)


def test_without_gradients_there_is_no_step() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = StableAdamW([parameter], lr=0.1, weight_decay=0.2)
    parameter.grad = torch.ones(3)
    optimizer.step()
    before = parameter.detach().clone(), {k: v.clone() for k, v in optimizer.state[parameter].items()}
    optimizer.zero_grad(set_to_none=True)
    optimizer.step()
    assert torch.equal(parameter, before[0])
    assert all(torch.equal(optimizer.state[parameter][key], value) for key, value in before[1].items())
    assert optimizer.param_groups[0]["step"] == 1
