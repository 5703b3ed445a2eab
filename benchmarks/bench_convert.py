"""`mmbert convert` on a checkpoint of mmBERT base as training leaves it: time and memory.

The input is made here, in a folder of its own (--folder keeps it): a Composer checkpoint of 307,786,240 random fp32
weights with StableAdamW's two moments of each, as the original code writes it, 3.7 GB. The command runs as a
subprocess with everything in it: start and imports, the check of every byte, reading, writing the folder, and the
parity gate at 8,192 tokens. The gate's time, which the command says, is taken off and shown by itself. Memory is the
highest resident size of the process and its children (sampled every 50 ms), mapped pages of files included, over the
weights' 1.23 GB.

    .venv/bin/python benchmarks/bench_convert.py [--threads 2] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import psutil
import torch

from mmbert.model.config import EncoderConfig
from mmbert.model.head import TIED_DECODER, TOKEN_EMBEDDING, MaskedLanguageModel

BASE = EncoderConfig(256_000, 768, 1152, 22, 12, global_rope_theta=160_000, local_rope_theta=160_000)
CONTEXT = 8192
WIDTH = 0.02
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")


def original_config(config: EncoderConfig) -> dict[str, object]:
    """What the original code writes of its model into a checkpoint."""
    shape = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return {
        **{key: value for key, value in asdict(config).items() if key in shape},
        "global_attn_every_n_layers": config.global_attn_every_n_layers,
        "sliding_window": config.sliding_window,
        "norm_kwargs": {"eps": config.norm_eps, "bias": False},
        "rotary_emb_base": config.global_rope_theta,
        "local_attn_rotary_emb_base": config.local_rope_theta,
        "max_position_embeddings": CONTEXT,
    }


def make_checkpoint(path: Path) -> int:
    """Write it; the bytes of its weights."""
    generator = torch.Generator().manual_seed(17)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in MaskedLanguageModel(BASE).weights().items()}
    weights = {
        f"model.{name}": torch.ones(shape) if name.endswith("norm.weight") else
        torch.empty(shape).uniform_(-WIDTH, WIDTH, generator=generator)
        for name, shape in shapes.items()
    }  # fmt: skip
    moments = {
        name: {"exp_avg": value * 1e-3, "exp_avg_sq": value.square() * 1e-6, "eps_sq": torch.tensor(1e-16)}
        for name, value in weights.items()
    }
    group = {"lr": 8e-4, "initial_lr": 8e-4, "max_lr": 8e-4, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "step": 100}
    named = dict(zip(SPECIAL, range(len(SPECIAL)), strict=True))
    words = {**named, **{f"w{n}": n for n in range(len(named), BASE.vocab_size)}}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [
            {"id": n, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
             "special": True}
            for t, n in named.items()
        ],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"},
    }  # fmt: skip
    roles = {f"{token.strip('<>')}_token": token for token in SPECIAL}
    state = {
        "model": {**weights, f"model.{TIED_DECODER}": weights[f"model.{TOKEN_EMBEDDING}"]},
        "optimizers": {"StableAdamW": {"state": moments, "param_groups": [group, group]}},
        "schedulers": {},
        "timestamp": {"Timestamp": {"batch": 100, "sample": 460_800, "token": 100_000_000, "epoch": 0}},
        "integrations": {
            "huggingface": {
                "model": {"config": {"content": original_config(BASE)}},
                "tokenizer": {
                    "tokenizer.json": {"content": tokenizer},
                    "special_tokens_map.json": {"content": roles},
                },
            }
        },
    }
    torch.save({"state": state, "rng": []}, path)
    return sum(value.nbytes for value in weights.values())


def resident(process: psutil.Process) -> int:
    """Bytes of the process and its children."""
    total = 0
    try:
        for one in (process, *process.children(recursive=True)):
            total += one.memory_info().rss
    except psutil.NoSuchProcess:
        pass
    return total


def run(command: list[str], threads: int) -> tuple[str, float, int]:
    """Its output, seconds, and the most bytes that were resident."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    begin = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as started:
        process, highest = psutil.Process(started.pid), 0
        while started.poll() is None:
            highest = max(highest, resident(process))
            time.sleep(0.05)
        seconds = time.perf_counter() - begin
        assert started.stdout is not None
        output = started.stdout.read()
    assert started.returncode == 0, output
    return output, seconds, highest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="keeps the checkpoint and finds it again")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-convert-") as scratch:
        folder = arguments.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        path, said = folder / "ep0-ba100-rank0.pt", folder / "weights.json"
        if not said.is_file():
            # In a process of its own, so that this one stays small.
            subprocess.run([sys.executable, __file__, "--make", str(path)], check=True)
        measure(path, Path(scratch) / "model", json.loads(said.read_text("utf-8"))["bytes"], arguments.threads)


def measure(path: Path, out: Path, weight_bytes: int, threads: int) -> None:
    print(
        f"mmBERT base, {weight_bytes / 1e9:.2f} GB of weights in a checkpoint of {path.stat().st_size / 1e9:.2f} GB, "
        f"{CONTEXT:,} tokens, {threads} threads, torch {torch.__version__}"
    )
    command = [sys.executable, "-m", "components.cli", "convert", str(path), str(out)]
    output, seconds, highest = run([*command, "--max-seq-len", str(CONTEXT)], threads)
    print(f"  {output.strip().splitlines()[-1]}")
    found = re.search(r"the comparison took ([\d.]+) s", output)
    assert found, output
    gate = float(found.group(1))
    print(f"  {seconds:.1f} s: {gate:.1f} s parity gate; the rest is start, imports, checks, reading and writing")
    print(f"  {highest / 1e9:.2f} GB resident at most, gate included")
    print(f"figure: convert_base_seconds {seconds - gate:.1f} s (goal <= 60)")
    print(f"figure: convert_base_memory {highest / weight_bytes:.2f} x (goal <= 3)", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--make"]:
        target = Path(sys.argv[2])
        (target.parent / "weights.json").write_text(json.dumps({"bytes": make_checkpoint(target)}), "utf-8")
    else:
        main()
