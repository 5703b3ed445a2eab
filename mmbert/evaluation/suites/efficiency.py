"""The suite `efficiency`: tokens/s and peak memory at 512 and 8192 tokens, with equal and with variable lengths.

The model without padding (`packed`), padded in transformers and in onnxruntime, and untrained peers of equal size:
XLM-R's and mGTE's architectures as transformers has them. XLM-R is measured at 512 tokens only, the most it can read.
Figures of one machine compare with each other alone.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from mmbert.evaluation.scores import Score, ratio_interval
from mmbert.evaluation.suites.base import ModelFolder, Setup, Suite, Task
from mmbert.evaluation.suites.efficiency_run import Measured, Spec, measured

NAME = "efficiency"
VARIANTS = ("packed", "transformers", "onnx", "xlm-r", "mgte")
LENGTHS = (512, 8192)
SETTINGS: dict[str, Any] = {"tokens_cpu": 16_384, "tokens_gpu": 2_000_000, "seconds": 20.0, "batch_tokens": 16_384}
"""The documents' tokens by device; for how long passes over them are repeated; tokens a batch, padding included."""

_VERSION = 1
_XLM_R_LONGEST = 512


def _run(variant: str, length: int, variable: bool, name: str, model: ModelFolder, setup: Setup) -> list[Score]:
    on_gpu = setup.device != "cpu"
    spec = Spec(
        folder=model.path,
        variant=variant,
        length=length,
        variable=variable,
        tokens=setup.settings["tokens_gpu" if on_gpu else "tokens_cpu"],
        seconds=setup.settings["seconds"],
        batch_tokens=setup.settings["batch_tokens"],
        seed=setup.seeds[0],
        device=setup.device,
        scratch=setup.scratch,
    )
    found = measured(spec)
    settings = {
        **setup.settings,
        "device": _device(setup.device),
        "precision": "bf16" if on_gpu else "fp32",
        "documents": found.documents,
        "padding": round(found.padding, 4),
    }
    return _scores(name, found, settings, setup)


def _scores(name: str, found: Measured, settings: dict[str, Any], setup: Setup) -> list[Score]:
    seconds = np.array(found.seconds)
    tokens = np.full_like(seconds, found.tokens)
    speed, memory = float(tokens.sum() / seconds.sum()), found.peak_memory_mb
    low, high = ratio_interval(tokens, seconds, setup.bootstrap_samples, setup.seeds[0])
    rest: dict[str, Any] = {"seeds": setup.seeds[:1], "settings": settings}
    return [
        Score(NAME, name, "tokens_per_second", speed, low, high, len(seconds), **rest),
        Score(NAME, name, "peak_memory_mb", memory, memory, memory, 1, **rest),
    ]


def _device(device: str) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device != "cpu" else f"CPU, {torch.get_num_threads()} threads"


def _tasks() -> tuple[Task, ...]:
    made = []
    for variant in VARIANTS:
        for length in LENGTHS:
            for kind in ("uniform", "variable"):
                if variant == "xlm-r" and length > _XLM_R_LONGEST:
                    continue
                name = f"{variant}-{length}-{kind}"
                run = functools.partial(_run, variant, length, kind == "variable", name)
                made.append(Task(name, _VERSION, (), (), ("tokens_per_second", "peak_memory_mb"), SETTINGS, run))
    return tuple(made)


SUITE = Suite(NAME, "Speed and memory", _tasks())
