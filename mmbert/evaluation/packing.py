"""Running an encoder over many sequences at once: sorted by length, packed without padding."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mmbert.model.head import MaskedLanguageModel

BATCH_TOKENS = 8192


@contextlib.contextmanager
def inference(model: MaskedLanguageModel) -> Iterator[torch.device]:
    """Evaluation mode without gradients; the model's mode is put back afterwards. Gives the model's device."""
    before = model.training
    model.train(False)
    try:
        with torch.inference_mode():
            yield next(model.parameters()).device
    finally:
        model.train(before)


def batches(lengths: Sequence[int], batch_tokens: int = BATCH_TOKENS) -> list[list[int]]:
    """Indices of sequences of similar length, at most `batch_tokens` tokens together (a longer one stands alone)."""
    made: list[list[int]] = []
    total = batch_tokens
    for index in np.argsort(np.asarray(lengths, dtype=np.int64), kind="stable"):
        if total + lengths[index] > batch_tokens:
            made.append([])
            total = 0
        made[-1].append(int(index))
        total += lengths[index]
    return made


def packed(sequences: Sequence[npt.NDArray[np.int64]], device: torch.device) -> tuple[Tensor, Tensor, int]:
    """Sequences as one row: token ids [T] int64, cu_seqlens [S + 1] int32, longest length."""
    lengths = np.fromiter((len(s) for s in sequences), dtype=np.int32, count=len(sequences))
    bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    ids = torch.from_numpy(np.concatenate(sequences)).to(device)
    return ids, torch.from_numpy(bounds).to(device), int(lengths.max())
