"""Packages whose `__init__` waits until it is needed."""

from __future__ import annotations

import importlib
import signal
import sys
from pathlib import Path

import pytest

from mmbert.training import deferred


def test_a_package_runs_when_a_name_of_its_own_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "for_two_names"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from for_two_names import heavy\nfrom for_two_names.light import LIGHT\nOWN = 3\n"
    )
    (package / "light.py").write_text("LIGHT = 1\n")
    (package / "heavy.py").write_text("HEAVY = 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(deferred, "_PACKAGES", {"for_two_names": {"LIGHT": lambda: 1}})
    deferred.install()
    found = importlib.import_module("for_two_names")
    assert found.LIGHT == 1
    assert importlib.import_module("for_two_names.light").LIGHT == 1
    assert not hasattr(found, "__version__")
    assert "for_two_names.heavy" not in sys.modules
    assert (found.OWN, found.heavy.HEAVY) == (3, 2)
    with pytest.raises(AttributeError, match="no attribute 'NONE'"):
        _ = found.NONE


def test_who_takes_a_signal_over_while_being_imported_does_not_keep_it() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with deferred.signals_kept():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) is before
