"""The files that a checkpoint is made of, and which are read beside a named one. Without torch: plans are made so."""

from __future__ import annotations

import re

from mmbert import storage

WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "training_state.json"
CONFIG = "config.json"
MODEL_WEIGHTS = "model.safetensors"
COMPOSER_FOLDER = "composer"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")


def is_hub_name(uri: str) -> bool:
    """Whether it can only be a model's name on the Hugging Face hub, with `@` and a revision after it perhaps."""
    return bool(_HUB_NAME.fullmatch(uri)) and not storage.exists(uri)


def beside(uri: str) -> list[str]:
    """Places of what says more about the checkpoint's file `uri`, where it exists; of two of one name the first counts.

    None for a folder, whose files belong to it.
    """
    if uri.endswith(".pt"):
        return [storage.join(place, STATE) for place in folders(uri)]
    if uri.endswith(".safetensors"):
        return [storage.join(_parent(uri), other) for other in (CONFIG, STATE, OPTIMIZER)]
    return []


def folders(uri: str) -> list[str]:
    """The folders that may be the artifact of the checkpoint at `uri`: itself, or what the file lies in."""
    if not uri.endswith((".pt", ".safetensors")):
        return [uri]
    folder = _parent(uri)
    above = [_parent(folder)] if folder.rpartition("/")[2] == COMPOSER_FOLDER else []
    return [folder, *above]


def _parent(place: str) -> str:
    return place.rpartition("/")[0] if "/" in place else "."
