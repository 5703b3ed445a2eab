"""Weights out of checkpoints: safetensors, or a Composer checkpoint, this project's or the original training code's."""

from __future__ import annotations

import datetime
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import _reconstruct
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from mmbert.errors import UserError
from mmbert.model.config import EncoderConfig
from mmbert.model.head import TIED_DECODER, TOKEN_EMBEDDING, MaskedLanguageModel
from mmbert.storage import MissingFileError

# What a Composer checkpoint holds besides tensors: clocks and numpy's random state. The older name is numpy 1's.
_ALLOWED: list[Any] = [
    datetime.timedelta,
    np.ndarray,
    np.dtype,
    type(np.dtype(np.uint32)),
    (_reconstruct, "numpy.core.multiarray._reconstruct"),
    (_reconstruct, "numpy._core.multiarray._reconstruct"),
]


def load_weights(path: Path) -> dict[str, Tensor]:
    """Every weight once, by its name in the model, fp32, on the CPU, from a `.safetensors` file or a Composer `.pt`.

    Nothing in the file can run: a `.pt` that asks for anything but tensors, numbers, text and clocks is refused. The
    tied decoder's second entry is dropped. Raises UserError where the file is missing, refused, damaged or not a
    checkpoint.
    """
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        weights = _read_safetensors(path)
    elif path.suffix == ".pt":
        weights = _read_composer(path)
    else:
        raise UserError(f"{path}: not a checkpoint that can be read; give a .safetensors file or a Composer .pt file")
    decoder = weights.pop(TIED_DECODER, None)
    if decoder is not None and not torch.equal(decoder, weights.get(TOKEN_EMBEDDING, decoder)):
        raise UserError(f"{path}: {TIED_DECODER} differs from {TOKEN_EMBEDDING}; only tied decoders are supported")
    return {name: weights[name].float() for name in sorted(weights)}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        weights: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: damaged or not a safetensors file ({error}); fetch it again") from error
    return weights


def _read_composer(path: Path) -> dict[str, Tensor]:
    with safe_globals(_ALLOWED):
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            raise UserError(f"{path}: refused, because {_reason(path)}") from error
        except (RuntimeError, ValueError, EOFError, KeyError) as error:
            raise UserError(f"{path}: damaged or not a checkpoint ({error}); fetch it again") from error
    state = checkpoint.get("state") if isinstance(checkpoint, dict) else None
    model = state.get("model") if isinstance(state, dict) else None
    if not isinstance(model, dict):
        raise UserError(f"{path}: no model weights under state.model; this is not a Composer checkpoint")
    return {name.removeprefix("model."): value for name, value in model.items()}


def _reason(path: Path) -> str:
    unsafe = sorted(get_unsafe_globals_in_checkpoint(path))
    if not unsafe:
        return "its pickle is damaged or built in an unusual way"
    return f"it asks for {', '.join(unsafe)}, which a checkpoint does not need and which could run code"


def check_weights(weights: Mapping[str, Tensor], config: EncoderConfig, where: str) -> None:
    """Raises UserError, naming the weight, where one is missing, unknown, of another shape than `config` asks for, or
    not finite.

    `where` says in the message which file or step the weights come from.
    """
    with torch.device("meta"):
        expected = MaskedLanguageModel(config).weights()
    for name, value in expected.items():
        if name not in weights:
            raise UserError(f"{where}: '{name}' is missing; the model has {config.num_hidden_layers} layers")
        if weights[name].shape != value.shape:
            raise UserError(
                f"{where}: '{name}' has shape {list(weights[name].shape)}, but the model's configuration asks for "
                f"{list(value.shape)}"
            )
    unknown = sorted(set(weights) - set(expected) - {TIED_DECODER})
    if unknown:
        raise UserError(f"{where}: '{unknown[0]}' does not belong to the model ({len(unknown)} such weights)")
    for name in sorted(weights):
        if not torch.isfinite(weights[name]).all():
            raise UserError(f"{where}: '{name}' holds NaN or infinite values; go back to an earlier checkpoint")


def save_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write safetensors; the same weights give the same bytes."""
    path.write_bytes(save({name: weights[name].contiguous() for name in sorted(weights)}, metadata={"format": "pt"}))
