"""A trained model from wherever it comes: the forms that conversion and import take, and what each says of itself.

- a Composer checkpoint (`.pt`) of the original training code, which carries its configuration and tokenizer;
- a Composer checkpoint of this project;
- a folder with `config.json` and `model.safetensors`, as a released ModernBERT has them (or the latter's path, or the
  model's name on the Hugging Face hub, with `@` and a revision after it);
- a checkpoint artifact of this project, a permanent one too, or its `weights.safetensors` with `training_state.json`
  and `optimizer.safetensors` beside it.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from mmbert import hub, storage
from mmbert.artifacts import MANIFEST, find, open_artifact
from mmbert.data.tokenizer import TOKENIZER_FILE
from mmbert.errors import InfrastructureError, UserError
from mmbert.release import checkpoints, original
from mmbert.release.checkpoints import Clock, OptimizerState
from mmbert.release.hugging_face import described_config, from_hugging_face_names, read_json
from mmbert.release.names import CONFIG, MODEL_WEIGHTS, OPTIMIZER, STATE, WEIGHTS, beside, folders, is_hub_name
from mmbert.storage import MissingFileError


@dataclass(frozen=True)
class TrainedModel:
    """Weights, and what came with them.

    `config`: the fields of `EncoderConfig` that the source states, rotary bases among them. `max_seq_len`: the context
    in tokens that it states, which in the original's checkpoints is a default and no fact. `tokenizer`: the content of
    its `tokenizer.json` where it carries one. `by_original`: written by the original training code.
    """

    weights: dict[str, Tensor]
    config: dict[str, Any] = field(default_factory=dict)
    max_seq_len: int | None = None
    optimizer: OptimizerState | None = None
    clock: Clock | None = None
    tokenizer: dict[str, Any] = field(default_factory=dict)
    by_original: bool = False


def fetch(uri: str, folder: Path, *, optimizer: bool) -> Path:
    """The local path of a checkpoint's file or folder; what lies in S3 is brought into `folder` first.

    `optimizer`: its state is wanted too. Raises MissingFileError where the file is not there. An artifact's files are
    checked against its manifest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [WEIGHTS, STATE, CONFIG, MODEL_WEIGHTS, TOKENIZER_FILE, *([OPTIMIZER] if optimizer else [])]
    if uri.endswith((".pt", ".safetensors")):
        if not storage.is_s3(uri):
            return Path(uri)
        name = uri.rpartition("/")[2]
        storage.download(uri, folder / name)
        _bring([place for place in beside(uri) if place.rpartition("/")[2] in wanted], folder)
        return folder / name
    if storage.exists(storage.join(uri, MANIFEST)):
        artifact = open_artifact(uri)
        for name in artifact.paths():
            if name in wanted:
                artifact.download(name, folder / name)
        return folder
    if not storage.is_s3(uri):
        return _download(uri, folder) if is_hub_name(uri) else Path(uri)
    _bring([storage.join(uri, name) for name in wanted], folder)
    return folder


def _download(uri: str, folder: Path) -> Path:
    """A model of the hub."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    name, _, revision = uri.partition("@")
    try:
        with hub.retries_told_once():
            for file in (CONFIG, MODEL_WEIGHTS):
                hf_hub_download(name, file, revision=revision or None, local_dir=folder)
            with contextlib.suppress(EntryNotFoundError):
                hf_hub_download(name, TOKENIZER_FILE, revision=revision or None, local_dir=folder)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        where = f"{uri}: no such file or folder here, and"
        if isinstance(error, HfHubHTTPError) and error.response.status_code in {401, 403, 404}:
            raise MissingFileError(
                f"{where} the hub has no {CONFIG} and {MODEL_WEIGHTS} of that name that you may read"
            ) from error
        raise InfrastructureError(f"{where} the hub cannot be reached for a model of that name: {error}") from error
    return folder


def _bring(places: list[str], folder: Path) -> None:
    """Download what is there; of two of one name the first."""
    for place in places:
        target = folder / place.rpartition("/")[2]
        if not target.exists() and storage.exists(place):
            storage.download(place, target)


def fetch_tokenizer(uri: str, folder: Path) -> Path:
    """`folder` with the `tokenizer.json` of a tokenizer artifact or of a folder in S3."""
    if storage.exists(storage.join(uri, MANIFEST)):
        open_artifact(uri).download(TOKENIZER_FILE, folder / TOKENIZER_FILE)
    else:
        storage.download(storage.join(uri, TOKENIZER_FILE), folder / TOKENIZER_FILE)
    return folder


def trained_tokenizer(uri: str) -> dict[str, Any]:
    """The `tokenizer.json` that the checkpoint's artifact, or one that it was made from, was trained with.

    Empty where no manifest tells, or the tokenizer is gone.
    """
    waiting = folders(uri)
    while waiting:
        found = find(waiting.pop(0))
        made_from = [entry for entries in found.manifest.inputs.values() for entry in entries] if found else []
        for entry in made_from:
            if entry["kind"] == "tokenizer" and (tokenizer := find(entry["uri"])):
                return dict(tokenizer.read_json(TOKENIZER_FILE))
        waiting += [entry["uri"] for entry in made_from if entry["kind"] == "checkpoint"]
    return {}


def read(path: Path, where: str, *, optimizer: bool) -> TrainedModel:
    """Raises UserError where the file or folder is none of the forms, damaged, or refused (see `checkpoints`).

    `where` names it in messages. `optimizer`: its state is read too, where there is one.
    """
    try:
        return _composer(path, where, optimizer) if path.suffix == ".pt" else _safetensors(path, where, optimizer)
    except UserError as error:
        raise type(error)(str(error).replace(str(path), where) if path.is_absolute() else str(error)) from error


def _safetensors(path: Path, where: str, optimizer: bool) -> TrainedModel:
    if path.is_dir():
        name = next((n for n in (MODEL_WEIGHTS, WEIGHTS) if (path / n).is_file()), None)
        if name is None:
            raise UserError(f"{where}: no {MODEL_WEIGHTS} or {WEIGHTS} in this folder; give a checkpoint's file")
        path = path / name
    if not path.exists():
        raise MissingFileError(f"{where}: no such file or folder")
    if path.suffix != ".safetensors":
        raise UserError(f"{where}: not a checkpoint; give a .pt or .safetensors file, a folder, or an artifact's URI")
    if (path.parent / CONFIG).is_file():
        config = read_json(path.parent / CONFIG)
        weights = from_hugging_face_names(checkpoints.load_weights(path))
        return TrainedModel(
            weights,
            described_config(config, where),
            config.get("max_position_embeddings"),
            tokenizer=_own_tokenizer(path.parent),
        )
    if path.name == MODEL_WEIGHTS:
        raise UserError(f"{where}: {MODEL_WEIGHTS} is here, and {CONFIG}, which describes the model, is not")
    weights, stored = checkpoints.load_weights(path), path.parent / OPTIMIZER
    moments = checkpoints.read_optimizer(stored, weights) if optimizer and stored.is_file() else None
    return _ours(weights, path.parent / STATE, moments, tokenizer=_own_tokenizer(path.parent))


def _own_tokenizer(folder: Path) -> dict[str, Any]:
    return read_json(folder / TOKENIZER_FILE) if (folder / TOKENIZER_FILE).is_file() else {}


def _composer(path: Path, where: str, optimizer: bool) -> TrainedModel:
    found = checkpoints.read_composer(path, optimizer=optimizer)
    if not found.config:
        state = next((Path(place) for place in beside(str(path)) if Path(place).is_file()), None)
        return _ours(found.weights, state, found.optimizer, found.clock)
    with checkpoints.damage_told(where):
        config = original.described_config(found.config, where) | original.special_token_ids(found.tokenizer)
    return TrainedModel(
        found.weights,
        config,
        found.config.get("max_position_embeddings"),
        found.optimizer,
        found.clock,
        found.tokenizer.get("tokenizer.json", {}),
        by_original=True,
    )


def _ours(
    weights: dict[str, Tensor],
    state_file: Path | None,
    optimizer: OptimizerState | None = None,
    clock: Clock | None = None,
    tokenizer: dict[str, Any] | None = None,
) -> TrainedModel:
    state = read_json(state_file) if state_file is not None and state_file.is_file() else {}
    config = dict(state.get("model", {}))
    if rope := state.get("rope_theta"):
        config |= {
            "global_rope_theta": rope["global_attention"],
            "local_rope_theta": rope["local_attention"],
        }
    if clock is None and state:
        clock = _clock(state, str(state_file))
    return TrainedModel(weights, config, state.get("max_seq_len"), optimizer, clock, tokenizer or {})


def _clock(state: dict[str, Any], where: str) -> Clock:
    try:
        return Clock(int(state["batches"]), int(state["rows"]), int(state["tokens"]), 0)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where}: it lacks batches, rows or tokens, or one is no number ({error})") from error
