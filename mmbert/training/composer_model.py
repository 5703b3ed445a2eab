"""The encoder as Composer sees it: a batch in, the sum of the masked tokens' losses out."""

from __future__ import annotations

from typing import Any

import torch
from composer.core import DataSpec
from composer.models import ComposerModel
from torch import Tensor

from mmbert.loader.batch import Batch, BatchShape, ShapeFiller, split_microbatches
from mmbert.model.head import MaskedLanguageModel
from mmbert.model.loss import MaskedLoss


class TensorBatch(dict[str, Any]):
    """What goes to the device of a loader's batch, by name; `whole` is the batch itself, which stays on the host.

    Composer deep-copies every microbatch before it is computed. Nothing changes one here, and the copy of a view would
    take the whole batch along, so a copy shares its tensors.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> TensorBatch:
        return TensorBatch(self)


class ComposerEncoder(ComposerModel):
    """Its `model` attribute gives checkpoints the original's key prefix, `model.`."""

    def __init__(self, model: MaskedLanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: TensorBatch) -> MaskedLoss:
        borders = batch["whole"].cu_seqlens if self.model.bert.attention.host_borders else batch["cu_seqlens"]
        loss: MaskedLoss = self.model(
            batch["input_ids"], borders, batch["max_seqlen"], batch["masked_indices"], batch["targets"]
        )
        return loss

    def loss(self, outputs: MaskedLoss, batch: TensorBatch, *args: Any, **kwargs: Any) -> Tensor:
        """Mean over the microbatch's masked tokens; Composer weighs microbatches by their masked tokens.

        So the batch's loss is the mean over its masked tokens however it is split.
        """
        return torch.div(outputs.total, max(1, batch["whole"].masked))


def tensors_of(batch: Batch) -> TensorBatch:
    """The part of a loader's batch that goes to the device, and the counts that Composer asks for."""
    return TensorBatch(
        input_ids=batch.input_ids,
        cu_seqlens=batch.cu_seqlens,
        max_seqlen=batch.max_seqlen,
        masked_indices=batch.masked_indices,
        targets=batch.targets,
        masked_streams=batch.masked_streams,
        whole=batch,
    )


def data_spec(loader: Any, shape: BatchShape | None = None, *, pinned: bool = False) -> DataSpec:
    """Rows are Composer's samples, real tokens its tokens, masked tokens what microbatches are weighted by.

    With a `shape`, every microbatch is filled up to it, or to what it has grown to; `pinned` microbatches are copied to
    the device without waiting.
    """
    fill = ShapeFiller(shape) if shape else None

    def split(batch: TensorBatch, microbatch_size: int | float) -> list[TensorBatch]:
        parts = split_microbatches(batch["whole"], int(microbatch_size))
        shaped = [fill(part) for part in parts] if fill else parts
        return [tensors_of(part.pin_memory() if pinned else part) for part in shaped]

    return DataSpec(
        loader,
        split_batch=split,
        # Composer's copy to the device makes a plain dict of it.
        microbatch_transforms=TensorBatch,
        get_num_samples_in_batch=lambda batch: batch["whole"].rows,
        get_num_tokens_in_batch=_token_counts,
    )


def _token_counts(batch: TensorBatch) -> dict[str, int]:
    return {"total": batch["whole"].tokens, "loss_generating": batch["whole"].masked}


def seed_everything_for(batch_number: int, seed: int, rank: int) -> None:
    """Random state of a batch as a function of its number, so that resuming needs no saved generator."""
    torch.manual_seed((seed * 1_000_003 + batch_number) * 4096 + rank)
