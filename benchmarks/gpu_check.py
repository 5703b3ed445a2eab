"""Every attention back end and loss that runs here against plain arithmetic in fp32; a part of gpu_train.py.

In bf16 a candidate may be off by twice what the plain computation is off in bf16 itself (and a little): a wrong mask or
a lost gradient is off by a hundred times that.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from mmbert.model.attention import attention_backend
from mmbert.model.attention.choose import FASTEST_FIRST, missing
from mmbert.model.config import EncoderConfig
from mmbert.model.head import MaskedLanguageModel
from mmbert.model.initialization import new_model
from mmbert.model.loss import IGNORED, linear_cross_entropy

SLACK, TIMES = 2e-3, 2.0
Outcome = dict[str, Tensor]


def check(losses: Sequence[str], device: torch.device, *, tiny: bool) -> int:
    """The exit status: 0 where everything that can run here agrees. The first of the losses is training's."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    backends = [name for name in FASTEST_FIRST if _runs(name, device, dtype)]
    checks = [
        *_attention_checks(backends, device, dtype, tiny),
        *_loss_checks(losses, device, dtype, tiny),
        *_model_checks(backends, losses, device, dtype, tiny),
    ]
    failed = 0
    for name, work in checks:
        try:
            problem = work()
        except Exception as error:  # told; the other checks go on
            problem = f"{type(error).__name__}: {error}".partition("\n")[0][:300]
        failed += problem is not None
        print(
            f"{'ok    ' if problem is None else 'FAILED'} {name}{'' if problem is None else ': ' + problem}", flush=True
        )
    print(f"{len(checks) - failed} of {len(checks)} checks passed")
    return 1 if failed else 0


def _runs(name: str, device: torch.device, dtype: torch.dtype) -> bool:
    reason = missing(name, device, dtype)
    if reason is None or (name == "flex" and device.type == "cpu"):
        return True
    print(f"not checked: {name}: {reason}")
    return False


def _worst(got: Outcome, plain: Outcome, truth: Outcome) -> str | None:
    """The first tensor that is further from the truth than the plain one in the same type allows."""
    for name, true in truth.items():
        scale = true.float().norm().clamp(min=1e-30)
        error = float((got[name].float() - true.float()).norm() / scale)
        allowed = float(TIMES * (plain[name].float() - true.float()).norm() / scale) + SLACK
        if not error <= allowed:
            return f"{name} is off by {error:.2e} of its norm, {allowed:.2e} allowed"
    return None


Checks = list[tuple[str, Callable[[], str | None]]]


def _attention_checks(backends: Sequence[str], device: torch.device, dtype: torch.dtype, tiny: bool) -> Checks:
    heads, dim = (2, 16) if tiny else (12, 64)
    longest = 200 if tiny else 1500
    # Empty segments, segments of one token, one of a block exactly, trailing padding in two segments.
    lengths = [37, 0, 1, 128, 0, longest, 64, longest // 2, 129, 0, 0, 1, 90, 50, 0]
    borders = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    generator = torch.Generator().manual_seed(1)
    width = heads * dim
    hidden = torch.randn(int(borders[-1]), width, generator=generator).to(device, dtype)
    weight = (torch.randn(3 * width, width, generator=generator) / width**0.5).to(device, dtype)
    towards = torch.randn(hidden.shape, generator=generator).to(device)

    def outcome(name: str, window: int | None, kind: torch.dtype) -> Outcome:
        h, w = (x.detach().to(kind).requires_grad_() for x in (hidden, weight))
        plan = attention_backend(name).plan(borders.to(device), longest, h)
        out = plan.attend(h, w, heads, 10_000.0, window)
        (out.float() * towards).sum().backward()
        assert h.grad is not None
        assert w.grad is not None
        return {"output": out.detach(), "gradient": h.grad, "weight's gradient": w.grad}

    def compare(name: str, window: int | None) -> str | None:
        return _worst(
            outcome(name, window, dtype),
            outcome("reference", window, dtype),
            outcome("reference", window, torch.float32),
        )

    return [
        (f"attention {name}, window {window}", lambda name=name, window=window: compare(name, window))
        for name in backends
        for window in (None, 128)
    ]


def _loss_checks(losses: Sequence[str], device: torch.device, dtype: torch.dtype, tiny: bool) -> Checks:
    rows, words, width = (100, 700, 16) if tiny else (3000, 256_000, 384)
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(rows, width, generator=generator).to(device)
    weight = (torch.randn(words, width, generator=generator) / width**0.5).to(device)
    bias = torch.randn(words, generator=generator).to(device)
    targets = torch.randint(words, (rows,), generator=generator)
    targets[::7] = IGNORED
    targets = targets.to(device)

    def outcome(name: str, kind: torch.dtype) -> Outcome:
        inputs = [x.detach().clone().requires_grad_() for x in (hidden, weight, bias)]
        with torch.autocast(device.type, kind, enabled=kind != torch.float32):
            total, each = linear_cross_entropy(*inputs, targets, name)
        (total / rows).backward()
        names = ("hidden's gradient", "weight's gradient", "bias's gradient")
        gradients = {n: x.grad for n, x in zip(names, inputs, strict=True) if x.grad is not None}
        return {"loss": total.detach(), "each row's loss": each, **gradients}

    def compare(name: str) -> str | None:
        return _worst(outcome(name, dtype), outcome("plain", dtype), outcome("plain", torch.float32))

    return [(f"loss {name}", lambda name=name: compare(name)) for name in losses if name != "plain"]


def _model_checks(
    backends: Sequence[str], losses: Sequence[str], device: torch.device, dtype: torch.dtype, tiny: bool
) -> Checks:
    config = EncoderConfig(
        600, *((32, 48, 2, 2) if tiny else (384, 1152, 7, 6)), attention_output_dropout=0.0, global_rope_theta=160_000.0
    )
    length = 96 if tiny else 1024

    def batch(seed: int) -> tuple[Tensor, ...]:
        """4 rows' worth of tokens, and as many segments in every batch, some of them empty."""
        generator = torch.Generator().manual_seed(seed)
        cuts = torch.randint(1, length, (3,), generator=generator).sort().values
        borders = torch.cat(
            [torch.tensor([0]), *(row * length + cuts for row in range(4)), torch.tensor([4 * length] * 3)]
        )
        borders = torch.cat([borders, torch.arange(1, 4) * length]).sort().values.int()
        ids = torch.randint(5, 600, (4 * length,), generator=generator)
        masked = torch.randperm(4 * length, generator=generator)[:length].sort().values
        targets = ids[masked].clone()
        targets[-5:] = IGNORED
        return tuple(x.to(device) for x in (ids, borders, masked, targets))

    def outcome(model: MaskedLanguageModel, kind: torch.dtype, loss: str, seed: int) -> Outcome:
        ids, borders, masked, targets = batch(seed)
        model.zero_grad()
        with _no_waiting(device, model), torch.autocast(device.type, kind, enabled=kind != torch.float32):
            hidden = model.masked_hidden(ids, borders, length, masked)
            total = linear_cross_entropy(hidden, model.decoder.weight, model.decoder.bias, targets, loss).total / length
            total.backward()
        gradients = {f"gradient of {n}": p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        return {"loss": total.detach(), **gradients}

    def compare(name: str, compiled: bool) -> str | None:
        torch._dynamo.reset()
        plain, model = (new_model(config, 3, n).to(device).train() for n in ("reference", name))
        if compiled:
            model.compile_for_training("inductor" if device.type == "cuda" else "eager")
            outcome(model, dtype, losses[0], 0)
        for seed in (1, 2, 3):
            with torch._dynamo.config.patch(error_on_recompile=compiled):
                got = outcome(model, dtype, losses[0], seed)
            problem = _worst(got, outcome(plain, dtype, "plain", seed), outcome(plain, torch.float32, "plain", seed))
            if problem is not None:
                return problem
        return None

    def drop(name: str) -> str | None:
        """Whether a compiled model draws its dropout anew for each seed, and the same for the same."""
        torch._dynamo.reset()
        dropping = dataclasses.replace(config, attention_output_dropout=0.1)
        model = new_model(dropping, 3, name).to(device).train()
        model.compile_for_training("inductor" if device.type == "cuda" else "eager")
        outcome(model, dtype, losses[0], 0)
        found = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            with torch._dynamo.config.patch(error_on_recompile=True):
                found.append(outcome(model, dtype, losses[0], 1))
        return _problem_with_seeds(*found)

    compilable = [name for name in backends if name != "sdpa"]
    return [
        *((f"model with {name}", lambda name=name: compare(name, False)) for name in backends),
        *((f"model with {name}, compiled once", lambda name=name: compare(name, True)) for name in compilable),
        *((f"model with {name}, compiled, with dropout", lambda name=name: drop(name)) for name in compilable),
    ]


def _problem_with_seeds(first: Outcome, same: Outcome, other: Outcome) -> str | None:
    """Of three outcomes with dropout, the first two of one seed."""
    for name, value in first.items():
        if not value.isfinite().all():
            return f"{name} is not finite"
    one, again, another = (float(outcome["loss"]) for outcome in (first, same, other))
    if abs(one - again) > 1e-5 * abs(one):
        return f"the same seed gives the losses {one} and {again}"
    return f"two seeds give the same loss {one}" if one == another else None


@contextlib.contextmanager
def _no_waiting(device: torch.device, model: MaskedLanguageModel) -> Iterator[None]:
    """An error wherever a GPU back end makes the host wait for the device, once its kernels are compiled."""
    strict = device.type == "cuda" and model._compiled is not None and torch._dynamo.config.error_on_recompile
    if strict:
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if strict:
            torch.cuda.set_sync_debug_mode("default")
