"""Fixtures of the unit tests."""

from __future__ import annotations

import pytest


@pytest.fixture
def flex_learns_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch refuses FlexAttention's backward on CPU, because the compiled CPU kernel has none; uncompiled it works."""
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)
