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
    """Raise UserError in place of an allocation of a training step that failed: of the GPU, of torch on the CPU, or of
    numpy."""
    settings: PhaseTraining = getattr(recipe.phases, phase)
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        where = _out_of_memory(error)
        if where is None:
            raise
        raise UserError(
            f"{where}. Lower phases.{phase}.batch.microbatch_size (now {settings.batch.microbatch_size} rows of "
            f"max_seq_len {settings.max_seq_len}): the global batch stays the same, and the phase goes on from its "
            f"newest resume checkpoint. With 1 row left, lower phases.{phase}.max_seq_len or the model's size"
            + (f"; training.workers (now {recipe.training.workers}) takes memory too" if "machine" in where else "")
        ) from error


@contextlib.contextmanager
def loading_out_of_memory_explained() -> Iterator[None]:
    """The same for allocations outside of the training steps, which no batch size changes."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        where = _out_of_memory(error)
        if where is None:
            raise
        raise UserError(
            f"{where} outside of the training steps, where the model and its optimiser's state are loaded or the "
            "held-out texts scored: no batch size changes that. Free memory that other processes hold, take a larger "
            "machine, or lower the model's size; resume checkpoints are kept"
        ) from error


def _out_of_memory(error: RuntimeError | MemoryError) -> str | None:
    """What ran out of memory, if that is what the error says."""
    on_gpu = isinstance(error, torch.OutOfMemoryError)
    if not on_gpu and not isinstance(error, MemoryError) and not any(text in str(error) for text in _MESSAGES):
        return None
    first_line = str(error).partition("\n")[0]
    return f"the {'GPU' if on_gpu else 'machine'} ran out of memory ({first_line})"
