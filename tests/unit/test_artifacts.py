"""The artifact contract: complete only with its manifest, verified when read, its digest blind to clocks and places."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmbert import artifacts, marks, storage
from mmbert.artifacts import open_artifact
from mmbert.errors import UserError


def write(
    root: Path, name: str = "f1", data: bytes = b"abc", log: bytes = b"log", **producer: Any
) -> artifacts.Artifact:
    writer = artifacts.ArtifactWriter(str(root / "documents" / name), "documents", name, {"group": "0"}, {})
    writer.add_bytes("train/a.txt", data)
    writer.add_bytes("log.txt", log, digested=False)
    return writer.commit(producer)


def test_nothing_can_be_read_before_the_commit(tmp_path: Path) -> None:
    writer = artifacts.ArtifactWriter(str(tmp_path / "x"), "documents", "x", {}, {})
    writer.add_bytes("a", b"1")
    assert artifacts.find(writer.uri) is None
    with pytest.raises(UserError, match="no complete artifact here"):
        artifacts.open_artifact(writer.uri)


def test_the_digest_covers_content_and_nothing_else(tmp_path: Path) -> None:
    first = write(tmp_path / "a", log=b"at noon", mlflow_run_id="1")
    second = write(tmp_path / "b", name="f2", log=b"at night", mlflow_run_id="2")
    other = write(tmp_path / "c", data=b"abd")
    assert first.digest == second.digest
    assert first.digest != other.digest


def test_two_attempts_at_once_are_harmless(tmp_path: Path) -> None:
    place = str(tmp_path / "x")
    one = artifacts.ArtifactWriter(place, "documents", "x", {}, {})
    two = artifacts.ArtifactWriter(place, "documents", "x", {}, {})
    one.add_bytes("a", b"same")
    two.add_bytes("a", b"same")
    early_reader = one.commit({})
    two.commit({})
    assert early_reader.read("a") == b"same"
    assert artifacts.open_artifact(place).digest == early_reader.digest


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(b"ab"), "has 2 bytes instead of 3"),
        (lambda path: path.write_bytes(b"abX"), "was altered"),
    ],
)
@pytest.mark.parametrize("reader", ["read", "fetch", "fetch_folder"])
def test_a_spoilt_file_is_named(tmp_path: Path, damage: Any, words: str, reader: str) -> None:
    artifact = write(tmp_path)
    damage(Path(artifact.remote("train/a.txt")))
    with pytest.raises(UserError, match=f"'train/a.txt' of the documents artifact {words}"):
        if reader == "read":
            artifact.read("train/a.txt")
        elif reader == "fetch":
            artifact.fetch("train/a.txt", tmp_path / "cache")
        else:
            artifact.fetch_folder(tmp_path / "out", tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("a.txt"))


def test_an_altered_manifest_is_refused(tmp_path: Path) -> None:
    artifact = write(tmp_path)
    path = Path(artifact.uri) / artifacts.MANIFEST
    raw = json.loads(path.read_text("utf-8"))
    raw["files"][1]["sha256"] = "0" * 64
    path.write_text(json.dumps(raw), "utf-8")
    with pytest.raises(UserError, match=r"manifest\.json .*was altered"):
        artifacts.open_artifact(artifact.uri)


def test_the_wrong_kind_is_refused(tmp_path: Path) -> None:
    artifact = write(tmp_path)
    with pytest.raises(UserError, match="this is a documents artifact, and a shards artifact is needed"):
        artifacts.open_artifact(artifact.uri, "shards")


def test_an_ancestry_of_any_depth_is_read_once_each_inputs_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chain longer than Python's calls may be deep, each made from the two before it."""
    made: dict[str, artifacts.Artifact] = {}
    for number in range(1500):
        uris = [f"/store/{number - back}" for back in (1, 2) if number >= back]
        inputs = {"used": [{"uri": uri, "digest": "", "kind": "thing"} for uri in uris]}
        uri = f"/store/{number}"
        made[uri] = artifacts.Artifact(uri, artifacts.Manifest("thing", "", "", (), {}, inputs))
    read: list[str] = []

    def opened(uri: str) -> artifacts.Artifact:
        read.append(uri)
        return made[uri]

    monkeypatch.setattr(artifacts, "open_artifact", opened)
    assert [a.uri for a in artifacts.ancestry([made["/store/1499"]])] == list(made)
    assert len(read) == len(set(read)) == 1499


def test_a_file_is_no_artifact_and_is_told_what_makes_one_of_it(tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    file.write_bytes(b"weights")
    with pytest.raises(UserError, match=r"this is a file.*import_checkpoint"):
        open_artifact(str(file))


@pytest.mark.parametrize("refused", ["read_bytes", "write_bytes"])
def test_credentials_that_may_only_read_files_read_artifacts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, refused: str
) -> None:
    """AWS answers 403, and not 404, for an object that is not there, to who may not list."""
    made = write(tmp_path / "a")
    if refused == "write_bytes":
        marks.put(made.uri)
    real = getattr(storage, refused)

    def refuses(uri: str, *more: Any) -> Any:
        if uri.endswith((marks.MARK, marks.WANTED)):
            raise storage.AccessError(f"{uri}: refused the credentials")
        return real(uri, *more)

    monkeypatch.setattr(storage, refused, refuses)
    artifacts._warn_unsettled.cache_clear()
    for _ in range(2):
        assert open_artifact(made.uri).digest == made.digest
    assert len([r for r in caplog.records if "may read files of the store and no more" in r.message]) == 1
    with pytest.raises(storage.AccessError):
        Path(made.uri, "manifest.json").unlink()
        open_artifact(made.uri)


def test_fetch_keeps_files_by_content(tmp_path: Path) -> None:
    artifact = write(tmp_path)
    first = artifact.fetch("train/a.txt", tmp_path / "cache")
    Path(artifact.remote("train/a.txt")).unlink()
    assert artifact.fetch("train/a.txt", tmp_path / "cache") == first
    assert first.read_bytes() == b"abc"


def test_a_folder_keeps_its_names(tmp_path: Path) -> None:
    artifact = write(tmp_path)
    out = artifact.fetch_folder(tmp_path / "out", tmp_path / "cache", "train/")
    assert [p.name for p in out.rglob("*.txt")] == ["a.txt"]
    assert (out / "train" / "a.txt").read_bytes() == b"abc"
    assert artifact.remote_folder("train") == str(Path(artifact.remote("train/a.txt")).parent)


def test_writing_replaces_whole_files_only(tmp_path: Path) -> None:
    uri = str(tmp_path / "f")
    storage.write_bytes(uri, b"old")
    with pytest.raises(TypeError):
        storage.write_bytes(uri, "no bytes")  # type: ignore[arg-type]
    assert storage.read_bytes(uri) == b"old"
    assert storage.list_files(str(tmp_path)) == ["f"]
