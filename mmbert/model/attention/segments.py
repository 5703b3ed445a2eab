"""Where each token of a packed row stands, worked out on the device without reading anything back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Places(NamedTuple):
    """`segments` [tokens] int32: the segment of each token. `positions` [tokens] int32: its place there, from 0."""

    segments: Tensor
    positions: Tensor


def places(cu_seqlens: Tensor, tokens: int) -> Places:
    """The places of `tokens` tokens under `cu_seqlens` [segments + 1] int32; repeated ends (empty segments) are fine.

    `tokens`, which must be the last of `cu_seqlens`, is given so that no host waits for the device.
    """
    numbers = torch.arange(tokens, device=cu_seqlens.device, dtype=torch.int32)
    segments = torch.bucketize(numbers, cu_seqlens, right=True, out_int32=True) - 1
    return Places(segments, numbers - cu_seqlens.index_select(0, segments))
