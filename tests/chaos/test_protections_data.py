"""Each protection of the data side: with it a trial of the fault matrix is survived, and without it the trial fails."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components import runtime
from mmbert import places, storage
from mmbert.artifacts import Artifact, ArtifactWriter, File, find, open_artifact
from mmbert.data.curation.work import WorkStore
from mmbert.data.mds import ShardFormat, finish_shard
from mmbert.data.rows import Place, TokenBatch
from mmbert.data.shard_units import Part, Progress, RowSettings, Shard, Unit, _UnitWriter, write_unit
from mmbert.errors import InfrastructureError, UserError
from mmbert.places import cache_folder, scratch_folder
from tests.chaos.data_run import Step
from tests.chaos.operations import operations, stopped
from tests.chaos.operations import places as places_of

Work = Callable[[ArtifactWriter, str], None]
Remove = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Small(Step):
    """A step that takes no time: `work` fills the artifact, and keeps what it likes below the root."""

    work: Work

    def run(self, root: str) -> None:
        if find(self.place(root)) is None:
            writer = ArtifactWriter(self.place(root), "small", "f", {}, {})
            self.work(writer, root)
            writer.commit({})


def small(folder: Path, work: Work) -> Small:
    writer = ArtifactWriter(str(folder / "undisturbed" / "small" / "f"), "small", "f", {}, {})
    work(writer, str(folder / "undisturbed"))
    return Small("small", {}, writer.commit({}), work)


def lost(step: Small) -> list[str]:
    """The places where stopping it is not survived."""
    found = []
    for at, moment in places_of(operations(step)[0]):
        try:
            stopped(step, at, moment)
        except (AssertionError, UserError, InfrastructureError) as error:
            found.append(f"{at}-{moment}: {error}")
    return found


def files(writer: ArtifactWriter, root: str) -> None:
    """As most components do; a report has a clock in it."""
    writer.add_bytes("a", b"the text of a")
    writer.add_bytes("b", b"the text of b")
    writer.add_bytes("report", uuid.uuid4().bytes, digested=False)


def pieces(writer: ArtifactWriter, root: str) -> None:
    """As curation does: finished pieces of work are kept, and become the artifact's."""
    store = WorkStore(storage.join(root, "work"))
    if not store.find("clean", ["piece"]):
        with scratch_folder() as folder:
            paths = {name: folder / name for name in ("kept", "dropped")}
            for name, path in paths.items():
                path.write_text(f"what is {name}")
            store.commit("clean", "piece", paths, {})
    done = store.find("clean", ["piece"])["piece"]
    writer.add_copies((name, file.uri, file.sha256, file.size, True) for name, file in done.files.items())


_ROWS = RowSettings(8, ShardFormat("zstd:1", 300), None, None, np.zeros(100, np.bool_))


def shards(writer: ArtifactWriter, root: str) -> None:
    """As tokenization does: a unit of several shards, which a later attempt goes on with."""
    unit = Unit("source", 0, (Part("source", "eng_Latn", "part", 1),))
    progress = Progress(writer.kept_uri, storage.list_files(writer.kept_uri))
    made = progress.unit(unit) or write_unit(unit, _tokens, _ROWS, progress, writer.kept_uri)
    for shard in made:
        writer.adopt(shard.path, shard.sha256, shard.size)
    writer.add_json("index.json", [shard.entry for shard in made])


def _tokens(parts: Sequence[Part], begin: Place) -> Iterator[TokenBatch]:
    for document in range(begin.document, 5):
        ids = np.full(6, document, np.uint32)
        yield TokenBatch("eng_Latn", 0, document, ids, np.array([6]), np.array([6]))


def fetching(source: Artifact, writer: ArtifactWriter, root: str) -> None:
    """As whoever reads an artifact does: through the cache."""
    writer.add_file("copy", source.fetch("a", cache_folder()))


def manifest_first(patch: pytest.MonkeyPatch) -> None:
    late: list[tuple[str, bytes]] = []
    commit = ArtifactWriter.commit

    def add_bytes(self: ArtifactWriter, path: str, data: bytes, digested: bool = True) -> None:
        self._files[path] = entry = self._entry(path, hashlib.sha256(data).hexdigest(), len(data), digested)
        late.append((storage.join(self.uri, entry.key), data))

    def committed(self: ArtifactWriter, producer: Mapping[str, Any]) -> Artifact:
        artifact = commit(self, producer)
        while late:
            storage.write_bytes(*late.pop())
        return artifact

    patch.setattr(ArtifactWriter, "add_bytes", add_bytes)
    patch.setattr(ArtifactWriter, "commit", committed)


@contextlib.contextmanager
def _in_place(target: Path) -> Iterator[Path]:
    target.parent.mkdir(parents=True, exist_ok=True)
    yield target


def written_in_place(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(storage, "_replacing", _in_place)


def done_first(patch: pytest.MonkeyPatch) -> None:
    def commit(self: WorkStore, stage: str, name: str, given: Mapping[str, Path], found: Mapping[str, Any]) -> None:
        base = storage.join(self.uri, stage, name)
        listed = {file: [hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_size] for file, p in given.items()}
        storage.write_bytes(storage.join(base, "done.json"), json.dumps({"files": listed, "found": found}).encode())
        for file, path in given.items():
            storage.upload(storage.join(base, file), path)

    patch.setattr(WorkStore, "commit", commit)


def marker_first(patch: pytest.MonkeyPatch) -> None:
    def write(self: _UnitWriter, number: int, buffer: Any, languages: Any, after: Place) -> Shard:
        name = f"shard.{self._unit.number:05d}-{number:05d}.mds"
        path = f"{self._unit.source}/{name}{self._settings.format.file_suffix()}"
        entry, data = finish_shard(buffer, self._settings.format, name)
        shard = Shard(path, hashlib.sha256(data).hexdigest(), len(data), entry, languages, after)
        self._progress.finish_shard(self._unit, number, shard)
        storage.write_bytes(storage.join(self._uri, path), data)
        return shard

    def trusting(self: Progress, unit: Unit) -> list[Shard]:
        found: list[Shard] = []
        while shard := self._read(self._shard_path(unit, len(found))):
            found += shard
        return found

    patch.setattr(_UnitWriter, "_write", write)
    patch.setattr(Progress, "shards", trusting)


def cached_in_place(patch: pytest.MonkeyPatch) -> None:
    def fetch(self: Artifact, path: str, cache: Path) -> Path:
        target = cache / self.file(path).sha256
        if not target.exists():
            storage.download(self.remote(path), target)
        return target

    written_in_place(patch)
    patch.setattr(Artifact, "fetch", fetch)


@pytest.mark.parametrize(
    ("work", "remove"),
    [
        pytest.param(files, manifest_first, id="the manifest is written last"),
        pytest.param(files, written_in_place, id="a file is written beside its place and renamed"),
        pytest.param(pieces, done_first, id="a piece of curation is done when its files are there"),
        pytest.param(shards, marker_first, id="a shard's marker counts behind the shard"),
        pytest.param("fetching", cached_in_place, id="the cache takes whole files"),
    ],
)
def test_stopped_anywhere_nothing_is_lost_but_without_the_protection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: Work | str, remove: Remove
) -> None:
    monkeypatch.setenv("MMBERT_CACHE", str(tmp_path / "cache"))
    if work == "fetching":
        source = ArtifactWriter(str(tmp_path / "source"), "small", "s", {}, {})
        source.add_bytes("a", b"the text of the source")
        work = functools.partial(fetching, source.commit({}))
    step = small(tmp_path, work)  # type: ignore[arg-type]
    assert not lost(step)
    remove(monkeypatch)
    assert lost(step)


def test_a_predecessor_that_wakes_up_writes_under_its_own_prefix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = small(tmp_path, files)

    def overlapping(root: str) -> None:
        """A predecessor that is suspended before each of its operations in turn while its retry works to the end."""
        for add in ("a", "report"):
            predecessor = ArtifactWriter(step.place(root), "small", "f", {}, {})
            if add == "a":
                predecessor.add_bytes("a", b"the text of a")
            step.run(root)
            predecessor.add_bytes(add, uuid.uuid4().bytes if add == "report" else b"the text of a", add == "a")
            assert step.check_readable(root)

    overlapping(str(tmp_path / "with"))

    def shared(self: ArtifactWriter, path: str, sha256: str, size: int, digested: bool) -> File:
        return File(path, f"attempts/shared/{path}", sha256, size, digested)

    monkeypatch.setattr(ArtifactWriter, "_entry", shared)
    with pytest.raises(UserError, match="was altered"):
        overlapping(str(tmp_path / "without"))


def test_what_is_read_is_held_against_its_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = small(tmp_path / "source", files)
    path = Path(source.artifact.remote("a"))

    def reading(writer: ArtifactWriter, root: str) -> None:
        writer.add_bytes("read", open_artifact(source.artifact.uri).read("a"))

    step = small(tmp_path, reading)
    path.write_bytes(path.read_bytes().swapcase())  # what a disk or a proxy may do
    with pytest.raises(UserError, match="was altered"):
        step.run(str(tmp_path / "with"))
    assert not step.check_readable(str(tmp_path / "with"))

    monkeypatch.setattr(Artifact, "read", lambda self, name: storage.read_bytes(self.remote(name)))
    step.run(str(tmp_path / "without"))
    with pytest.raises(AssertionError, match="another content digest"):
        step.check_same(str(tmp_path / "without"))


class Away:
    """A tracker whose server is away at first."""

    active = True

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.away = True

    def replay_spool(self, source: bytes) -> int:
        if self.away:
            self.away = False
            raise InfrastructureError("away")
        self.sent.append(source)
        return 1


def _deleted_first(tracker: Any, root: str) -> None:
    for path in storage.list_files(storage.join(root, "spool")):
        uri = storage.join(root, "spool", path)
        data = storage.read_bytes(uri)
        storage.delete_file(uri)
        tracker.replay_spool(data)


@pytest.mark.parametrize(
    ("replay", "sent"),
    [
        pytest.param(runtime.replay_spools, [b"{}\n"], id="with"),
        pytest.param(_deleted_first, [], id="without"),
    ],
)
def test_a_spool_is_kept_until_it_is_sent(tmp_path: Path, replay: Callable[..., None], sent: list[bytes]) -> None:
    storage.write_bytes(str(tmp_path / "spool" / "one.jsonl"), b"{}\n")
    tracker = Away()
    with pytest.raises(InfrastructureError, match="away"):
        replay(tracker, str(tmp_path))
    replay(tracker, str(tmp_path))
    assert tracker.sent == sent
    assert not storage.list_files(str(tmp_path / "spool"))


def test_a_file_that_is_being_written_is_nobodys_to_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = tmp_path / "spool" / "one.jsonl"
    tracker = Away()
    tracker.away = False

    def upload_while_another_replays() -> None:
        with storage._replacing(spool) as incoming:
            incoming.write_bytes(b"{}\n")
            runtime.replay_spools(tracker, str(tmp_path))  # type: ignore[arg-type]

    upload_while_another_replays()
    assert spool.read_bytes() == b"{}\n"
    assert not tracker.sent
    monkeypatch.setattr(storage, "_INCOMING", re.compile("nothing"))
    with pytest.raises(FileNotFoundError):
        upload_while_another_replays()


def test_scratch_folders_are_swept_when_their_process_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMBERT_SCRATCH", str(tmp_path))
    (killed := tmp_path / "mmbert-scratch-killed").mkdir()
    (killed / "file").touch()
    (other := tmp_path / "mmbert-of-mine").mkdir()

    def beside_another() -> bool:
        with scratch_folder() as mine:
            (mine / "file").touch()
            places._sweep.cache_clear()
            with scratch_folder():
                return (mine / "file").exists()

    places._sweep.cache_clear()
    assert beside_another()
    assert list(tmp_path.iterdir()) == [other]

    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    assert not beside_another()
