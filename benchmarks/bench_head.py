"""The masked-LM head's loss against the plain one: time, and memory beyond weights, inputs and their gradients.

256,000 words, hidden 384, forward and backward of prediction head, decoder and loss; the plain one is torch's linear
layer, all logits at once, and torch's cross-entropy. Both have the same weights, inputs and targets, and must give the
same loss and gradients (sampled). On the CPU 4,096 masked rows in fp32; on a CUDA device 16,384 rows in fp32.

Every measurement is a process of its own, one at a time, ours and the plain one in turn. Memory on the CPU is the
system's highest resident size (VmHWM) since it was reset before the step (/proc/self/clear_refs), less what was
resident then, less the gradients that stay. The first step is the one that memory is taken of; time is the quickest
later one (`--steps`).

    .venv/bin/python benchmarks/bench_head.py [--threads 2] [--rounds 1] [--steps 1]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

# As training runs here, for both sides: threads that wait by spinning crawl beside other work.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import torch

from mmbert.model.config import EncoderConfig
from mmbert.model.head import PredictionHead
from mmbert.model.loss import linear_cross_entropy

SEED, WORDS, WIDTH = 17, 256_000, 384


def resident_bytes(key: str) -> int:
    """VmRSS (now) or VmHWM (highest since the last reset)."""
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text("ascii"))
    assert found, f"/proc/self/status has no {key}"
    return int(found.group(1)) * 1024


def measure(implementation: str, rows: int, device: str, steps: int) -> dict[str, object]:
    """One process's part: extra memory in bytes, the quickest step in seconds, and numbers to compare."""
    generator = torch.Generator().manual_seed(SEED)
    head = PredictionHead(EncoderConfig(WORDS, WIDTH, 2 * WIDTH, 4, WIDTH // 64))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(1 + 0.1 * torch.randn(parameter.shape, generator=generator))
        head.dense.weight.sub_(1)
    head.to(device)
    inputs = {
        "hidden": torch.randn(rows, WIDTH, generator=generator),
        "weight": torch.randn(WORDS, WIDTH, generator=generator).mul_(0.02),
        "bias": torch.randn(WORDS, generator=generator).mul_(0.02),
    }
    inputs = {name: value.to(device).requires_grad_() for name, value in inputs.items()}
    targets = torch.randint(WORDS, (rows,), generator=generator).to(device)
    leaves = [*inputs.values(), *head.parameters()]
    cuda = device == "cuda"

    def step() -> torch.Tensor:
        for leaf in leaves:
            leaf.grad = None
        hidden = head(inputs["hidden"])
        total = linear_cross_entropy(hidden, inputs["weight"], inputs["bias"], targets, implementation).total  # type: ignore[arg-type]
        mean = total / rows
        mean.backward()
        if cuda:
            torch.cuda.synchronize()
        return mean

    if cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5", "ascii")
        before = resident_bytes("VmRSS")
    loss = step()
    highest = torch.cuda.max_memory_allocated() if cuda else resident_bytes("VmHWM")
    gradients = sum(leaf.grad.nbytes for leaf in leaves if leaf.grad is not None)
    sample = torch.arange(0, rows, rows // 16)
    compared = [loss.item()]
    for name, value in inputs.items():
        assert value.grad is not None, name
        picked = value.grad if name == "hidden" else value.grad[targets[sample]]
        compared += [value.grad.norm().item(), picked.flatten()[:5000:7].norm().item()]
    seconds = []
    for _ in range(steps):
        begin = time.perf_counter(), time.process_time()
        step()
        seconds.append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
    wall, processor = (min(values) for values in zip(*seconds, strict=True))
    return {"bytes": highest - before - gradients, "seconds": wall, "processor": processor, "compared": compared}


def measure_apart(implementation: str, arguments: argparse.Namespace) -> dict[str, object]:
    command = [sys.executable, __file__, "--measure", implementation]
    for name in ("rows", "device", "steps", "threads"):
        command += [f"--{name}", str(getattr(arguments, name))]
    result: dict[str, object] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return result


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1, help="pairs of processes")
    parser.add_argument("--steps", type=int, default=1, help="timed steps a process, after the first")
    parser.add_argument("--device", choices=["cpu", "cuda"], default=device)
    parser.add_argument("--rows", type=int, help="masked rows; 4096 on the CPU, 16384 on CUDA")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.rows = arguments.rows or (16_384 if arguments.device == "cuda" else 4096)
    torch.set_num_threads(arguments.threads)
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.rows, arguments.device, arguments.steps)))
        return
    print(
        f"{WORDS:,} words, hidden {WIDTH}, {arguments.rows:,} rows, {arguments.device}, {arguments.threads} threads, "
        f"seed {SEED}, torch {torch.__version__}"
    )
    found: dict[str, list[dict[str, object]]] = {"plain": [], "auto": []}
    for _ in range(arguments.rounds):
        for implementation, results in found.items():
            results.append(measure_apart(implementation, arguments))
    torch.testing.assert_close(found["auto"][0]["compared"], found["plain"][0]["compared"], rtol=1e-3, atol=1e-6)
    best = {}
    for name, results in found.items():
        best[name] = [min(float(str(result[key])) for result in results) for key in ("bytes", "seconds", "processor")]
        label = "ours" if name == "auto" else name
        beyond, seconds, processor = best[name]
        print(f"  {label:6} {beyond / 2**20:8,.0f} MiB beyond weights, inputs and gradients", end="")
        print(f"  {seconds:7.2f} s ({processor:.2f} s of processor time)")
    memory, time_ratio, _ = (ours / plain for ours, plain in zip(best["auto"], best["plain"], strict=True))
    print(f"figure: head_memory {memory:.3f} ratio (goal <= 0.15)")
    print(f"figure: head_time {time_ratio:.2f} x (goal <= 1)", flush=True)


if __name__ == "__main__":
    main()
