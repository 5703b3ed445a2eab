"""The optimiser and Composer's trainer, set up for one phase of a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from composer import Callback, Trainer
from composer.devices import Device, DeviceGPU
from composer.utils import dist

from mmbert.errors import UserError
from mmbert.loader.loader import Loader
from mmbert.model.head import MaskedLanguageModel
from mmbert.recipe import Recipe
from mmbert.recipe.schema import PhaseTraining
from mmbert.release import checkpoints
from mmbert.training.composer_model import ComposerEncoder, TensorBatch, data_spec, tensors_of
from mmbert.training.data import phase_shape
from mmbert.training.execution import Execution
from mmbert.training.optimizer import StableAdamW, parameter_groups

_PRECISION = {"fp32": "fp32", "bf16": "amp_bf16"}


def phase_optimizer(recipe: Recipe, settings: PhaseTraining, model: MaskedLanguageModel) -> StableAdamW:
    return StableAdamW(
        parameter_groups(model.named_parameters(), settings.weight_decay),
        lr=settings.learning_rate,
        betas=recipe.optimizer.betas,
        eps=recipe.optimizer.eps,
    )


def phase_trainer(
    recipe: Recipe,
    settings: PhaseTraining,
    model: MaskedLanguageModel,
    optimizer: torch.optim.Optimizer,
    loader: Loader,
    callbacks: Sequence[Callback],
    load_path: Path | None,
    execution: Execution,
) -> Trainer:
    """`load_path`: a Composer checkpoint of this phase to go on from.

    Raises UserError where it holds anything but tensors, numbers, text and clocks.
    """
    if dist.get_global_rank() == 0:
        print(execution, flush=True)
    if execution.compiled:
        # One graph whatever the number of processes: cut at DDP's buckets it knows no FlexAttention, and the all-reduce
        # that this would hide is some milliseconds in a step of seconds.
        torch._dynamo.config.optimize_ddp = False
        model.compile_for_training()
    shape = phase_shape(recipe.model, settings) if execution.fixed_shapes else None
    if load_path is not None:
        _check_resume(load_path)
    # Composer unpickles what it loads without any restriction, and whoever may write to the bucket may write that.
    with checkpoints.restricted_loading():
        return Trainer(
            model=ComposerEncoder(model),
            optimizers=optimizer,
            train_dataloader=data_spec(_Converted(loader), shape, pinned=execution.device == "gpu"),
            max_duration=f"{settings.tokens}tok",
            device_train_microbatch_size=settings.batch.microbatch_size,
            accumulate_train_batch_on_tokens=True,
            device=phase_device(execution.device),
            precision=_PRECISION[execution.precision],
            # A lost process is noticed by mmbert.ranks; this bounds the rest, like a long save of process 0.
            dist_timeout=1800.0,
            seed=recipe.seed,
            callbacks=list(callbacks),
            load_path=str(load_path) if load_path else None,
            spin_dataloaders=False,
            progress_bar=False,
            loggers=[],
        )


def _check_resume(path: Path) -> None:
    try:
        checkpoints.check_composer(path)
    except UserError as error:
        raise UserError(
            f"a resume checkpoint that was altered in its store, fetched as {error}. Nothing of it has run; delete it "
            "below the artifact's resume/, and see who can write there"
        ) from error


def phase_device(name: Literal["cpu", "gpu"]) -> Device | str:
    """The device, on which fp32 is fp32: Composer by itself makes it TF32 in the whole process, evaluation included."""
    return DeviceGPU(allow_tf32=False) if name == "gpu" else name


class _Converted:
    """The loader's batches as Composer takes them, without a `dataset`: its state travels with each batch."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.dataset = None
        self.batch_size = None

    def __iter__(self) -> Iterator[TensorBatch]:
        return (tensors_of(batch) for batch in self.loader)
