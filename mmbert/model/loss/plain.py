"""The plain way, for comparison: all logits at once, then torch's cross-entropy and torch's gradients."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 -- torch's own spelling
from torch import Tensor

from mmbert.model.loss.rows import IGNORED


def linear_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of the losses, and each."""
    losses = F.cross_entropy(F.linear(hidden, weight, bias).float(), targets, ignore_index=IGNORED, reduction="none")
    return losses.sum(), losses.detach()
