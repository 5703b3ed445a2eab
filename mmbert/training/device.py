"""The device that a recipe asks for."""

from __future__ import annotations

import os
from typing import Literal

import torch

from mmbert.errors import UserError


def composer_device(asked: Literal["auto", "cpu", "cuda"]) -> Literal["cpu", "gpu"]:
    """The device by Composer's name. Raises UserError where `cuda` is asked for and torch finds no GPU."""
    if asked == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        return "gpu"
    if asked == "auto":
        return "cpu"
    if torch.version.cuda is None:
        found = f"torch {torch.__version__} is built without CUDA"
    else:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        limited = "" if visible is None else f"; CUDA_VISIBLE_DEVICES is '{visible}'"
        found = f"torch {torch.__version__} finds no CUDA device{limited}"
    raise UserError(
        f"training.device is 'cuda', but {found}; start it on a machine with a GPU and a driver, or set "
        "training.device to 'auto' or 'cpu'"
    )
