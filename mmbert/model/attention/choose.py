"""Which attention back end a run uses: by what is there, or as it was asked."""

from __future__ import annotations

import importlib
import importlib.util
import inspect

import torch

from mmbert.errors import UserError

# flash and varlen are the same FlashAttention 2; torch's own always fits its torch.
FASTEST_FIRST = ("varlen", "flash", "flex", "sdpa")
_HALF = (torch.bfloat16, torch.float16)


def choose_attention(asked: str, device: torch.device, dtype: torch.dtype) -> str:
    """The back end for training on `device` with matrix products in `dtype`; `asked` is `auto` or a back end's name.

    `auto` takes the first of varlen, flash, flex and sdpa that can run. Raises UserError, with what is missing and how
    to get it, where the one asked for cannot.
    """
    if asked == "auto":
        return next(name for name in FASTEST_FIRST if missing(name, device, dtype) is None)
    reason = missing(asked, device, dtype)
    if reason is not None:
        raise UserError(f"training.attention: {asked}: {reason}; or leave it at auto")
    return asked


def missing(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the back end cannot train on `device` in `dtype`, and what to do; None where it can."""
    if name == "sdpa":
        return None
    if device.type != "cuda":
        return f"it trains on a CUDA GPU only, and this run is on {device.type}; train on a GPU, or set it to sdpa"
    if name == "flex":
        found = importlib.util.find_spec("triton") is not None
        return None if found else "triton is not installed; install the triton that belongs to this torch"
    if dtype not in _HALF:
        return f"it computes in half precision only, and this run is in {dtype}; set training.precision to bf16"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return f"it needs a GPU of compute capability 8.0 or later, and this one has {'.'.join(map(str, capability))}"
    return _missing_flash() if name == "flash" else _missing_varlen()


def _missing_flash() -> str | None:
    try:
        # flash-attn-4 alone makes `flash_attn` a namespace without the function.
        importlib.import_module("flash_attn").flash_attn_varlen_func  # noqa: B018
    except (ImportError, OSError, AttributeError) as error:
        return f"flash-attn cannot be imported ({error}); docs/performance.md tells how to build it"
    return None


def _missing_varlen() -> str | None:
    try:
        module = importlib.import_module("torch.nn.attention.varlen")
    except ImportError:
        module = None
    if module is None or "window_size" not in inspect.signature(module.varlen_attn).parameters:
        return f"torch {torch.__version__} has no variable-length attention with a window; install torch 2.11 or later"
    return None
