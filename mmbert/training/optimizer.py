"""StableAdamW: AdamW whose step is shortened, tensor by tensor, where the gradient outgrows its second moment.

Update clipping is that of Wortsman et al. 2023 (arXiv 2304.13013), in the form of the original training code, with the
same names of state, so that its optimiser states load.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


def parameter_groups(named_parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, Any]]:
    """Norms and biases (one-dimensional) without decay, everything else, the tied embedding too, with it."""
    parameters = [parameter for _, parameter in named_parameters if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
    ]


class StableAdamW(torch.optim.Optimizer):
    """StableAdamW with fully decoupled decay.

    `lr` is the peak learning rate and is kept as `max_lr`; a scheduler sets each group's `lr`. At step t, with the
    debiased b = (beta^t - beta) / (beta^t - 1), per tensor: m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2,
    step = lr / max(1, RMS), RMS = sqrt(mean(g^2 / max(v, eps^2))), p = p (1 - step / max_lr x weight_decay)
    - step m / (sqrt(v) + eps). Nothing is read back from the device. Parameters and states are fp32. A group
    without any gradient takes no step and counts none.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "max_lr": lr,
            "beta1": betas[0],
            "beta2": betas[1],
            "eps": eps,
            "weight_decay": weight_decay,
            "decouple_lr": True,
            "step": 0,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                group["step"] += 1
                self._step_group(group, parameters)
        return loss

    def _step_group(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] = {
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                    "eps_sq": torch.tensor(group["eps"] ** 2, dtype=parameter.dtype, device=parameter.device),
                }
        states = [self.state[p] for p in parameters]
        gradients = [p.grad for p in parameters if p.grad is not None]
        first, second = ([state[key] for state in states] for key in ("exp_avg", "exp_avg_sq"))
        beta1, beta2 = (_debiased(group[key], int(group["step"])) for key in ("beta1", "beta2"))
        torch._foreach_lerp_(first, gradients, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, value=1 - beta2)

        ratios = torch._foreach_maximum(second, group["eps"] ** 2)
        torch._foreach_sqrt_(ratios)
        torch._foreach_reciprocal_(ratios)
        torch._foreach_mul_(ratios, gradients)
        norms = torch._foreach_norm(ratios)
        # Before the updates take as much memory: four bytes a weight, the peak of a step.
        del ratios
        steps = [group["lr"] / (n * p.numel() ** -0.5).clamp(min=1.0) for n, p in zip(norms, parameters, strict=True)]
        if group["weight_decay"]:
            decay = group["weight_decay"] / group["max_lr"]
            torch._foreach_mul_(parameters, [1 - step * decay for step in steps])
        updates = torch._foreach_sqrt(second)
        torch._foreach_add_(updates, group["eps"])
        torch._foreach_reciprocal_(updates)
        torch._foreach_mul_(updates, first)
        torch._foreach_mul_(updates, steps)
        torch._foreach_sub_(parameters, updates)


def _debiased(beta: float, step: int) -> float:
    """beta^ of Adafactor: running averages with it start unbiased, at 0 for the first step."""
    return (beta**step - beta) / (beta**step - 1)
