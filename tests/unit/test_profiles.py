"""Resource profiles of one's own: what is wrong in one is said, with its key."""

from __future__ import annotations

from pathlib import Path

import pytest

from components import processes, profiles
from components.contract import get_component
from mmbert.errors import UserError

THREADS = "threads: {small: 1, data: 1, train: 1, eval: 1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it needs 'threads'"),
        ("threads: [1", "it is no YAML"),
        (f"{THREADS}, train: two}}", "threads.train is 'two'; it must be a number from 1 on"),
        (f"{THREADS}}}\nmemory: {{train: much}}", "memory.train is 'much'; it must be a number of GiB above 0"),
        (f"{THREADS}}}\nprocesses: {{train: 0}}", "processes.train is 0; it must be a number from 1 on, or gpus"),
    ],
)
def test_a_wrong_profile_names_its_key(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, "utf-8")
    monkeypatch.setenv("MMBERT_PROFILE", str(path))
    with pytest.raises(UserError, match=message):
        profiles.processes(get_component("train"), {})


def test_a_number_of_nodes_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("NNODES", "two")
    with pytest.raises(UserError, match="NNODES=two: it must be a whole number"):
        processes.wanted(get_component("train"), {})


def test_what_a_profile_says_of_processes_can_be_passed_on_without_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    train = get_component("train")
    monkeypatch.setenv("MMBERT_PROFILE", "gpu")
    assert profiles.wanted_processes(train, {}) == "gpus"
    monkeypatch.delenv("MMBERT_PROFILE")
    monkeypatch.setenv("MMBERT_PROCESSES", "3")
    assert processes.wanted(train, {}) == processes.Group(3, 1, 0)
