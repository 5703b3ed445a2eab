"""What protects from an S3 that misbehaves: with it the same bytes come through, without it they do not."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mmbert import artifacts, sealed, storage
from mmbert.data.curation.work import WorkStore, read_checked
from mmbert.data.rows import Place
from mmbert.data.shard_units import Progress, Shard, Unit
from mmbert.errors import InfrastructureError, UserError
from mmbert.loader.shards import open_data_set
from mmbert.training import resume
from tests.chaos import s3
from tests.chaos.proxy import OF_BODIES, Proxy, Rule, proxied
from tests.chaos.stores import BUCKET, Store, in_this_process
from tests.fixtures_stack import S3
from tests.small_run import SmallRun

DATA = bytes(range(256)) * 400
PLACE = f"s3://{BUCKET}/proxy/a.bin"


@pytest.fixture(scope="module")
def store(s3_server: S3) -> Iterator[Store]:
    from contextlib import ExitStack

    s3_server.make_bucket(BUCKET)
    with ExitStack() as stack:
        proxy = stack.enter_context(proxied(s3_server.endpoint))
        made = Store(s3_server, proxy, SmallRun("", "", "", "", "", ""))
        in_this_process(made.environment, stack)
        yield made


@pytest.fixture
def proxy(store: Store) -> Iterator[Proxy]:
    storage.write_bytes(PLACE, DATA)
    store.proxy.clear()
    yield store.proxy
    store.proxy.clear()


@pytest.fixture
def no_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that keeps none, or a fault that lies behind it."""
    monkeypatch.setattr(storage, "_WITH_CHECKSUM", {})


@pytest.mark.parametrize(
    "action",
    ["slow", "503", "503 checksum", "500 after", "cut before", *OF_BODIES, "reset upload", "wrong etag"],
)
def test_the_proxy_does_it_and_the_bytes_come_through(proxy: Proxy, action: Any, tmp_path: Path) -> None:
    proxy.rules = [Rule(action, "GET", "*/a.bin*")]
    assert storage.read_bytes(PLACE) == DATA
    assert proxy.met == 1
    proxy.clear()
    proxy.rules = [Rule(action, "GET", "*/a.bin*")]
    storage.download(PLACE, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == DATA
    assert proxy.met == 1
    if action not in OF_BODIES:
        proxy.clear()
        proxy.rules = [Rule(action, "PUT", "*/b.bin*")]
        storage.write_bytes(f"{PLACE[:-5]}b.bin", DATA)
        assert proxy.met == 1
        assert storage.read_bytes(f"{PLACE[:-5]}b.bin") == DATA


@pytest.mark.parametrize(("action", "said"), [("503", "SlowDown"), ("503 checksum", "503.*Service Unavailable")])
def test_a_store_that_answers_nothing_else_is_told(proxy: Proxy, action: Any, said: str) -> None:
    proxy.rules = [Rule(action, times=s3.FOR_GOOD)]
    with pytest.raises(InfrastructureError, match=said):
        storage.read_bytes(PLACE)
    assert proxy.met == 5


def test_without_reading_again_a_cut_body_ends_the_work(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_S3_ATTEMPTS", 1)
    proxy.rules = [Rule("cut body", "GET", "*/a.bin*")]
    with pytest.raises(InfrastructureError):
        storage.read_bytes(PLACE)


@pytest.mark.parametrize("action", ["flip", "shorter"])
def test_without_the_servers_checksum_altered_bytes_are_taken(proxy: Proxy, action: Any, no_checksums: None) -> None:
    proxy.rules = [Rule(action, "GET", "*/a.bin*")]
    assert storage.read_bytes(PLACE) != DATA


def test_a_range_is_as_long_as_its_header_says(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    def read() -> bytes:
        proxy.clear()
        proxy.rules = [Rule("shorter", "GET", "*/a.bin*")]
        return storage.read_range(PLACE, 100, 1000)

    assert read() == DATA[100:1100]
    monkeypatch.setattr(storage, "re", SimpleNamespace(match=lambda *_: None))
    assert read() == DATA[100:600]


def test_what_is_read_in_ranges_is_one_version(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_S3_RANGE_BYTES", 1000)

    def read() -> bytes:
        storage.write_bytes(PLACE, DATA)
        with storage.open_read(PLACE) as stream:
            first = stream.read(1000)
            storage.write_bytes(PLACE, DATA[::-1])
            return first + stream.read()

    with pytest.raises(InfrastructureError, match="changed while it was read"):
        read()
    unpinned = storage.read_range
    monkeypatch.setattr(storage, "_read_range", lambda uri, etag, start, length: unpinned(uri, start, length))
    assert read() == DATA[:1000] + DATA[::-1][1000:]


def test_an_artifacts_files_are_checked_against_its_manifest(
    proxy: Proxy, no_checksums: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    writer = artifacts.ArtifactWriter(f"s3://{BUCKET}/proxy/artifact", "documents", "f", {}, {})
    writer.add_bytes("a", DATA)
    made = writer.commit({})

    def read() -> tuple[bytes, bytes]:
        proxy.clear()
        proxy.rules = [Rule("flip", "GET", "*attempts*/a*"), Rule("shorter", "GET", "*attempts*/a*", at=2)]
        data = made.read("a")
        proxy.clear()
        proxy.rules = [Rule("shorter", "GET", "*attempts*/a*")]
        made.download("a", tmp_path / "a")
        return data, (tmp_path / "a").read_bytes()

    with pytest.raises(artifacts.SpoiltError, match="has 51200 bytes instead of 102400"):
        read()  # damaged twice
    proxy.clear()
    proxy.rules = [Rule("flip", "GET", "*attempts*/a*")]
    assert made.read("a") == DATA
    monkeypatch.setattr(artifacts.Artifact, "_check", lambda *_: None)
    assert [data == DATA for data in read()] == [False, False]


def test_a_manifest_tells_whether_it_is_whole(
    proxy: Proxy, no_checksums: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its outputs are outside of the content digest."""
    writer = artifacts.ArtifactWriter(f"s3://{BUCKET}/proxy/sealed", "documents", "f", {}, {})
    writer.outputs["label"] = "a" * 5_000  # so that the altered byte falls here
    made = writer.commit({})
    proxy.rules = [Rule("flip", "GET", "*manifest.json*")]
    assert artifacts.open_artifact(made.uri).outputs == made.outputs
    assert proxy.met == 1
    proxy.clear()
    proxy.rules = [Rule("flip", "GET", "*manifest.json*")]
    monkeypatch.setattr(sealed, "_checksum", lambda _: monkeypatch)
    monkeypatch.setattr(artifacts, "unseal", _unchecked)
    assert artifacts.open_artifact(made.uri).outputs != made.outputs


def _unchecked(data: bytes) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(data)
    del value["checksum"]
    return value


def test_the_loaders_index_is_checked(proxy: Proxy, no_checksums: None) -> None:
    entry = {"column_names": ["tokens", "lengths"], "column_encodings": ["ndarray:uint32"] * 2, "hashes": ["xxh64"],
             "raw_data": {"basename": "a" * 5_000, "bytes": 3}, "zip_data": None, "samples": 4}  # fmt: skip
    base = f"s3://{BUCKET}/proxy/set"
    languages = {"deu_Latn": {"row_begin": 0, "rows": 4, "tokens": 9}}
    digests = []
    for name, value in (("index.json", {"shards": [entry]}), ("languages.json", languages)):
        data = json.dumps(value).encode()
        storage.write_bytes(f"{base}/{name}", data)
        digests.append(digest(data))
    whole, _ = open_data_set(base)
    found = []
    for known in ((digests[0], digests[1]), ("", "")):
        proxy.clear()
        proxy.rules = [Rule("flip", "GET", "*index.json*")]
        found.append(open_data_set(base, known)[0].shards == whole.shards)
    assert found == [True, False]


def test_what_curation_keeps_is_checked(proxy: Proxy, no_checksums: None, tmp_path: Path) -> None:
    kept = WorkStore(f"s3://{BUCKET}/proxy/work")
    (tmp_path / "file").write_bytes(DATA)
    kept.commit("stage", "f" * 32, {"file": tmp_path / "file"}, {"parts": "a" * 5_000})
    proxy.rules = [Rule("flip", "GET", "*done.json*"), Rule("flip", "GET", "*f/file*")]
    finished = kept.find("stage", ["f" * 32])["f" * 32]
    assert finished.found == {"parts": "a" * 5_000}
    file = finished.files["file"]
    assert read_checked(file, 1_000, 500, digest(DATA[1_000:1_500])) == DATA[1_000:1_500]
    assert proxy.met == 2
    for rule in (Rule("flip", "GET", "*f/file*", times=2), Rule("shorter", "GET", "*f/file*", times=s3.FOR_GOOD)):
        proxy.rules = [rule]
        with pytest.raises((UserError, InfrastructureError), match=r"altered|cut"):
            read_checked(file, 1_000, 500, digest(DATA[1_000:1_500]))
    proxy.rules = [Rule("flip", "GET", "*f/file*")]
    assert storage.read_range(file.uri, 1_000, 500) != DATA[1_000:1_500]


def test_what_a_damaged_marker_of_tokenization_stands_for_is_made_again(proxy: Proxy, no_checksums: None) -> None:
    unit = Unit("web", 0, ())
    shard = Shard("web/shard", "0" * 64, 3, {"note": "a" * 5_000}, {}, Place(1, 2, 3))
    uri = f"s3://{BUCKET}/proxy/progress"
    Progress(uri, []).finish_shard(unit, 0, shard)
    progress = Progress(uri, [*storage.list_files(uri), shard.path])
    for times, found in ((1, [shard]), (2, [])):
        proxy.rules = [Rule("flip", "GET", "*.json*", times=times)]
        assert progress.shards(unit) == found


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def trial(store: Store, folder: Path, action: Any, target: str, at: int = 1) -> None:
    """One trial of the matrix: checkpoints that are kept and gone on from, with one fault."""
    subject = s3.Subject("checkpoints", s3._checkpoints)
    place = f"{folder.name}-{action}"
    wanted = s3._do(subject, store, f"{place}-lone", folder)
    store.proxy.clear()
    store.proxy.rules = [Rule(action, "GET", target, at=at)]
    assert s3._do(subject, store, place, folder) == wanted
    assert store.proxy.met


def test_a_trial_is_lost_where_resume_checkpoints_are_not_checked(
    store: Store, no_checksums: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trial(store, tmp_path / "with", "flip", "*composer.pt*")
    monkeypatch.setattr(resume.ResumePoint, "_fetch", lambda self, name, to: storage.download(f"{self.uri}/{name}", to))
    with pytest.raises(AssertionError):
        trial(store, tmp_path / "without", "flip", "*composer.pt*")


def test_a_checkpoint_counts_once_all_of_it_is_there(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken_off(name: str) -> list[int]:
        writer = artifacts.ArtifactWriter(f"s3://{BUCKET}/proxy/{name}", "checkpoint", "f" * 32, {}, {})
        folder = tmp_path / name
        folder.mkdir()
        for file in ("composer.pt", "loader.bin"):
            (folder / file).write_bytes(DATA)
        store.proxy.clear()
        store.proxy.rules = [Rule("503", "PUT", "*loader.bin*", times=s3.FOR_GOOD)]
        with pytest.raises(InfrastructureError):
            resume._save(writer, resume.Saved(1, 100, folder))
        store.proxy.clear()
        return [point.batch for point in resume.newest_first(writer.uri)]

    assert broken_off("last") == []
    save = resume._save

    def marker_first(output: artifacts.ArtifactWriter, saved: resume.Saved) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(storage, "upload", lambda uri, source: None)
            save(output, saved)
        save(output, saved)

    monkeypatch.setattr(resume, "_save", marker_first)
    assert broken_off("first") == [1]


@pytest.mark.parametrize("checksums", [True, False])
def test_a_bit_changed_on_its_way_up_is_found_at_reading(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checksums: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """AWS refuses it; this server keeps it."""
    if not checksums:
        monkeypatch.setattr(storage, "_WITH_CHECKSUM", {})
    proxy.rules = [Rule("flip upload", "PUT", "*attempts*"), Rule("flip upload", "PUT", "*000002/composer.pt*")]
    writer = artifacts.ArtifactWriter(f"s3://{BUCKET}/proxy/up-{checksums}", "checkpoint", "f" * 32, {}, {})
    writer.add_bytes("a", DATA)
    with pytest.raises(artifacts.SpoiltError, match="'a' of the checkpoint artifact was altered"):
        writer.commit({}).read("a")
    for batch in (1, 2):
        folder = tmp_path / str(batch)
        folder.mkdir()
        (folder / "composer.pt").write_bytes(DATA)
        resume._save(writer, resume.Saved(batch, batch, folder))
    newest = resume.CheckpointStore(writer, 2).fetch_newest(tmp_path / "found")
    assert newest is not None
    assert newest.batch == 1
    assert "trying an older resume checkpoint" in capsys.readouterr().out
    assert proxy.met == 2


def test_a_manifest_is_written_behind_its_files(store: Store, tmp_path: Path) -> None:
    def broken_off(name: str, manifest_first: bool) -> artifacts.Artifact | None:
        store.proxy.clear()
        store.proxy.rules = [Rule("reset upload", "PUT", "*attempts*", times=s3.FOR_GOOD)]
        writer = artifacts.ArtifactWriter(f"s3://{BUCKET}/proxy/{name}", "documents", "f", {}, {})
        with pytest.raises(InfrastructureError):
            _write(writer, manifest_first)
        store.proxy.clear()
        return artifacts.find(writer.uri)

    assert broken_off("behind", manifest_first=False) is None
    assert broken_off("before", manifest_first=True) is not None


def _write(writer: artifacts.ArtifactWriter, manifest_first: bool) -> None:
    if manifest_first:
        writer._files["a"] = dataclasses.replace(writer._entry("a", "0" * 64, 3, True))
        writer.commit({})
    writer.add_bytes("a", b"abc")
    writer.commit({})
