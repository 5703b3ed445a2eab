"""The gradient of a weight that is token embedding and decoder at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def two_uses(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The weight for a lookup with a sparse gradient, and for a product with a dense one.

    Autograd by itself would fill a tensor of the weight's size with the lookup's gradient and add it to the product's;
    here the rows looked up are added to the product's gradient in place. The weight's gradient is always dense, and
    which order rows are added in does not depend on chance.
    """
    lookup, product = _TwoUses.apply(weight)  # type: ignore[no-untyped-call]
    return lookup, product


class _TwoUses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        return weight.view_as(weight), weight.view_as(weight)

    @staticmethod
    def backward(_ctx: Any, *grads: Tensor | None) -> Tensor | None:
        looked_up, product = grads
        if looked_up is None:
            return product
        return looked_up.to_dense() if product is None else product.add_(looked_up)
