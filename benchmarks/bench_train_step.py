"""A training step's tokens/s on the CPU, against transformers' ModernBertForMaskedLM with the same weights and tokens.

Both in fp32, forward and backward, without optimiser; runs interleaved, medians told. The peer gets padded batches,
SDPA and `sparse_prediction` (only masked rows go through its head). Lengths are those of the demo's sentences.

    .venv/bin/python benchmarks/bench_train_step.py [--threads 2] [--rounds 9]
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from transformers import ModernBertForMaskedLM

from mmbert.model.config import EncoderConfig
from mmbert.model.initialization import new_model
from mmbert.release.checkpoints import save_weights
from mmbert.release.hugging_face import model_config, to_hugging_face_names

SEED, TOKENS, MASKED = 17, 4096, 0.30
CONFIG = EncoderConfig(
    vocab_size=8192,
    hidden_size=128,
    intermediate_size=192,
    num_hidden_layers=4,
    num_attention_heads=4,
    attention_output_dropout=0.0,
)


def sentence_lengths(rng: np.random.Generator) -> list[int]:
    """Lengths in tokens that add up to TOKENS, drawn from the demo's sentences at 2.7 bytes a token."""
    lines = resources.files("eld").joinpath("tests/data/big-test.txt").read_text("utf-8").splitlines()
    drawn: list[int] = []
    while sum(drawn) < TOKENS:
        drawn.append(max(4, int(len(lines[rng.integers(len(lines))].encode()) / 2.7)))
    drawn[-1] -= sum(drawn) - TOKENS
    return [n for n in drawn if n > 0]


def peer_model(model: torch.nn.Module) -> ModernBertForMaskedLM:
    """The same weights in transformers' model."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = model_config(CONFIG, 512) | {"sparse_prediction": True}
        (folder / "config.json").write_text(json.dumps(settings), "utf-8")
        save_weights(to_hugging_face_names(model.weights()), folder / "model.safetensors")
        return ModernBertForMaskedLM.from_pretrained(folder, attn_implementation="sdpa", dtype=torch.float32).train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rng = np.random.default_rng(SEED)
    lengths = sentence_lengths(rng)
    ids = torch.from_numpy(rng.integers(5, CONFIG.vocab_size, TOKENS))
    borders = np.concatenate([[0], np.cumsum(lengths)])
    masked = torch.from_numpy(np.sort(rng.choice(TOKENS, int(MASKED * TOKENS), replace=False)))
    targets = ids[masked]

    ours = new_model(CONFIG, SEED).train()
    peer = peer_model(ours)
    cu_seqlens = torch.from_numpy(borders.astype(np.int32))
    padded = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    attention, labels = torch.zeros_like(padded), torch.full_like(padded, -100)
    flat_labels = torch.full((TOKENS,), -100).index_copy(0, masked, targets)
    for row, (begin, end) in enumerate(itertools.pairwise(borders)):
        padded[row, : end - begin], attention[row, : end - begin] = ids[begin:end], 1
        labels[row, : end - begin] = flat_labels[begin:end]

    def step_ours() -> float:
        ours.zero_grad()
        loss = ours(ids, cu_seqlens, max(lengths), masked, targets).total / len(targets)
        loss.backward()
        return float(loss)

    def step_peer() -> float:
        peer.zero_grad()
        loss = peer(padded, attention_mask=attention, labels=labels).loss
        loss.backward()
        return float(loss)

    assert abs(step_ours() - step_peer()) < 1e-3, "the two do not compute the same loss"
    seconds: dict[str, list[float]] = {"ours": [], "transformers": []}
    steps: dict[str, Callable[[], float]] = {"ours": step_ours, "transformers": step_peer}
    for _ in range(arguments.rounds):
        for name, step in steps.items():
            begin_time = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - begin_time)
    ratio = statistics.median(b / a for a, b in zip(seconds["ours"], seconds["transformers"], strict=True))
    share = 1 - TOKENS / padded.numel()
    print(f"seed {SEED}, {len(lengths)} segments, padding {share:.0%} of the peer's batch, {arguments.threads} threads")
    for name, values in seconds.items():
        middle = statistics.median(values)
        print(
            f"{name:13} {TOKENS / middle:9,.0f} tokens/s  "
            f"(median of {len(values)}, {min(values):.3f}-{max(values):.3f} s)"
        )
    print(f"figure: train_step_vs_transformers {ratio:.2f} x")


if __name__ == "__main__":
    main()
