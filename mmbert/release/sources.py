"""A trained model from wherever it comes: the forms that conversion and import take, and what each says of itself.

- a Composer checkpoint (`.pt`) of the original training code, which carries its configuration and tokenizer;
- a Composer checkpoint of this project;
- a folder with `config.json` and `model.safetensors`, as a released ModernBERT has them (or the latter's path);
- a checkpoint artifact of this project, or its `weights.safetensors` with `training_state.json` beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from mmbert import storage
from mmbert.artifacts import MANIFEST, open_artifact
from mmbert.data.tokenizer import TOKENIZER_FILE
from mmbert.errors import UserError
from mmbert.release import checkpoints, original
from mmbert.release.checkpoints import Clock, OptimizerState
from mmbert.release.hugging_face import CONFIG, MODEL_WEIGHTS, described_config, from_hugging_face_names, read_json
from mmbert.storage import MissingFileError
from mmbert.training.canonical import STATE, WEIGHTS


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


def fetch(uri: str, folder: Path) -> Path:
    """The local path of a checkpoint's file or folder; what lies in S3 is brought into `folder` first.

    Raises MissingFileError where nothing is there. An artifact's files are checked against its manifest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if uri.endswith((".pt", ".safetensors")):
        if not storage.is_s3(uri):
            return Path(uri)
        name = uri.rpartition("/")[2]
        storage.download(uri, folder / name)
        for beside in (CONFIG, STATE):
            if name != beside and storage.exists(storage.join(uri.rpartition("/")[0], beside)):
                storage.download(storage.join(uri.rpartition("/")[0], beside), folder / beside)
        return folder / name
    if storage.exists(storage.join(uri, MANIFEST)):
        artifact = open_artifact(uri)
        for name in artifact.paths():
            if name in (WEIGHTS, STATE, CONFIG, MODEL_WEIGHTS):
                artifact.download(name, folder / name)
        return folder
    if not storage.is_s3(uri):
        return Path(uri)
    for name in (CONFIG, MODEL_WEIGHTS):
        storage.download(storage.join(uri, name), folder / name)
    return folder


def fetch_tokenizer(uri: str, folder: Path) -> Path:
    """`folder` with the `tokenizer.json` of a tokenizer artifact or of a folder in S3."""
    if storage.exists(storage.join(uri, MANIFEST)):
        open_artifact(uri).download(TOKENIZER_FILE, folder / TOKENIZER_FILE)
    else:
        storage.download(storage.join(uri, TOKENIZER_FILE), folder / TOKENIZER_FILE)
    return folder


def read(path: Path, where: str) -> TrainedModel:
    """Raises UserError where the file or folder is none of the forms, damaged, or refused (see `checkpoints`).

    `where` names it in messages.
    """
    try:
        return _composer(path, where) if path.suffix == ".pt" else _safetensors(path, where)
    except UserError as error:
        raise type(error)(str(error).replace(str(path), where)) from error


def _safetensors(path: Path, where: str) -> TrainedModel:
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
        return TrainedModel(weights, described_config(config, where), config.get("max_position_embeddings"))
    return _ours(checkpoints.load_weights(path), path.parent / STATE)


def _composer(path: Path, where: str) -> TrainedModel:
    found = checkpoints.read_composer(path)
    if not found.config:
        state = next((f / STATE for f in (path.parent, path.parent.parent) if (f / STATE).is_file()), None)
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
) -> TrainedModel:
    state = read_json(state_file) if state_file is not None and state_file.is_file() else {}
    config = dict(state.get("model", {}))
    if rope := state.get("rope_theta"):
        config |= {
            "global_rope_theta": rope["global_attention"],
            "local_rope_theta": rope["local_attention"],
        }
    return TrainedModel(weights, config, state.get("max_seq_len"), optimizer, clock)
