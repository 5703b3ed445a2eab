"""How a phase is computed: device, precision, attention back end, compilation. Results do not depend on it, beyond
rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from mmbert.errors import UserError
from mmbert.model.attention.choose import choose_attention
from mmbert.recipe.schema import Training
from mmbert.training.device import composer_device

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Execution:
    """`device` by Composer's name; `attention` a back end's name."""

    device: Literal["cpu", "gpu"]
    precision: Literal["fp32", "bf16"]
    attention: str
    compiled: bool

    @property
    def fixed_shapes(self) -> bool:
        """Whether microbatches get a constant shape. On a CPU, where nothing is compiled, padding is only work."""
        return self.attention != "sdpa"

    def __str__(self) -> str:
        built = "compiled" if self.compiled else "not compiled"
        return f"training on {self.device} in {self.precision}, attention {self.attention}, {built}"


def choose_execution(training: Training) -> Execution:
    """As the recipe asks, or by what is there. Raises UserError where what it asks for cannot be had."""
    device = composer_device(training.device)
    precision: Literal["fp32", "bf16"] = training.precision if device == "gpu" else "fp32"
    name = {"gpu": "cuda", "cpu": "cpu"}[device]
    attention = choose_attention(training.attention, torch.device(name), _DTYPES[precision])
    if training.compile is True and attention == "sdpa":
        raise UserError(
            "training.compile: true: attention here is sdpa, whose steps depend on the segments' lengths, so the model "
            "cannot be compiled; set it to auto, or train on a GPU with another training.attention"
        )
    compiled = attention != "sdpa" and training.compile is not False
    return Execution(device, precision, attention, compiled)
