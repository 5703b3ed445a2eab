"""What each batch's loss and gradients were, over all processes, read from the device once a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from composer import Callback, Logger, State
from composer.utils import dist
from torch import Tensor

from mmbert.model.head import MaskedLanguageModel
from mmbert.model.loss import IGNORED
from mmbert.training.groups import parameters_by_group


@dataclass(frozen=True)
class BatchSignals:
    """Of one global batch, before its update.

    loss_sums: sum of -ln p of the masked tokens of each group of languages; masked: how many these are.
    squared_norms: of the gradient, of each group of parameters.
    """

    loss_sums: dict[str, float]
    masked: dict[str, float]
    squared_norms: dict[str, float]

    @property
    def loss(self) -> float:
        """Mean -ln p over all masked tokens."""
        return sum(self.loss_sums.values()) / max(1.0, sum(self.masked.values()))

    @property
    def gradient_norm(self) -> float:
        return math.sqrt(sum(self.squared_norms.values()))

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


class Meter(Callback):
    """Measures the current batch into `batch`, once its gradients are complete and before the optimiser's step.

    Losses are summed on the device. Reading them is no further wait for it: Composer reads the batch's loss at the same
    place, and twice more after the step.
    """

    def __init__(self, model: MaskedLanguageModel, groups: Sequence[str]) -> None:
        """`groups`: the group of each of the mixture's streams."""
        self._names = sorted(set(groups))
        self._group_of_stream = torch.tensor([self._names.index(group) for group in groups])
        self._parameters = parameters_by_group(model.named_parameters())
        self._sums = torch.zeros(0)
        self.batch: BatchSignals

    def before_train_batch(self, state: State, logger: Logger) -> None:
        self._group_of_stream = state.device.tensor_to_device(self._group_of_stream)
        self._sums = torch.zeros(2, len(self._names), dtype=torch.float64, device=self._group_of_stream.device)

    def after_loss(self, state: State, logger: Logger) -> None:
        self._sums += group_sums(
            state.outputs.rows,
            state.batch["targets"],
            self._group_of_stream[state.batch["masked_streams"].long()],
            len(self._names),
        )

    def after_train_batch(self, state: State, logger: Logger) -> None:
        named = [(group, parameter.grad) for group, parameter in self._parameters if parameter.grad is not None]
        norms = torch.stack(torch._foreach_norm([grad for _, grad in named])).double()
        values = torch.cat([self._sums.flatten(), norms])
        # The gradients are the same everywhere; they are reduced with the rest so that all processes decide alike.
        dist.all_reduce(values, reduce_operation="SUM")
        listed = values.tolist()
        losses, masked, rest = (
            listed[: len(self._names)], listed[len(self._names) : 2 * len(self._names)], listed[2 * len(self._names) :]
        )  # fmt: skip
        squared: dict[str, float] = {}
        for (group, _), norm in zip(named, rest, strict=True):
            squared[group] = squared.get(group, 0.0) + (norm / dist.get_world_size()) ** 2
        self.batch = BatchSignals(
            dict(zip(self._names, losses, strict=True)), dict(zip(self._names, masked, strict=True)), squared
        )


def group_sums(rows: Tensor, targets: Tensor, groups: Tensor, count: int) -> Tensor:
    """Sums of `rows` [n] by group, and how many of them have a target, [2, count].

    `groups` int64 [n]. Without atomic additions, so that the sums are the same in every run.
    """
    member = groups == torch.arange(count, device=groups.device)[:, None]
    counted = member & (targets != IGNORED)
    return torch.stack([torch.where(counted, rows, 0.0).sum(dim=1), counted.sum(dim=1)])
