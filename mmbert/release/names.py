"""The files that a checkpoint is made of, and which are read beside a named one. Without torch: plans are made so."""

from __future__ import annotations

from mmbert import storage

WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "training_state.json"
CONFIG = "config.json"
MODEL_WEIGHTS = "model.safetensors"
COMPOSER_FOLDER = "composer"


def beside(uri: str) -> list[str]:
    """Places of what says more about the checkpoint's file `uri`, where it exists; of two of one name the first counts.

    None for a folder, whose files belong to it.
    """
    folder = _parent(uri)
    name = uri.rpartition("/")[2]
    if name.endswith(".pt"):
        above = [_parent(folder)] if folder.rpartition("/")[2] == COMPOSER_FOLDER else []
        return [storage.join(place, STATE) for place in (folder, *above)]
    if name.endswith(".safetensors"):
        return [storage.join(folder, other) for other in (CONFIG, STATE, OPTIMIZER)]
    return []


def _parent(place: str) -> str:
    return place.rpartition("/")[0] if "/" in place else "."
