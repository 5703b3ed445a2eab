"""Resume checkpoints that are spoilt, cannot be read or cannot be stored: what is passed over, and what ends a run."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from mmbert import artifacts
from mmbert.errors import InfrastructureError
from mmbert.sealed import seal, unseal
from mmbert.training import resume
from mmbert.training.resume import CheckpointStore, Saved, newest_first


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(resume, "_RETRY_SECONDS", ())
    return tmp_path / "checkpoint"


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


def attempt(place: Path, keep: int = 10) -> CheckpointStore:
    return CheckpointStore(artifacts.ArtifactWriter(str(place), "checkpoint", "f" * 32, {}, {}), keep)


def saved(scratch: Path, batch: int, name: str = "resume") -> Saved:
    folder = scratch / f"{name}-{batch}"
    folder.mkdir()
    for file in ("a-snapshot", "composer.pt"):
        (folder / file).write_text(f"{file} of {batch}", "utf-8")
    return Saved(batch, batch * 100, folder)


def save(place: Path, scratch: Path, *batches: int, keep: int = 10) -> None:
    store = attempt(place, keep)
    for batch in batches:
        store.save(saved(scratch, batch))
    store.finish()


def stored(place: Path, batch: int, file: str) -> Path:
    (found,) = place.glob(f"resume/*/{batch:012d}/{file}")
    return found


def batches(place: Path) -> list[int]:
    return [point.batch for point in newest_first(str(place))]


def test_a_spoilt_checkpoint_is_passed_over_and_leaves_nothing_behind(
    place: Path, scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(place, scratch, 1, 2, 3)
    stored(place, 3, "composer.pt").write_bytes(b"cut short")
    stored(place, 2, "composer.pt").unlink()
    stored(place, 3, "a-snapshot").rename(stored(place, 3, "a-snapshot").with_name("b-snapshot"))
    marker = stored(place, 3, "complete.json")
    point = unseal(marker.read_bytes())
    point["digests"]["b-snapshot"] = point["digests"].pop("a-snapshot")
    marker.write_text(json.dumps(seal(point)), "utf-8")
    newest = attempt(place).fetch_newest(scratch)
    assert newest is not None
    assert newest.batch == 1
    assert {path.name: path.read_text("utf-8") for path in scratch.iterdir()} == {
        "a-snapshot": "a-snapshot of 1",
        "composer.pt": "composer.pt of 1",
    }
    said = capsys.readouterr().out
    assert "'composer.pt' of the resume checkpoint was altered or cut short; trying an older" in said
    assert "'composer.pt' of the resume checkpoint is missing; trying an older" in said


def test_a_store_that_fails_is_no_reason_to_start_anew(place: Path, scratch: Path) -> None:
    save(place, scratch, 1, 2)
    unreadable = stored(place, 2, "composer.pt")
    unreadable.unlink()
    unreadable.mkdir()
    with pytest.raises(InfrastructureError, match=r"composer\.pt: Is a directory"):
        attempt(place).fetch_newest(scratch)
    assert batches(place) == [2, 1]


def test_where_none_is_whole_the_phase_does_not_start_anew_by_itself(place: Path, scratch: Path) -> None:
    assert attempt(place).fetch_newest(scratch) is None
    save(place, scratch, 1, 2)
    stored(place, 1, "composer.pt").write_bytes(b"")
    stored(place, 2, "complete.json").write_bytes(b"")
    with pytest.raises(InfrastructureError, match=r"none of the 2 resume checkpoints in .*checkpoint/resume is whole"):
        attempt(place).fetch_newest(scratch)


@pytest.mark.parametrize(
    "marker",
    [b"", b"\xff", b"[]", b"3", b'{"batch": 2}', b'{"batch": "2", "tokens": 200, "digests": {}}',
     b'{"batch": 2, "tokens": 200, "digests": {"composer.pt": 3}}',
     b'{"batch": 2, "tokens": 200, "digests": {"../composer.pt": "0"}}'],
)  # fmt: skip
def test_a_damaged_marker_is_passed_over(
    place: Path, scratch: Path, marker: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    save(place, scratch, 1, 2)
    stored(place, 2, "complete.json").write_bytes(marker)
    newest = attempt(place).fetch_newest(scratch)
    assert newest is not None
    assert newest.batch == 1
    assert "000000000002/complete.json cannot be read; trying an older" in capsys.readouterr().out


def test_a_spoilt_checkpoint_takes_no_place_of_those_kept(place: Path, scratch: Path) -> None:
    save(place, scratch, 1, 2, 9)
    stored(place, 9, "composer.pt").write_bytes(b"")
    store = attempt(place, keep=2)
    assert store.fetch_newest(scratch) is not None
    store.save(saved(scratch, 3))
    store.finish()
    assert batches(place) == [9, 3, 2]
    store = attempt(place, keep=2)
    assert store.fetch_newest(scratch) is not None
    store.save(saved(scratch, 10))
    store.finish()
    assert batches(place) == [10, 3]


def test_uploads_that_never_ended_go_with_the_next_complete_one(place: Path, scratch: Path) -> None:
    save(place, scratch, 1, 2)
    stored(place, 1, "complete.json").unlink()
    stored(place, 2, "complete.json").unlink()
    newer = place / "resume" / "other" / f"{4:012d}" / "composer.pt"
    newer.parent.mkdir(parents=True)
    newer.touch()
    save(place, scratch, 3)
    assert batches(place) == [3]
    assert {path.name for path in place.glob("resume/*/*")} == {f"{b:012d}" for b in (3, 4)}


def blocked(place: Path) -> Path:
    """Keep anything from being stored below `resume`, until it is deleted."""
    place.mkdir(exist_ok=True)
    (place / "resume").touch()
    return place / "resume"


def end_of(uploaded: Saved) -> None:
    """Wait until an upload has ended, well or not: its local copy is gone then."""
    deadline = time.monotonic() + 10
    while uploaded.folder.exists():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_one_failed_upload_is_a_warning_and_the_second_in_a_row_an_error(
    place: Path, scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = attempt(place)
    points = {batch: saved(scratch, batch) for batch in range(1, 6)}
    for batch, fails in ((1, True), (2, False), (3, True), (4, True)):
        if fails:
            block = blocked(place)
        store.save(points[batch])
        end_of(points[batch])
        if fails:
            block.unlink()
        else:
            assert batches(place) == [batch]
            shutil.rmtree(place / "resume")
    said = capsys.readouterr().out
    assert [f"batch {b} was not stored" in said for b in (1, 2, 3, 4)] == [True, False, True, False]
    with pytest.raises(InfrastructureError, match="the checkpoint of batch 4 was not stored"):
        store.save(points[5])


def test_at_the_end_a_failed_upload_is_a_warning(
    place: Path, scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocked(place)
    store = attempt(place)
    store.save(saved(scratch, 1))
    store.finish()
    assert "warning: the checkpoint of batch 1 was not stored" in capsys.readouterr().out
    assert list(scratch.iterdir()) == []


def test_a_permanent_checkpoint_is_tried_again_and_its_loss_is_an_error(place: Path, scratch: Path) -> None:
    place.mkdir()
    block = place / "permanent"
    block.touch()
    store = attempt(place)
    first = saved(scratch, 1)
    store.save(first, saved(scratch, 1, "permanent"))
    end_of(first)
    block.unlink()
    store.save(saved(scratch, 3))
    store.finish()
    assert resume.permanent_checkpoints(str(place)) == ["permanent/000000000001"]
    assert batches(place) == [3]
    block.rename(place / "moved")
    block.touch()
    store = attempt(place)
    store.save(saved(scratch, 4), saved(scratch, 4, "permanent"))
    with pytest.raises(InfrastructureError, match="permanent"):
        store.finish()
