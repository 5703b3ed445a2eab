"""Inference on documents of very different lengths: tokens/s packed without padding over padded, with equal weights.

Lengths are drawn uniformly from 1 to the maximum, with a printed seed. The padded sides take the documents in the order
drawn, 32 at a time, each batch as wide as its longest: transformers' ModernBERT with SDPA, and this project's encoder
over the same padded rows. The unpadded side is the way evaluation runs a model (`mmbert.evaluation.packing`): sorted by
length, packed to 4,096 tokens. Tokens are the documents' own; hidden states of every document must agree first.

All sides run in each round, one after the other; a side's time is that of its quickest round, since other work on the
machine only ever adds. The figure is over the faster of the padded sides, and the smaller one of both models.

    .venv/bin/python benchmarks/bench_variable_length.py [--threads 2] [--rounds 3]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

# As training runs here, for every side: threads that wait by spinning crawl beside other work.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import torch
from torch import Tensor
from transformers import ModernBertModel
from transformers.utils import logging

from mmbert.evaluation.packing import batches, inference, packed
from mmbert.model.config import EncoderConfig
from mmbert.model.head import MaskedLanguageModel
from mmbert.model.initialization import new_model
from mmbert.release.checkpoints import save_weights
from mmbert.release.hugging_face import model_config, to_hugging_face_names

SEED, LONGEST, BATCH_DOCUMENTS, BATCH_TOKENS = 17, 512, 32, 4096
WORDS, SPECIAL_TOKENS = 8192, 5
TINY = EncoderConfig(
    vocab_size=WORDS,
    hidden_size=128,
    intermediate_size=192,
    num_hidden_layers=4,
    num_attention_heads=4,
    attention_output_dropout=0.0,
)
SMALL = dataclasses.replace(TINY, hidden_size=384, intermediate_size=1152, num_hidden_layers=7, num_attention_heads=6)
SIZES = {"tiny": (TINY, 64), "mmBERT small's layers, 7 of 22": (SMALL, 32)}
"""Each model and how many documents it reads in a round."""

Ids = npt.NDArray[np.int64]


def peer_model(model: MaskedLanguageModel) -> ModernBertModel:
    """The same weights in transformers' model."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(model_config(model.config, LONGEST)), "utf-8")
        save_weights(to_hugging_face_names(model.weights()), folder / "model.safetensors")
        return ModernBertModel.from_pretrained(folder, attn_implementation="sdpa", dtype=torch.float32).eval()


def padded_batches(documents: list[Ids]) -> list[tuple[Tensor, Tensor]]:
    """Ids and attention mask, [documents, longest] each, in the order given."""
    made = []
    for begin in range(0, len(documents), BATCH_DOCUMENTS):
        rows = [torch.from_numpy(document) for document in documents[begin : begin + BATCH_DOCUMENTS]]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        made.append((ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long()))
    return made


def unpadded(model: MaskedLanguageModel, documents: list[Ids]) -> list[Tensor]:
    """Hidden states of each document, [tokens, width]."""
    found: list[Tensor] = [torch.empty(0)] * len(documents)
    lengths = [len(document) for document in documents]
    with inference(model) as device:
        for batch in batches(lengths, BATCH_TOKENS):
            hidden = model.encode(*packed([documents[n] for n in batch], device))
            for number, states in zip(batch, hidden.split([lengths[n] for n in batch]), strict=True):
                found[number] = states
    return found


def padded_peer(peer: ModernBertModel, padded: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    with torch.inference_mode():
        hidden = [peer(input_ids=ids, attention_mask=mask).last_hidden_state for ids, mask in padded]
    found: list[Tensor] = []
    for states, (_, masks) in zip(hidden, padded, strict=True):
        found += [row[mask.bool()] for row, mask in zip(states, masks, strict=True)]
    return found


def padded_ours(model: MaskedLanguageModel, padded: list[tuple[Tensor, Tensor]]) -> None:
    """The work of padded rows: each row is a segment as long as its batch is wide."""
    with inference(model):
        for ids, _ in padded:
            width = ids.shape[1]
            model.encode(ids.flatten(), torch.arange(0, ids.numel() + 1, width, dtype=torch.int32), width)


def compare(name: str, config: EncoderConfig, count: int, rounds: int) -> float:
    """Tokens/s unpadded over those of the faster padded side."""
    rng = np.random.default_rng(SEED)
    lengths = rng.integers(1, LONGEST + 1, count)
    documents = [rng.integers(SPECIAL_TOKENS, WORDS, length) for length in lengths]
    padded = padded_batches(documents)
    model = new_model(config, SEED).eval()
    peer = peer_model(model)
    for ours, theirs in zip(unpadded(model, documents), padded_peer(peer, padded), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4, msg="the two do not compute the same")
    padded_ours(model, padded)

    sides: dict[str, Callable[[], object]] = {
        "unpadded": lambda: unpadded(model, documents),
        "padded, transformers": lambda: padded_peer(peer, padded),
        "padded, ours": lambda: padded_ours(model, padded),
    }
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, work in sides.items():
            begin = time.perf_counter()
            work()
            seconds[side].append(time.perf_counter() - begin)
    tokens, places = int(lengths.sum()), sum(ids.numel() for ids, _ in padded)
    print(f"{name}: {count} documents, lengths 1 to {LONGEST}, {tokens:,} tokens, padding {1 - tokens / places:.0%}")
    speeds = {side: tokens / min(times) for side, times in seconds.items()}
    for side, speed in speeds.items():
        quickest, slowest = min(seconds[side]), max(seconds[side])
        gain = speeds["unpadded"] / speed
        print(f"  {side:21} {speed:8,.0f} tokens/s  {quickest:.2f}-{slowest:.2f} s a round  unpadded is {gain:.2f} x")
    return speeds["unpadded"] / max(speed for side, speed in speeds.items() if side != "unpadded")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    print(f"seed {SEED}, {arguments.threads} threads, torch {torch.__version__}, fp32")
    gains = [compare(name, config, count, arguments.rounds) for name, (config, count) in SIZES.items()]
    print(f"figure: variable_length_gain {min(gains):.2f} x (goal >= 1.9)", flush=True)


if __name__ == "__main__":
    main()
