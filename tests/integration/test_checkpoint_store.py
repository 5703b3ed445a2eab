"""The checkpoints of a running phase on a real S3 server: uploaded while training goes on, whole or not there."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mmbert import artifacts, storage
from mmbert.errors import InfrastructureError
from mmbert.training.resume import CheckpointStore, Saved, newest_first, permanent_checkpoints
from tests.fixtures_stack import S3


@pytest.fixture
def place(s3_server: S3, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[str]:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    storage.s3_client.cache_clear()
    yield f"{s3_server.make_bucket('checkpoints')}/{request.node.name}"
    storage.s3_client.cache_clear()


def attempt(place: str) -> artifacts.ArtifactWriter:
    return artifacts.ArtifactWriter(place, "checkpoint", "f" * 32, {}, {})


def saved(folder: Path, batch: int, size: int = 1000, name: str = "resume") -> Saved:
    path = folder / f"{name}-{batch}"
    path.mkdir()
    (path / "composer.pt").write_bytes(bytes([batch % 256]) * size)
    return Saved(batch, batch * 100, path)


def batches(place: str) -> list[int]:
    return [point.batch for point in newest_first(place)]


def test_the_newest_ones_of_all_attempts_are_kept_and_the_local_copies_are_not(place: str, tmp_path: Path) -> None:
    first, second = CheckpointStore(attempt(place), keep=2), CheckpointStore(attempt(place), keep=2)
    for batch in (1, 2, 3):
        first.save(saved(tmp_path, batch))
    first.finish()
    for batch in (4, 5):
        second.save(saved(tmp_path, batch))
    second.finish()
    assert batches(place) == [5, 4]
    assert {path.split("/")[1] for path in storage.list_files(f"{place}/resume")} == {f"{b:012d}" for b in (4, 5)}
    assert list(tmp_path.iterdir()) == []
    newest = CheckpointStore(attempt(place), keep=2).fetch_newest(tmp_path)
    assert newest is not None
    assert (newest.batch, newest.tokens) == (5, 500)
    assert (tmp_path / "composer.pt").read_bytes() == bytes([5]) * 1000


def test_a_permanent_checkpoint_is_an_artifact_that_stays(place: str, tmp_path: Path) -> None:
    store = CheckpointStore(attempt(place), keep=1)
    for batch in (1, 2, 3):
        permanent = saved(tmp_path, batch, name="permanent") if batch == 2 else None
        store.save(saved(tmp_path, batch), permanent)
    store.finish()
    assert batches(place) == [3]
    assert permanent_checkpoints(place) == ["permanent/000000000002"]
    kept = artifacts.open_artifact(f"{place}/permanent/000000000002", "checkpoint")
    assert kept.read("composer.pt") == bytes([2]) * 1000


def test_training_does_not_wait_for_the_upload(place: str, tmp_path: Path, s3_server: S3) -> None:
    store = CheckpointStore(attempt(place), keep=1)
    os.kill(s3_server.server.pid, signal.SIGSTOP)
    try:
        store.save(saved(tmp_path, 1))  # returns, though the server answers nothing
    finally:
        os.kill(s3_server.server.pid, signal.SIGCONT)
    store.finish()
    assert batches(place) == [1]


def test_a_server_that_is_away_for_a_moment_is_waited_for(place: str, tmp_path: Path, s3_server: S3) -> None:
    store = CheckpointStore(attempt(place), keep=2)
    s3_server.server.kill()
    try:
        store.save(saved(tmp_path, 1))
    finally:
        s3_server.server.start()
    store.finish()
    assert batches(place) == [1]


def test_a_server_killed_during_an_upload_leaves_no_checkpoint_and_is_told(
    place: str, tmp_path: Path, s3_server: S3, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mmbert.training.resume._RETRY_SECONDS", ())
    # The client's own attempts, some seconds for each part of each upload, are no part of what is asked here.
    monkeypatch.setattr("mmbert.storage._S3_ATTEMPTS", 1)
    storage.s3_client.cache_clear()
    store = CheckpointStore(attempt(place), keep=2)
    store.save(saved(tmp_path, 1))
    large = saved(tmp_path, 2, size=200_000_000)
    before = received(s3_server)
    store.save(large)
    deadline = time.monotonic() + 60
    while received(s3_server) < before + 10_000_000:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    s3_server.server.kill()
    try:
        store.save(saved(tmp_path, 3))
        assert "warning: the checkpoint of batch 2 was not stored" in capsys.readouterr().out
        with pytest.raises(InfrastructureError, match="the checkpoint of batch 3 was not stored"):
            store.save(saved(tmp_path, 4))
    finally:
        s3_server.server.start()
    assert batches(place) == [1]
    again = CheckpointStore(attempt(place), keep=2)
    again.save(saved(tmp_path, 5))
    again.finish()
    assert batches(place) == [5, 1]


def received(server: S3) -> int:
    """Bytes that the server has read so far."""
    return int(psutil.Process(server.server.pid).io_counters().read_chars)
