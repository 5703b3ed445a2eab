"""What the images are called: one a target (orchestrator, data, train, eval), for every launcher."""

from __future__ import annotations

import os
import re

TARGETS = ("orchestrator", "data", "train", "eval")
OPTIONS = "MMBERT_IMAGE_PREFIX, MMBERT_IMAGE_TAG, or one image whole: MMBERT_IMAGE_DATA, MMBERT_IMAGE_TRAIN ..."
"""How another one is named, for errors."""


def image_name(target: str) -> str:
    """The image of a target: MMBERT_IMAGE_<TARGET>, or MMBERT_IMAGE_PREFIX, the target and MMBERT_IMAGE_TAG."""
    prefix, tag = os.environ.get("MMBERT_IMAGE_PREFIX", "mmbert-"), os.environ.get("MMBERT_IMAGE_TAG", "latest")
    return named().get(target, f"{prefix}{target}:{tag}")


def named() -> dict[str, str]:
    """Those images that the environment names whole, by target."""
    found = {target: os.environ.get(f"MMBERT_IMAGE_{target.upper()}", "") for target in TARGETS}
    return {target: name for target, name in found.items() if name}


def has_digest(name: str) -> bool:
    """Whether a name says one image for good: by its whole digest, and not by the zeros of our example settings."""
    found = re.search(r"@sha256:([0-9a-f]{64})$", name)
    return found is not None and set(found[1]) != {"0"}
