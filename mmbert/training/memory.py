"""Memory that ran out, as an error that says what to lower."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from mmbert.errors import UserError
from mmbert.recipe import Recipe
from mmbert.recipe.schema import PhaseTraining

_MESSAGES = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""Of failed allocations for which torch has no type."""


@contextlib.contextmanager
def out_of_memory_explained(recipe: Recipe, phase: str) -> Iterator[None]:
    """Raise UserError in place of an allocation that failed: of the GPU, of torch on the CPU, or of numpy."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        settings: PhaseTraining = getattr(recipe.phases, phase)
        where = "GPU" if isinstance(error, torch.OutOfMemoryError) else "machine"
        first_line = str(error).partition("\n")[0]
        raise UserError(
            f"the {where} ran out of memory ({first_line}). Lower phases.{phase}.batch.microbatch_size (now "
            f"{settings.batch.microbatch_size} rows of max_seq_len {settings.max_seq_len}): the global batch stays "
            f"the same. With 1 row left, lower phases.{phase}.max_seq_len or the model's size"
            + ("" if where == "GPU" else f"; training.workers (now {recipe.training.workers}) takes memory too")
        ) from error


def _is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in _MESSAGES)
