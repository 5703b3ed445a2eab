"""What back ends with a kernel over packed rows share: the projection, real-valued rotary positions, the window."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F  # noqa: N812 -- torch's own spelling
from torch import Tensor

from mmbert.model.attention.rotary import half_rotary, turn_halves
from mmbert.model.attention.segments import Places

# Queries, keys and values, [tokens, heads, head_dim] each, and how far a query sees on each side (None: its whole
# segment) -> [tokens, heads, head_dim].
Kernel = Callable[[Tensor, Tensor, Tensor, int | None], Tensor]


class KernelPlan:
    """A plan around a kernel. Everything is made of static shapes, so it compiles, and nothing is read from the
    device."""

    def __init__(self, kernel: Kernel, places: Places, max_seqlen: int) -> None:
        self.kernel = kernel
        self.positions = places.positions
        self.max_seqlen = max_seqlen
        self._rotary: dict[float, tuple[Tensor, Tensor]] = {}

    def attend(self, hidden: Tensor, weight: Tensor, heads: int, theta: float, window: int | None) -> Tensor:
        q, k, v = F.linear(hidden, weight).view(len(hidden), 3, heads, -1).unbind(1)
        if theta not in self._rotary:
            self._rotary[theta] = half_rotary(self.positions, theta, q.shape[-1])
        cos, sin = self._rotary[theta]
        reach = None if window is None or self.max_seqlen <= window // 2 + 1 else window // 2
        return self.kernel(turn_halves(q, cos, sin), turn_halves(k, cos, sin), v, reach).flatten(1)
