"""Packages are hidden while Composer is imported, and only then."""

from __future__ import annotations

import importlib
import importlib.util
import sys

import pytest
from lightning_utilities.core.imports import RequirementCache

from mmbert.training.composer_start import not_found


def test_a_package_is_hidden_from_imports_and_from_torchmetrics_and_found_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "seqeval"]:
        monkeypatch.delitem(sys.modules, name)
    with not_found("seqeval"):
        assert importlib.util.find_spec("seqeval") is None
        assert not RequirementCache("seqeval")
        with pytest.raises(ImportError):
            importlib.import_module("seqeval")
        assert RequirementCache("torch")
    assert RequirementCache("seqeval")
    assert importlib.import_module("seqeval").__name__ == "seqeval"


def test_a_package_that_is_in_use_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    with not_found("pytest"):
        assert importlib.import_module("pytest") is pytest
        assert RequirementCache("pytest")
    assert sys.modules["pytest"] is pytest
