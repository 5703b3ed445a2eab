"""Checkpoints read safely: safetensors, or a Composer checkpoint, this project's or the original training code's.

A pickle is only ever read here, and only through torch's restricted unpickler with the short list below.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import lzma
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import _reconstruct
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals
from torch.torch_version import TorchVersion

from mmbert.errors import UserError
from mmbert.model.config import EncoderConfig
from mmbert.model.head import TIED_DECODER, TOKEN_EMBEDDING, MaskedLanguageModel
from mmbert.storage import MissingFileError

# What a Composer checkpoint holds besides tensors: clocks, versions and numpy's random state. The older name is numpy
# 1's.
_ALLOWED: list[Any] = [
    datetime.timedelta,
    TorchVersion,
    np.ndarray,
    np.dtype,
    type(np.dtype(np.uint32)),
    (_reconstruct, "numpy.core.multiarray._reconstruct"),
    (_reconstruct, "numpy._core.multiarray._reconstruct"),
]
_OPTIMIZER = "StableAdamW"
_SLOTS = ("exp_avg", "exp_avg_sq", "eps_sq")
_CRC_BLOCK = 2**22
# What zipfile, torch and a reader of the result raise where bytes are altered: the zip directory, or a pickle together
# with its checksum.
_DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    lzma.LZMAError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
_FORCE, _FORCE_NOT = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
# What makes two models different; dropouts and the initial width are a run's own.
_SHAPE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "global_attn_every_n_layers",
    "sliding_window",
    "norm_eps",
    "pad_token_id",
    "eos_token_id",
    "bos_token_id",
    "unk_token_id",
    "mask_token_id",
)


@dataclass(frozen=True)
class Clock:
    """How far a run had come in its phase. The original counts segments as samples, and padding among the tokens."""

    batches: int
    samples: int
    tokens: int
    epochs: int


@dataclass(frozen=True)
class OptimizerState:
    """StableAdamW's state. `moments` are fp32 by `<parameter>.<slot>`, slots exp_avg, exp_avg_sq and eps_sq.

    `steps` were made so far. `learning_rate` is the last one set, `peak_learning_rate` what weight decay is scaled by.
    These and the rest are None where the source does not say, as this project's artifacts do not.
    """

    moments: dict[str, Tensor]
    steps: int
    learning_rate: float | None = None
    peak_learning_rate: float | None = None
    betas: tuple[float, float] | None = None
    eps: float | None = None


@dataclass(frozen=True)
class ComposerCheckpoint:
    """A Composer checkpoint, whole: weights as `load_weights` gives them, optimiser, time, and what it says of itself.

    `config` is the original's model configuration and `tokenizer` the content of its tokenizer's files by name; both
    are empty in this project's own checkpoints. `scheduled_rates` are the scheduler's last learning rates, a group
    each; None where the run had no scheduler of Composer's.
    """

    weights: dict[str, Tensor]
    optimizer: OptimizerState | None
    clock: Clock
    scheduled_rates: list[float] | None
    config: dict[str, Any]
    tokenizer: dict[str, Any]


def load_weights(path: Path) -> dict[str, Tensor]:
    """Every weight once, by its name in the model, fp32, on the CPU, from a `.safetensors` file or a Composer `.pt`.

    Nothing in the file can run: a `.pt` that asks for anything but tensors, numbers, text and clocks is refused. The
    tied decoder's second entry is dropped. Raises UserError where the file is missing, refused, damaged or not a
    checkpoint.
    """
    if path.suffix == ".pt":
        state = _composer_state(path)
        with damage_told(str(path)):
            return _composer_weights(path, state)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file")
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: not a checkpoint that can be read; give a .safetensors file or a Composer .pt file")
    return _once(path, load_tensors(path))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises UserError where it is missing or damaged."""
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file")
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: damaged or not a safetensors file ({error}); fetch it again") from error
    return tensors


def load_moments(path: Path) -> tuple[dict[str, Tensor], list[int]]:
    """The optimiser's state of an `optimizer.safetensors`, unchecked, and the steps that each group has made.

    Raises UserError where the file is missing or damaged.
    """
    moments = load_tensors(path)
    with safe_open(path, "pt") as stored:
        said = (stored.metadata() or {}).get("steps", "[]")
    try:
        return moments, [int(step) for step in json.loads(said)]
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{path}: its step counts are '{said}', which are no list of numbers; fetch it again"
        ) from error


def read_optimizer(path: Path, weights: Mapping[str, Tensor]) -> OptimizerState:
    """The optimiser's state of an `optimizer.safetensors` that belongs to `weights`.

    Raises UserError where it is damaged or does not.
    """
    moments, steps = load_moments(path)
    check_moments(moments, weights, str(path))
    return OptimizerState(moments, _one_step(steps, str(path)))


def read_composer(path: Path, *, optimizer: bool = True) -> ComposerCheckpoint:
    """A Composer `.pt` whole. Tensors stay on the disk, mapped into memory, until they are used.

    Without `optimizer` its state, two thirds of the file, is left alone. Raises UserError as `load_weights` does, and
    where the optimiser is another than StableAdamW, or its state does not belong to the weights.
    """
    state = _composer_state(path)
    with damage_told(str(path)):
        weights = _composer_weights(path, state)
        clock = _section(path, state, "timestamp", "Timestamp")
        stored = _section(path, state, "integrations").get("huggingface") or {}
        scheduler = next(iter(_section(path, state, "schedulers").values()), None)
        return ComposerCheckpoint(
            weights=weights,
            optimizer=_optimizer(path, state, weights) if optimizer else None,
            clock=Clock(*(int(clock[key]) for key in ("batch", "sample", "token", "epoch"))),
            scheduled_rates=[float(rate) for rate in scheduler["_last_lr"]] if scheduler else None,
            config=dict(stored["model"]["config"]["content"]) if stored else {},
            tokenizer={name: file["content"] for name, file in stored["tokenizer"].items()} if stored else {},
        )


@contextlib.contextmanager
def damage_told(where: str) -> Iterator[None]:
    """Within, what reading altered content raises becomes a UserError that names `where`."""
    try:
        yield
    except _DAMAGE as error:
        raise UserError(
            f"{where}: not as Composer writes a checkpoint ({type(error).__name__}: {error}); fetch it again"
        ) from error


def check_composer(path: Path) -> None:
    """Raises UserError as `load_weights` does, whatever the file is named."""
    _composer_state(path)


def composer_state(path: Path) -> dict[str, Any]:
    """What a Composer `.pt` holds under `state`, as it stands there, tensors mapped into memory.

    Raises UserError as `load_weights` does.
    """
    return _composer_state(path)


@contextlib.contextmanager
def restricted_loading() -> Iterator[None]:
    """Within, torch.load takes what this module takes and nothing else, also where its caller asks for a whole pickle,
    as Composer does."""
    before = {name: os.environ.pop(name, None) for name in (_FORCE, _FORCE_NOT)}
    os.environ[_FORCE] = "1"
    try:
        with safe_globals(_ALLOWED):
            yield
    finally:
        del os.environ[_FORCE]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def _composer_state(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file")
    _check_bytes(path)
    with safe_globals(_ALLOWED):
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            raise UserError(f"{path}: refused, because {_reason(path)}") from error
        except _DAMAGE as error:
            raise UserError(f"{path}: damaged or not a checkpoint ({error}); fetch it again") from error
    state = checkpoint.get("state") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        raise UserError(f"{path}: no model weights under state.model; this is not a Composer checkpoint")
    for name, value in state["model"].items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(f"{path}: '{name}' under state.model is no tensor; this is not a Composer checkpoint")
    return state


def _check_bytes(path: Path) -> None:
    """torch does not look at the checksums that it writes beside each tensor, so a flipped bit would pass."""
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                with archive.open(entry) as stream:
                    while stream.read(_CRC_BLOCK):
                        pass
    except _DAMAGE as error:
        raise UserError(
            f"{path}: damaged (cut short or altered), or not a checkpoint as torch.save writes it ({error}); "
            "fetch it again"
        ) from error


def _reason(path: Path) -> str:
    unclear = "its pickle is damaged or built in an unusual way"
    try:
        unsafe = sorted(get_unsafe_globals_in_checkpoint(path))
    except _DAMAGE:
        return unclear
    allowed = {item[1] if isinstance(item, tuple) else f"{item.__module__}.{item.__qualname__}" for item in _ALLOWED}
    foreign = [name for name in unsafe if name not in allowed]
    if not foreign:
        return unclear
    return f"it asks for {', '.join(foreign)}, which a checkpoint does not need and which could run code"


def _section(path: Path, state: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    found: Any = state
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    if not isinstance(found, Mapping):
        raise UserError(f"{path}: nothing under state.{'.'.join(keys)}; this is not a whole Composer checkpoint")
    return found


def _composer_weights(path: Path, state: Mapping[str, Any]) -> dict[str, Tensor]:
    return _once(path, {name.removeprefix("model."): value for name, value in state["model"].items()})


def _once(path: Path, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    decoder = weights.pop(TIED_DECODER, None)
    if decoder is not None and not torch.equal(decoder, weights.get(TOKEN_EMBEDDING, decoder)):
        raise UserError(f"{path}: {TIED_DECODER} differs from {TOKEN_EMBEDDING}; only tied decoders are supported")
    return _apart({name: weights[name].float() for name in sorted(weights)})


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share storage in the file, as small constants do, given storage of their own."""
    seen: set[int] = set()
    for name, value in tensors.items():
        place = value.untyped_storage().data_ptr()
        tensors[name] = value.clone() if place in seen else value
        seen.add(place)
    return tensors


def _optimizer(path: Path, state: Mapping[str, Any], weights: Mapping[str, Tensor]) -> OptimizerState | None:
    optimizers = _section(path, state, "optimizers")
    if not optimizers:
        return None
    if list(optimizers) != [_OPTIMIZER]:
        raise UserError(f"{path}: its optimiser is {', '.join(optimizers)}; only the state of {_OPTIMIZER} can be read")
    stored, groups = optimizers[_OPTIMIZER]["state"], optimizers[_OPTIMIZER]["param_groups"]
    moments = _apart(
        {
            f"{name.removeprefix('model.')}.{slot}": slots[slot].float()
            for name, slots in stored.items()
            for slot in _SLOTS
        }
    )
    check_moments(moments, weights, str(path))
    first = groups[0]
    return OptimizerState(
        moments,
        _one_step([int(group["step"]) for group in groups], str(path)),
        float(first["lr"]),
        float(first["max_lr"]),
        (float(first["beta1"]), float(first["beta2"])),
        float(first["eps"]),
    )


def _one_step(steps: Sequence[int], where: str) -> int:
    if len(set(steps)) != 1:
        raise UserError(f"{where}: its optimiser's groups have made different numbers of steps ({sorted(steps)})")
    return steps[0]


def check_moments(moments: Mapping[str, Tensor], weights: Mapping[str, Tensor], where: str) -> None:
    """Raises UserError, naming the entry, unless `moments` (`<parameter>.<slot>`) are those of `weights`, of their
    shapes, and finite."""
    for name, value in weights.items():
        for slot in _SLOTS[:2]:
            found = moments.get(f"{name}.{slot}")
            if found is None:
                raise UserError(f"{where}: the optimiser's state has no {slot} of '{name}'")
            if found.shape != value.shape:
                raise UserError(
                    f"{where}: the optimiser's {slot} of '{name}' has shape {list(found.shape)}, the weight "
                    f"{list(value.shape)}"
                )
    for key in sorted(moments):
        if key.rpartition(".")[0] not in weights:
            raise UserError(f"{where}: the optimiser holds state for '{key.rpartition('.')[0]}', which is no weight")
        if not torch.isfinite(moments[key]).all():
            raise UserError(f"{where}: the optimiser's '{key}' holds NaN or infinite values; take an earlier one")


def shape_of(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """What weights show of the configuration: vocabulary, widths and the number of layers, not that of heads.

    Empty where they are not an encoder's.
    """
    layers = {name.split(".")[3] for name in weights if name.startswith("bert.encoder.layers.")}
    embedding, projection = (weights.get(name) for name in (TOKEN_EMBEDDING, "bert.encoder.layers.0.mlp.Wi.weight"))
    if embedding is None or projection is None or embedding.ndim != 2:
        return {}
    return {
        "vocab_size": embedding.shape[0],
        "hidden_size": embedding.shape[1],
        "intermediate_size": projection.shape[0] // 2,
        "num_hidden_layers": len(layers),
    }


def check_shape(stated: Mapping[str, Any], model: object, where: str) -> None:
    """Raises UserError, naming each key, where what a checkpoint states differs from the recipe's `model` section."""
    differing = [
        f"model.{key} is {getattr(model, key)} in the recipe and {stated[key]} in the checkpoint"
        for key in _SHAPE
        if key in stated and stated[key] != getattr(model, key)
    ]
    if differing:
        raise UserError(f"{where}: of another shape than the recipe: {'; '.join(differing)}")


def check_weights(weights: Mapping[str, Tensor], config: EncoderConfig, where: str) -> None:
    """Raises UserError where a weight is missing, unknown, of another shape than `config` asks for, or not finite.

    It names the configuration's key where that shows, else the weight. `where` says in the message which file or step
    the weights come from.
    """
    differing = [
        f"{key} is {value} in the weights and {getattr(config, key)} in the model's configuration"
        for key, value in shape_of(weights).items()
        if value != getattr(config, key)
    ]
    if differing:
        raise UserError(f"{where}: of another shape than the model: {'; '.join(differing)}")
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
    save_file({name: weights[name].contiguous() for name in sorted(weights)}, path, metadata={"format": "pt"})
    path.chmod(0o644)  # the library makes it readable for its owner alone
