"""Embeddings of texts: the mean of an encoder's hidden states after the middle layer.

The last layers of a masked language model turn back to the vocabulary of the one language at hand; the middle is where
languages share most. The layer is fixed by depth, never tuned, so an untrained model is measured the same way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import nn

from mmbert.evaluation.packing import BATCH_TOKENS, batches, inference, packed
from mmbert.model.head import MaskedLanguageModel

FloatArray = npt.NDArray[np.float32]


def embed(
    model: MaskedLanguageModel,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    max_seq_len: int,
    batch_tokens: int = BATCH_TOKENS,
) -> FloatArray:
    """The mean hidden state of each text's own tokens (not those of the template): [len(texts), hidden_size].

    Texts are cut at `max_seq_len` tokens. A text without tokens gets zeros.
    """
    ids, own = [], []
    for encoding in tokenizer.encode_batch(list(texts)):
        ids.append(np.asarray(encoding.ids[:max_seq_len], dtype=np.int64))
        own.append(1 - np.asarray(encoding.special_tokens_mask[:max_seq_len], dtype=np.float32))
    means = np.zeros((len(ids), model.config.hidden_size), dtype=np.float32)
    with inference(model) as device, first_half(model):
        for batch in batches([len(i) for i in ids], batch_tokens):
            tokens, cu_seqlens, longest = packed([ids[i] for i in batch], device)
            hidden = model.encode(tokens, cu_seqlens, longest).float()
            weights = torch.from_numpy(np.concatenate([own[i] for i in batch])).to(device)
            lengths = (cu_seqlens[1:] - cu_seqlens[:-1]).long()
            segments = torch.repeat_interleave(torch.arange(len(batch), device=device), lengths)
            sums = hidden.new_zeros(len(batch), hidden.shape[1]).index_add_(0, segments, hidden * weights[:, None])
            counts = hidden.new_zeros(len(batch)).index_add_(0, segments, weights)
            means[batch] = (sums / counts.clamp(min=1)[:, None]).cpu().numpy()
    return means


@contextlib.contextmanager
def first_half(model: MaskedLanguageModel) -> Iterator[None]:
    """`encode` gives the residual stream after half of the layers (rounded down, at least one), before any final norm.

    All layers and the norm are put back afterwards.
    """
    encoder = model.bert
    layers, norm = encoder.encoder.layers, encoder.final_norm
    encoder.encoder.layers, encoder.final_norm = layers[: max(1, len(layers) // 2)], nn.Identity()  # type: ignore[assignment]
    try:
        yield
    finally:
        encoder.encoder.layers, encoder.final_norm = layers, norm
