"""Where the time of a training microbatch goes, from torch's profiler; a part of gpu_train.py."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from mmbert.loader.batch import Batch
from mmbert.model.head import MaskedLanguageModel
from mmbert.model.loss import linear_cross_entropy

# Kernels on a GPU and operators on a CPU, by name.
_ATTENTION = re.compile(r"flash|fmha|flex|attention|softmax", re.IGNORECASE)
_MATMUL = re.compile(r"gemm|nvjet|cutlass|xmma|cublas|tem_fused|aten::(add)?mm\b|aten::bmm", re.IGNORECASE)
REPEATS = 3


def time_by_part(
    model: MaskedLanguageModel,
    optimizer: torch.optim.Optimizer,
    part: Batch,
    loss: str,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, float]:
    """Milliseconds of kernels a microbatch: the body by kind, head's product with loss, and the optimiser's step.

    Encoder with head's transform, and decoder with loss, are run apart, forward and backward each, so that a kernel's
    name tells what it belongs to.
    """
    moved = part.to(device)
    borders = part.cu_seqlens if model.bert.attention.host_borders else moved.cu_seqlens
    mixed = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)

    def body(gradient: torch.Tensor | None) -> torch.Tensor:
        with mixed:
            hidden = model.masked_hidden(moved.input_ids, borders, part.max_seqlen, moved.masked_indices)
        if gradient is not None:
            hidden.backward(gradient.to(hidden.dtype))
        return hidden.detach()

    hidden = body(None).requires_grad_()

    def head() -> None:
        with mixed:
            decoder = model.decoder
            total = linear_cross_entropy(hidden, decoder.weight, decoder.bias, moved.targets, loss).total / part.masked
        total.backward()

    head()
    gradient = hidden.grad
    body_times = _kernel_times(lambda: body(gradient), device)
    attention = sum(ms for name, ms in body_times.items() if _ATTENTION.search(name))
    matmuls = sum(ms for name, ms in body_times.items() if _is_matmul(name))
    return {
        "body matmuls": matmuls,
        "attention": attention,
        "body rest": sum(body_times.values()) - matmuls - attention,
        "head+loss": sum(_kernel_times(head, device).values()),
        "optimizer (a step)": sum(_kernel_times(optimizer.step, device).values()),
    }


def _is_matmul(name: str) -> bool:
    return bool(_MATMUL.search(name)) and not _ATTENTION.search(name)


def _kernel_times(work: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Milliseconds a call by kernel (on a CPU by operator, its own time)."""
    cuda = device.type == "cuda"
    work()
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiled:
        for _ in range(REPEATS):
            work()
        if cuda:
            torch.cuda.synchronize()
    times: dict[str, float] = {}
    for event in profiled.key_averages():
        if not cuda:
            times[event.key] = event.self_cpu_time_total / 1000 / REPEATS
        elif event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False):
            times[event.key] = times.get(event.key, 0.0) + event.self_device_time_total / 1000 / REPEATS
    return times
