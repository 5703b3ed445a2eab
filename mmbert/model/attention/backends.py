"""The back ends by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

import torch
from torch import Tensor

from mmbert.model.attention.sdpa import SdpaPlan


class Plan(Protocol):
    """How to attend within the segments of one microbatch: made once, shared by all layers."""

    def attend(self, hidden: Tensor, weight: Tensor, heads: int, theta: float, window: int | None) -> Tensor:
        """Softmax attention of each token over its own segment, with rotary positions that restart in each.

        `hidden` [tokens, width] is projected by the fused query, key and value `weight` [3 x width, width]; `theta` is
        the base of the rotary angles; `window` is in tokens, half on each side and the token itself besides, or None
        for full attention. Returns [tokens, width], before the output's projection.
        """
        ...


@dataclass(frozen=True)
class Backend:
    """`make(cu_seqlens, max_seqlen, tokens, device)` makes a plan.

    `half_only` kernels know no fp32; `compiled_only` ones are for compiled models, and for gradients.
    """

    name: str
    make: Callable[[Tensor, int, int, torch.device], Plan]
    half_only: bool = False
    compiled_only: bool = False

    @property
    def host_borders(self) -> bool:
        """Whether it reads `cu_seqlens` on the host, and so should get it there."""
        return self.make is SdpaPlan

    def plan(self, cu_seqlens: Tensor, max_seqlen: int, hidden: Tensor) -> Plan:
        """The plan of a microbatch whose embedded tokens are `hidden` [tokens, width].

        `cu_seqlens` [segments + 1] int32 runs from 0 to the number of tokens; repeated ends (empty segments) are
        allowed. `max_seqlen` is at least the longest segment. Work in fp32 outside of autocast, as in evaluation, goes
        to SDPA where this back end knows half precision only. FlexAttention evaluates there too: by itself it is
        compiled for a few shapes, and past them holds every score.
        """
        device = hidden.device
        autocast = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if autocast else hidden.dtype
        evaluating = self.compiled_only and not (torch.is_grad_enabled() or torch.compiler.is_compiling())
        make = SdpaPlan if dtype == torch.float32 and (self.half_only or evaluating) else self.make
        return make(cu_seqlens, max_seqlen, len(hidden), device)


# Where each plan is made, whether its kernel knows half precision only, and whether it evaluates elsewhere.
_BACKENDS = {
    "flash": ("flash_plan", True, False),
    "varlen": ("varlen_plan", True, False),
    "flex": ("flex_plan", False, True),
    "sdpa": ("SdpaPlan", False, False),
    "reference": ("reference_plan", False, False),
}


def attention_backend(name: str) -> Backend:
    """The back end `name`: varlen, flash, flex, sdpa or reference. Raises ImportError where its library is missing."""
    function, half_only, compiled_only = _BACKENDS[name]
    module = import_module(f"mmbert.model.attention.{name}")
    return Backend(name, getattr(module, function), half_only, compiled_only)
