"""Embeddings of texts: the mean of an encoder's final hidden states."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from mmbert.evaluation.packing import BATCH_TOKENS, Encoder, batches, inference, packed

FloatArray = npt.NDArray[np.float32]


def embed(
    model: Encoder, tokenizer: Tokenizer, texts: Sequence[str], max_seq_len: int, batch_tokens: int = BATCH_TOKENS
) -> FloatArray:
    """The mean hidden state of each text's own tokens (not those of the template): [len(texts), H].

    Texts are cut at `max_seq_len` tokens. A text without tokens gets zeros.
    """
    ids, own = [], []
    for encoding in tokenizer.encode_batch(list(texts)):
        ids.append(np.asarray(encoding.ids[:max_seq_len], dtype=np.int64))
        own.append(1 - np.asarray(encoding.special_tokens_mask[:max_seq_len], dtype=np.float32))
    rows: list[FloatArray | None] = [None] * len(ids)
    with inference(model) as device:
        for batch in batches([len(i) for i in ids], batch_tokens):
            tokens, cu_seqlens, longest = packed([ids[i] for i in batch], device)
            hidden = model.encode(tokens, cu_seqlens, longest).float()
            weights = torch.from_numpy(np.concatenate([own[i] for i in batch])).to(device)
            lengths = (cu_seqlens[1:] - cu_seqlens[:-1]).long()
            segments = torch.repeat_interleave(torch.arange(len(batch), device=device), lengths)
            sums = hidden.new_zeros(len(batch), hidden.shape[1]).index_add_(0, segments, hidden * weights[:, None])
            counts = hidden.new_zeros(len(batch)).index_add_(0, segments, weights)
            means = (sums / counts.clamp(min=1)[:, None]).cpu().numpy()
            for index, row in zip(batch, means, strict=True):
                rows[index] = row
    return np.stack([row for row in rows if row is not None])
