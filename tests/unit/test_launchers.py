"""What a launched component says, and what is left to its caller to say."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.contract import get_component
from components.launchers import launch
from components.planning import Plan
from mmbert.errors import UserError


def test_a_failed_component_s_message_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "mmbert"
    program.write_text("#!/bin/sh\necho error: a first one\necho at work\necho error: the recipe is wrong\nexit 2\n")
    program.chmod(0o755)
    monkeypatch.setenv("MMBERT_COMMAND", str(program))
    monkeypatch.delenv("MMBERT_LAUNCHER", raising=False)
    item = get_component("select")
    plan = Plan(item, {"recipe": "tiny", "model": ""}, {}, {}, "fingerprint", str(tmp_path / "selection"))
    with pytest.raises(UserError, match=r"^component 'select' ended with exit code 2: the recipe is wrong$"):
        launch(plan, str(tmp_path), "select")
    assert capsys.readouterr().out == "error: a first one\nat work\n"
