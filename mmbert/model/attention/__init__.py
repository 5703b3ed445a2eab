"""Attention over packed segments: the tokens of all segments in one row, their borders in `cu_seqlens`.

One module a back end; all give the same numbers within tolerance. `choose` decides which one a run uses.
"""

from __future__ import annotations

from mmbert.model.attention.backends import Plan, attention_backend

__all__ = ["Plan", "attention_backend"]
