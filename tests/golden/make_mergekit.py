"""Writes mergekit.safetensors beside it: what mergekit makes of small tensors, for tests/unit/test_merge.py.

    uv venv /tmp/mergekit && uv pip install --python /tmp/mergekit mergekit==0.1.5
    /tmp/mergekit/bin/python tests/golden/make_mergekit.py

mergekit cannot share an environment with this project's locked libraries, hence the stored values. Its own merge
functions are called on the tensors, with every parameter at its default but those that a case names, and with its sort
made stable: which of several equal magnitudes it keeps depends on the processor otherwise.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
from pathlib import Path

import torch
from mergekit.merge_methods import registry
from mergekit.merge_methods.base import TensorBatch, TensorGroup
from safetensors.torch import save_file

SHAPES = {"odd": (7, 9), "long": (1003,), "single": (1,)}
DENSITIES = (0.01, 0.2, 0.5, 0.9, 1.0)
WEIGHTS = ((1.0, 1.0, 1.0), (0.5, 2.0, 0.25), (1.0, 1.0, 2.0))
GENERATOR = torch.Generator().manual_seed(0)


def main() -> None:
    torch.argsort = functools.partial(torch.argsort, stable=True)
    methods = {name: registry.get(name) for name in ("linear", "ties")}
    tensors = {}
    for name, shape in SHAPES.items():
        for dtype in (torch.float32, torch.bfloat16):
            models = [torch.randn(shape, generator=GENERATOR).to(dtype) for _ in range(4)]
            add_cases(methods, tensors, f"{name}-{str(dtype).removeprefix('torch.')}", models)
    # Halves, so that magnitudes tie, changes cancel out and some are 0.
    coarse = [torch.randint(-3, 4, (20, 31), generator=GENERATOR) / 2 for _ in range(4)]
    add_cases(methods, tensors, "tied-float32", coarse)
    settings = {"mergekit": importlib.metadata.version("mergekit"), "torch": torch.__version__}
    save_file(tensors, Path(__file__).with_name("mergekit.safetensors"), metadata={"made_by": json.dumps(settings)})


def add_cases(methods, tensors, case: str, models: list[torch.Tensor]) -> None:
    """The base and three variants, then what each method makes of them; in low precision mergekit gets fp32 tensors,
    as its option `dtype: float32` gives it."""
    for index, model in enumerate(models):
        tensors[f"{case}/{'base' if index == 0 else f'variant{index}'}"] = model.clone()
    models = [model.float() for model in models]
    for weights in WEIGHTS:
        label = ",".join(map(str, weights))
        tensors[f"{case}/linear/{label}"] = run(methods["linear"], models[1:], None, weights)
        for density in DENSITIES:
            tensors[f"{case}/ties/{label}/{density}"] = run(methods["ties"], models, 0, weights, density)


def run(method, tensors, base, weights, density=None) -> torch.Tensor:
    ids = list(range(len(tensors)))
    group = TensorGroup.from_tensors(tensors, ids=ids, base_index=base)
    variants = [number for number in ids if number != base]
    if base is None:
        batch = TensorBatch(tuple(tensor[None] for tensor in tensors))
        return method.merge_batch(batch, weight=torch.tensor([weights]), normalize=True)[0].contiguous()
    shared = {parameter.name: parameter.default for parameter in method.spec.parameters}
    shared["weight"] = dict(zip(variants, weights, strict=True))
    shared["density"] = dict.fromkeys(variants, density)
    return method.merge_group(group, **shared).contiguous()


main()
