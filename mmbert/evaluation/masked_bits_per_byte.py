"""Masked bits per byte: how well a model predicts hidden words, in bits per UTF-8 byte of those words.

The same 15% of the words of the same text are hidden for every model. Tokens that overlap a hidden word are replaced
by the mask token; -log2 p of the true tokens is summed and divided by the words' bytes. Two tokenizers hide different
characters around a word, so compare within one tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from mmbert.data.documents import Document
from mmbert.evaluation.packing import BATCH_TOKENS, batches, inference, packed
from mmbert.evaluation.scores import Units, ratio_interval
from mmbert.evaluation.words import chosen_words
from mmbert.model.head import MaskedLanguageModel

MASKED_SHARE = 0.15
_LOGITS = 2**24
"""Logits held at once: 64 MB in fp32, whatever the vocabulary."""


@dataclass(frozen=True)
class DocumentBits:
    """Sums over one document's hidden words."""

    id: str
    bits: float
    bytes: int
    words: int


@dataclass(frozen=True)
class LanguageBits:
    """Sums over one language's hidden words; `documents` are the units of the bootstrap."""

    language: str
    documents: tuple[DocumentBits, ...]

    @property
    def bits(self) -> float:
        return sum(d.bits for d in self.documents)

    @property
    def bytes(self) -> int:
        return sum(d.bytes for d in self.documents)

    @property
    def words(self) -> int:
        return sum(d.words for d in self.documents)

    @property
    def bits_per_byte(self) -> float:
        return self.bits / self.bytes

    def interval(self, samples: int, seed: int) -> tuple[float, float]:
        """95% bootstrap interval of the bits per byte, resampling documents."""
        return bits_interval([self], samples, seed)


@dataclass(frozen=True)
class _Window:
    document: int
    ids: npt.NDArray[np.int64]
    hidden: npt.NDArray[np.int64]
    """Positions within `ids` to hide."""


def masked_bits_per_byte(
    model: MaskedLanguageModel,
    tokenizer: Tokenizer,
    documents: Mapping[str, Sequence[Document]],
    *,
    mask_token_id: int,
    seed: int,
    max_seq_len: int,
    max_bytes: int,
    batch_tokens: int = BATCH_TOKENS,
) -> dict[str, LanguageBits]:
    """Masked bits per byte by language, of at most `max_bytes` bytes of text each (whole documents, at least one).

    Documents of more than `max_seq_len` tokens are cut into windows of that length, each with the tokenizer's template
    around it, so that every hidden word counts whatever the length. A language without a hidden word is left out.
    """
    selected: list[Document] = []
    spans: list[list[tuple[int, int]]] = []
    for language in sorted(documents):
        for document in _budgeted(documents[language], max_bytes):
            chosen = chosen_words(document.text, document.id, seed, MASKED_SHARE)
            if chosen:
                selected.append(document)
                spans.append(chosen)
    windows = _windows(tokenizer, selected, spans, max_seq_len)
    bits = _bits(model, windows, len(selected), mask_token_id, batch_tokens)
    by_language: dict[str, list[DocumentBits]] = {}
    for document, chosen, value in zip(selected, spans, bits, strict=True):
        size = sum(len(document.text[a:b].encode()) for a, b in chosen)
        by_language.setdefault(document.language, []).append(DocumentBits(document.id, float(value), size, len(chosen)))
    return {language: LanguageBits(language, tuple(rows)) for language, rows in by_language.items()}


def total_bits_per_byte(languages: Iterable[LanguageBits]) -> float:
    """All bits over all bytes."""
    rows = list(languages)
    return sum(r.bits for r in rows) / sum(r.bytes for r in rows)


def bits_interval(languages: Iterable[LanguageBits], samples: int, seed: int) -> tuple[float, float]:
    """95% bootstrap interval of `total_bits_per_byte`, resampling documents."""
    documents = [d for language in languages for d in language.documents]
    bits = np.array([d.bits for d in documents])
    sizes = np.array([d.bytes for d in documents], dtype=np.float64)
    return ratio_interval(bits, sizes, samples, seed)


def bits_units(languages: Iterable[LanguageBits]) -> Units:
    """Each document's bits and bytes, whose sums' ratio is `total_bits_per_byte`."""
    documents = [d for language in languages for d in language.documents]
    return Units(tuple(d.bits for d in documents), tuple(float(d.bytes) for d in documents))


def _budgeted(documents: Sequence[Document], max_bytes: int) -> list[Document]:
    taken: list[Document] = []
    total = 0
    for document in documents:
        total += len(document.text.encode())
        if taken and total > max_bytes:
            break
        taken.append(document)
    return taken


def _windows(
    tokenizer: Tokenizer, documents: Sequence[Document], spans: Sequence[list[tuple[int, int]]], max_seq_len: int
) -> list[_Window]:
    template = np.asarray(tokenizer.encode("").ids, dtype=np.int64)
    before, after = _template_sides(tokenizer, template)
    room = max_seq_len - len(template)
    windows = []
    encodings = tokenizer.encode_batch([d.text for d in documents], add_special_tokens=False)
    for index, (encoding, chosen) in enumerate(zip(encodings, spans, strict=True)):
        ids = np.asarray(encoding.ids, dtype=np.int64)
        hidden = _overlapping(np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2), np.asarray(chosen))
        for start in range(0, len(ids), room):
            inside = hidden[(hidden >= start) & (hidden < start + room)]
            if len(inside):
                window = np.concatenate([before, ids[start : start + room], after])
                windows.append(_Window(index, window, inside - start + len(before)))
    return windows


def _template_sides(
    tokenizer: Tokenizer, template: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The tokens that the tokenizer's template puts before and after a text."""
    ones = tokenizer.encode("a").special_tokens_mask
    leading = ones.index(0)
    return template[:leading], template[leading:]


def _overlapping(offsets: npt.NDArray[np.int64], spans: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Positions of the tokens (offsets [T, 2]) that overlap one of the sorted, disjoint spans [N, 2]."""
    following = np.searchsorted(spans[:, 1], offsets[:, 0], side="right")
    candidate = spans[np.minimum(following, len(spans) - 1)]
    overlap = (candidate[:, 0] < offsets[:, 1]) & (candidate[:, 1] > offsets[:, 0])
    return np.flatnonzero(overlap)


def _bits(
    model: MaskedLanguageModel, windows: Sequence[_Window], documents: int, mask_token_id: int, batch_tokens: int
) -> npt.NDArray[np.float64]:
    """-log2 p of the true tokens at the hidden positions, summed by document: [documents]."""
    bits = np.zeros(documents)
    rows = max(1, _LOGITS // model.config.vocab_size)
    with inference(model) as device:
        for batch in batches([len(w.ids) for w in windows], batch_tokens):
            ids, cu_seqlens, longest = packed([windows[i].ids for i in batch], device)
            starts = cu_seqlens[:-1].cpu().numpy()
            positions = np.concatenate([windows[i].hidden + s for i, s in zip(batch, starts, strict=True)])
            owners = np.repeat([windows[i].document for i in batch], [len(windows[i].hidden) for i in batch])
            indices = torch.from_numpy(positions).to(device)
            truth = ids[indices]
            ids[indices] = mask_token_id
            hidden = model.bert(ids, cu_seqlens, longest, indices)
            losses = []
            for chunk in torch.split(torch.arange(len(indices), device=device), rows):
                logits = model.masked_logits(hidden, chunk).float()
                losses.append(torch.logsumexp(logits, dim=1) - logits.gather(1, truth[chunk, None])[:, 0])
            nats = torch.cat(losses).double().cpu().numpy()
            bits += np.bincount(owners, weights=nats, minlength=documents) / np.log(2)
    return bits
