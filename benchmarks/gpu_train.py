"""Training steps on a GPU: tokens/s, MFU, memory and time by part, of each attention back end and loss; and a check.

For a bare machine: torch 2.11 or later, triton, numpy, a C compiler and Python's headers, nothing else. From the
repository's root:

    python benchmarks/gpu_train.py --check                        # back ends and losses against plain arithmetic
    python benchmarks/gpu_train.py --json results.json            # all configurations, a few minutes each size
    python benchmarks/gpu_train.py --only base_1k varlen compiled # names that contain all of these words
    python benchmarks/gpu_train.py --list

A step is forward and backward of `--accumulate` constant-shape microbatches in bf16 autocast, then StableAdamW, as a
phase trains. Tokens are real ones: padding counts in the time alone. Documents' lengths are drawn from a log-normal
distribution with a printed seed and packed into rows. A configuration that fails is told in its row; the rest goes on.
`--device cpu --tiny` runs every path at a toy size; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.attention.flex_attention as flex_module
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from gpu_check import check  # noqa: E402
from gpu_parts import time_by_part  # noqa: E402

from mmbert.loader.batch import Batch, Part, ShapeFiller, make_batch, microbatch_shape, split_microbatches  # noqa: E402
from mmbert.model.attention.choose import FASTEST_FIRST, choose_attention, missing  # noqa: E402
from mmbert.model.config import EncoderConfig  # noqa: E402
from mmbert.model.head import MaskedLanguageModel  # noqa: E402
from mmbert.model.initialization import new_model  # noqa: E402
from mmbert.model.loss import linear_cross_entropy  # noqa: E402
from mmbert.planning.flops import step_flops  # noqa: E402
from mmbert.planning.gpus import peak_bf16_flops  # noqa: E402
from mmbert.training.optimizer import StableAdamW, parameter_groups  # noqa: E402

SEED = 17
# The first is what training uses there.
LOSSES = {"cuda": ("fused", "chunked", "plain"), "cpu": ("blocked", "chunked", "plain")}


@dataclasses.dataclass(frozen=True)
class Size:
    """A model and its batches. Documents have a median and a sigma (of the logarithm) of their length in tokens."""

    config: EncoderConfig
    max_seq_len: int
    rows: int
    mask_probability: float
    median: int
    sigma: float


def _mmbert(hidden: int, heads: int) -> EncoderConfig:
    """The published shapes, with the thetas of the long phase; dropout as in training."""
    return EncoderConfig(256_000, hidden, 1152, 22, heads, global_rope_theta=160_000.0)


_BASE, _SMALL = _mmbert(768, 12), _mmbert(384, 6)
_TINY = EncoderConfig(512, 64, 96, 2, 4)
SIZES = {
    "base_1k": Size(_BASE, 1024, 48, 0.30, 300, 1.1),
    "small_1k": Size(_SMALL, 1024, 48, 0.30, 300, 1.1),
    "base_8k": Size(_BASE, 8192, 6, 0.15, 1000, 1.2),
    "small_8k": Size(_SMALL, 8192, 8, 0.15, 1000, 1.2),
    # More rows than the recipe's, and short documents.
    "small_1k_96": Size(_SMALL, 1024, 96, 0.30, 300, 1.1),
    "base_1k_short": Size(_BASE, 1024, 48, 0.30, 60, 0.8),
}
TINY_SIZES = {"tiny_256": Size(_TINY, 256, 4, 0.30, 60, 1.0)}


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row of the table."""

    size: str
    attention: str
    loss: str
    compiled: bool

    @property
    def name(self) -> str:
        return "/".join([self.size, self.attention, self.loss, "compiled" if self.compiled else "eager"])


def variants(sizes: dict[str, Size], best: str, losses: Sequence[str]) -> list[Variant]:
    """Each back end compiled and not, with the loss of training; then each other loss with the best back end."""
    found = []
    for size in sizes:
        found += [
            Variant(size, attention, losses[0], compiled)
            for attention in FASTEST_FIRST
            for compiled in (True, False)
            # SDPA's steps depend on the segments' lengths, so it does not compile.
            if not (compiled and attention == "sdpa")
        ]
        found += [Variant(size, best, loss, best != "sdpa") for loss in losses[1:]]
    return found


def packed_rows(rng: np.random.Generator, size: Size, rows: int) -> list[list[int]]:
    """Lengths of the segments of so many rows: each piece goes to the fullest row that holds it.

    Documents longer than a row are cut into pieces, as the loader does.
    """
    packed: list[list[int]] = [[] for _ in range(rows)]
    free = np.full(rows, size.max_seq_len)
    misses = 0
    while misses < 64:
        length = max(8, int(rng.lognormal(np.log(size.median), size.sigma)))
        pieces = [size.max_seq_len] * (length // size.max_seq_len) + [length % size.max_seq_len]
        for piece in filter(None, pieces):
            fitting = np.where(free >= piece, free, size.max_seq_len + 1)
            row = int(fitting.argmin())
            if fitting[row] > size.max_seq_len:
                misses += 1
            else:
                packed[row].append(piece)
                free[row] -= piece
    return [row or [8] for row in packed]


def global_batch(size: Size, accumulate: int) -> Batch:
    rng = np.random.default_rng(SEED)
    lengths = packed_rows(rng, size, size.rows * accumulate)
    row_tokens = np.array([sum(row) for row in lengths])
    masked = [np.flatnonzero(rng.random(n) < size.mask_probability) for n in row_tokens]
    counts = np.array([len(m) for m in masked])
    tokens = rng.integers(5, size.config.vocab_size, row_tokens.sum()).astype(np.uint32)
    part = Part(
        tokens=tokens,
        segment_lengths=np.concatenate([np.array(row) for row in lengths]),
        masked=np.concatenate(masked),
        targets=rng.integers(5, size.config.vocab_size, counts.sum()).astype(np.uint32),
        masked_streams=np.zeros(counts.sum(), np.int32),
        row_tokens=row_tokens,
        row_segments=np.array([len(row) for row in lengths]),
        row_masked=counts,
        stream_tokens=np.array([row_tokens.sum()]),
        states={},
    )
    return make_batch(part, size.max_seq_len, "")


def microbatches(size: Size, batch: Batch, device: torch.device) -> list[Batch]:
    shape = microbatch_shape(size.rows, size.max_seq_len, size.mask_probability, size.config.pad_token_id)
    fill = ShapeFiller(shape)
    split = split_microbatches(batch, size.rows)
    for part in split:
        fill(part)
    # In the shape that training has come to after its first batches.
    parts = [fill(part) for part in split]
    return [part.pin_memory() for part in parts] if device.type == "cuda" else parts


def step(
    model: MaskedLanguageModel,
    optimizer: torch.optim.Optimizer,
    parts: list[Batch],
    loss: str,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    optimizer.zero_grad(set_to_none=True)
    masked = sum(part.masked for part in parts)
    for part in parts:
        # SDPA reads the borders on the host, where they come from.
        borders = part.cu_seqlens
        moved = part.to(device, non_blocking=True)
        if not model.bert.attention.host_borders:
            borders = moved.cu_seqlens
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            hidden = model.masked_hidden(moved.input_ids, borders, part.max_seqlen, moved.masked_indices)
            decoder = model.decoder
            total = linear_cross_entropy(hidden, decoder.weight, decoder.bias, moved.targets, loss).total / masked
        total.backward()
    optimizer.step()


@functools.lru_cache(maxsize=1)
def _initial_weights(config: EncoderConfig) -> dict[str, Tensor]:
    """Drawn once a size: for the base model this takes longer than its steps."""
    return new_model(config, SEED).weights()


def fresh_model(config: EncoderConfig, attention: str) -> MaskedLanguageModel:
    with torch.device("meta"):
        model = MaskedLanguageModel(config, attention)
    model = model.to_empty(device="cpu")
    model.decoder.weight = model.bert.embeddings.tok_embeddings.weight
    model.load_weights(_initial_weights(config))
    return model


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure(variant: Variant, size: Size, arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """The figures of one configuration. Raises whatever goes wrong in it."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    reason = missing(variant.attention, device, dtype)
    if reason is not None and not (variant.attention == "flex" and device.type == "cpu"):
        raise RuntimeError(reason)
    model = fresh_model(size.config, variant.attention).to(device).train()
    if variant.compiled:
        model.compile_for_training("inductor" if device.type == "cuda" else "eager")
    optimizer = StableAdamW(parameter_groups(model.named_parameters(), 1e-5), lr=1e-4)
    batch = global_batch(size, arguments.accumulate)
    parts = microbatches(size, batch, device)
    loss = variant.loss

    begin = time.perf_counter()
    step(model, optimizer, parts[:1], loss, device, dtype)
    synchronize(device)
    first = time.perf_counter() - begin
    step(model, optimizer, parts, loss, device, dtype)
    synchronize(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(arguments.steps):
        begin = time.perf_counter()
        step(model, optimizer, parts, loss, device, dtype)
        synchronize(device)
        seconds.append(time.perf_counter() - begin)
    middle = statistics.median(seconds)
    lengths = batch.cu_seqlens.diff().numpy().astype(np.int64)
    flops = step_flops(size.config, batch.tokens, batch.masked, lengths)
    peak = peak_bf16_flops(torch.cuda.get_device_name()) if device.type == "cuda" else None
    figures: dict[str, Any] = {
        "tokens_per_second": batch.tokens / middle,
        "mfu": flops.total / middle / peak if peak else None,
        "tflops_per_second": flops.total / middle / 1e12,
        "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None,
        "step_seconds": seconds,
        "first_microbatch_seconds": first,
        "tokens_a_step": batch.tokens,
        "masked_a_step": batch.masked,
        "segments_a_step": len(lengths),
        "mean_attended_length": float((lengths**2).sum() / lengths.sum()),
        "padding_share": 1 - batch.tokens / sum(len(part.input_ids) for part in parts),
    }
    try:
        figures["parts_ms_a_microbatch"] = time_by_part(model, optimizer, parts[0], loss, device, dtype)
    except Exception as error:  # the figures before stand without it
        figures["parts_error"] = _told(error)
    return figures


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0][:300]


def run(
    selected: list[Variant], sizes: dict[str, Size], arguments: argparse.Namespace, about: dict[str, Any]
) -> list[dict[str, Any]]:
    device = torch.device(arguments.device)
    print(f"seed {SEED}, {arguments.accumulate} microbatches a step, {arguments.steps} timed steps; times in ms")
    print(f"{'configuration':34} {'tokens/s':>9} {'MFU':>6} {'GiB':>6} {'step':>8}  parts of a microbatch")
    results = []
    for variant in selected:
        row: dict[str, Any] = {"name": variant.name, **dataclasses.asdict(variant)}
        try:
            row |= measure(variant, sizes[variant.size], arguments, device)
        except Exception as error:  # one configuration's failure is its result
            row["error"] = _told(error)
        results.append(row)
        print(_line(row), flush=True)
        if arguments.json:
            write(arguments.json, {**about, "results": results})
        if not _usable(device):
            print("the GPU's context is lost, so nothing further can be measured; run the rest again", file=sys.stderr)
            break
        torch._dynamo.reset()
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return results


def _usable(device: torch.device) -> bool:
    """Whether the device still computes: an illegal access, say, makes every later call of the process fail."""
    try:
        synchronize(device)
    except RuntimeError:
        return False
    return True


def write(file: Path, figures: dict[str, Any]) -> None:
    """The whole file again after each row: what was measured is kept, whatever ends the script."""
    part = file.with_name(file.name + ".part")
    part.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    part.replace(file)


def _line(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"{row['name']:34} failed: {row['error']}"
    mfu = f"{row['mfu']:.1%}" if row["mfu"] else "-"
    memory = f"{row['peak_memory_gib']:.1f}" if row["peak_memory_gib"] else "-"
    parts = ", ".join(f"{name} {value:.1f}" for name, value in row.get("parts_ms_a_microbatch", {}).items())
    parts = parts or f"not known: {row['parts_error']}"
    middle = 1000 * statistics.median(row["step_seconds"])
    return f"{row['name']:34} {row['tokens_per_second']:9,.0f} {mfu:>6} {memory:>6} {middle:8,.0f}  {parts}"


def surroundings(device: torch.device) -> dict[str, Any]:
    """What the figures hold for."""
    cuda = device.type == "cuda"
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "chip": torch.cuda.get_device_name() if cuda else f"{os.cpu_count()} CPU cores",
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "commit": _commit(),
        "seed": SEED,
    }


def _commit() -> str | None:
    """The commit of the checkout, marked where files differ from it; without git, what COMMIT says."""
    try:
        git = ["git", "-C", str(ROOT)]
        commit = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True, stderr=subprocess.DEVNULL).strip()
        changed = subprocess.check_output([*git, "status", "--porcelain", "mmbert", "benchmarks"], text=True).strip()
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("COMMIT")
    return f"{commit} with changes" if changed else commit


def selected_variants(arguments: argparse.Namespace, sizes: dict[str, Size], best: str) -> Iterator[Variant]:
    for variant in variants(sizes, best, LOSSES[arguments.device]):
        words = variant.name.split("/")
        if all(word in words for word in arguments.only):
            yield variant


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of measuring; exit status 1 on failure")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="configurations with all of these words")
    parser.add_argument("--list", action="store_true", help="print the configurations' names")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a toy size")
    parser.add_argument("--steps", type=int, default=3, help="timed steps (default 3)")
    parser.add_argument("--accumulate", type=int, default=12, help="microbatches a step (default 12)")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("torch finds no CUDA device; --device cpu --tiny tries the script without one", file=sys.stderr)
        return 2
    if device.type == "cpu":
        # torch refuses FlexAttention's backward on CPU, because the compiled CPU kernel has none; uncompiled it works.
        flex_module._validate_device = lambda *_: None  # type: ignore[assignment]
    if device.type == "cuda" and not any(map(shutil.which, (os.environ.get("CC", ""), "cc", "gcc", "clang"))):
        print(
            "triton and inductor need a C compiler and Python's headers; install gcc and python3-dev (or name a "
            "compiler in CC)",
            file=sys.stderr,
        )
        return 2
    if arguments.check:
        return check(LOSSES[arguments.device], device, tiny=arguments.tiny)
    sizes = TINY_SIZES if arguments.tiny else SIZES
    best = choose_attention("auto", device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    selected = list(selected_variants(arguments, sizes, best))
    if not selected:
        print("no configuration has all of these words; --list prints their names", file=sys.stderr)
        return 2
    if arguments.list:
        print("\n".join(variant.name for variant in selected))
        return 0
    about = surroundings(device)
    print(", ".join(f"{key} {value}" for key, value in about.items() if value is not None))
    results = run(selected, sizes, arguments, about)
    return 0 if any("error" not in row for row in results) else 1


if __name__ == "__main__":
    sys.exit(main())
