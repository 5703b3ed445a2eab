from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmbert import marks, storage
from mmbert.artifacts import Artifact, Manifest, content_digest
from mmbert.errors import InfrastructureError
from mmbert.lineage import Store, read_store
from mmbert.lineage.naming import Named, place_of
from mmbert.lineage.store import read_ancestry
from mmbert.lineage.text import trace_text
from mmbert.lineage.trace import trace_down, trace_up
from tests.fixtures_stack import S3
from tests.lineage_stores import put


def _artifact(index: int, inputs: set[int], made: list[Artifact]) -> Artifact:
    entries = [{"uri": made[i].uri, "digest": made[i].digest, "kind": "thing"} for i in sorted(inputs)]
    # The kind makes each content its own, as files would.
    kind = f"thing-{index}"
    return Artifact(f"/store/thing/{index}", Manifest(kind, "", content_digest(kind, ()), (), {}, {"used": entries}))


@st.composite
def graphs(draw: st.DrawFn) -> list[set[int]]:
    """By artifact, those before it that it was made from."""
    size = draw(st.integers(1, 14))
    return [draw(st.sets(st.integers(0, i - 1), max_size=4)) if i else set() for i in range(size)]


@given(graphs(), st.randoms(use_true_random=False))
def test_down_and_up_are_each_others_inverse_and_inputs_come_first(graph: list[set[int]], order: object) -> None:
    made: list[Artifact] = []
    for index, inputs in enumerate(graph):
        made.append(_artifact(index, inputs, made))
    shuffled = list(made)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    store = Store("/store", {a.uri: a for a in shuffled})
    down = {a.uri: store.made_of([a.uri]) for a in made}
    up = {a.uri: store.made_from([a.uri]) for a in made}
    for one, made_of in down.items():
        assert {other for other, walk in down.items() if one in walk} == set(up[one])
        for walk in (made_of, up[one]):
            assert len(walk) == len(set(walk))
            for uri in walk:
                before = {i.found for i in store.inputs(uri)} & set(walk)
                assert all(walk.index(found) < walk.index(uri) for found in before)
    reached: set[int] = set()
    waiting = [len(graph) - 1]
    while waiting:
        reached.add(current := waiting.pop())
        waiting += graph[current]
    assert set(down[made[-1].uri]) == {made[i].uri for i in reached}


@pytest.fixture(params=["folder", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "folder":
        return str(tmp_path / "root")
    server: S3 = request.getfixturevalue("s3_server")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return f"{server.make_bucket('lineage')}/{tmp_path.name}"


def test_a_store_is_read_with_what_is_gone_unreadable_and_unfinished(root: str) -> None:
    text = put(root, "documents", "text")
    first = put(root, "shards", "first", {"documents": [text]})
    second = put(root, "shards", "second", {"documents": [text]})
    lost = put(root, "tokenizer", "lost")
    mixture = put(root, "mixture", "mixture", {"shards": [first, second], "tokenizer": [lost]})
    storage.delete_tree(lost.uri)
    spoilt = put(root, "shards", "spoilt")
    storage.write_bytes(f"{spoilt.uri}/manifest.json", b"{")
    started = f"{root}/checkpoint/{'a' * 32}"
    storage.write_bytes(f"{started}/attempts/1/weights", b"x")
    kept = put(f"{root}/checkpoint/{'a' * 32}", "permanent", "kept", {"mixture": [mixture]})
    storage.write_bytes(f"{root}/work/curation/{'b' * 32}/manifest.json", b"not an artifact")

    store = read_store(root)

    assert set(store.artifacts) == {text.uri, first.uri, second.uri, mixture.uri, kept.uri}
    assert store.made_of([mixture.uri]) == [text.uri, first.uri, second.uri, mixture.uri]
    assert store.made_from([text.uri])[-2:] == [mixture.uri, kept.uri]
    (missing,) = store.missing()
    assert (missing.uri, missing.kind, missing.needed_by) == (lost.uri, "tokenizer", (mixture.uri,))
    assert list(store.unreadable) == [spoilt.uri]
    assert "cannot be read" in store.unreadable[spoilt.uri]
    assert store.unfinished == {started}


def test_a_store_that_moved_keeps_its_edges_by_content(tmp_path: Path) -> None:
    there, here = str(tmp_path / "there"), str(tmp_path / "here")
    text = put(there, "documents", "text")
    shards = put(there, "shards", "shards", {"documents": [text]})
    shutil.move(there, here)
    store = read_store(here)
    moved = shards.uri.replace(there, here)
    assert store.made_of([moved]) == [text.uri.replace(there, here), moved]
    assert not store.missing()


def _two_runs(root: str) -> tuple[list[Artifact], list[Artifact]]:
    """Reports, whose files are not digested, and what was made from each."""
    reports = [put(root, "report", run, digested=False) for run in ("one", "two")]
    return reports, [put(root, "release", r.manifest.fingerprint, {"report": [r]}) for r in reports]


def test_no_other_stands_for_an_input_whose_files_are_not_digested(tmp_path: Path) -> None:
    reports, releases = _two_runs(str(tmp_path))
    assert reports[0].digest == reports[1].digest
    assert not reports[0].identified
    assert releases[0].identified
    store = read_store(str(tmp_path))
    for report, release in zip(reports, releases, strict=True):
        assert store.made_of([release.uri]) == [report.uri, release.uri]
        assert store.affected_by([report.uri]) == [report.uri, release.uri]
    storage.delete_tree(reports[0].uri)
    store = read_store(str(tmp_path))
    (missing,) = store.missing()
    assert (missing.uri, missing.needed_by) == (reports[0].uri, (releases[0].uri,))
    assert "none of its files is digested" in missing.problem
    assert store.made_of([releases[0].uri]) == [releases[0].uri]


@pytest.mark.parametrize("move", [shutil.move, shutil.copytree])
def test_in_a_copied_store_it_is_found_by_its_fingerprint(tmp_path: Path, move: Callable[[str, str], object]) -> None:
    there, here = str(tmp_path / "there"), str(tmp_path / "here")
    reports, releases = _two_runs(there)
    move(there, here)
    store = read_store(here)
    for report, release in zip(reports, releases, strict=True):
        moved = [a.uri.replace(there, here) for a in (report, release)]
        assert store.made_of([moved[1]]) == moved
    assert not store.missing()


def test_inputs_in_another_store_are_read_from_there(tmp_path: Path) -> None:
    text = put(str(tmp_path / "one"), "documents", "text")
    shards = put(str(tmp_path / "two"), "shards", "shards", {"documents": [text]})
    store = read_store(str(tmp_path / "two"))
    assert store.made_of([shards.uri]) == [text.uri, shards.uri]


def test_an_input_made_anew_with_another_content_is_said_to_be_another(tmp_path: Path) -> None:
    text = put(str(tmp_path), "documents", "text")
    shards = put(str(tmp_path), "shards", "shards", {"documents": [text]})
    put(str(tmp_path), "documents", "text", files={"content.json": "other text"})
    store = read_store(str(tmp_path))
    assert store.made_of([shards.uri]) == [shards.uri]
    (missing,) = store.missing()
    assert "another content stands there now" in missing.problem


def test_what_was_made_of_an_equal_content_is_affected_too(tmp_path: Path) -> None:
    root = str(tmp_path)
    one, two = (put(root, "documents", name, files={"content.json": "equal"}) for name in ("one", "two"))
    shards = put(root, "shards", "shards", {"documents": [one]})
    store = read_store(root)
    assert store.made_from([two.uri]) == [two.uri]
    assert set(store.affected_by([two.uri])) == {one.uri, two.uri, shards.uri}


def test_an_absent_folder_is_empty_and_an_absent_bucket_an_error(
    s3_server: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not read_store(f"{tempfile.gettempdir()}/no-such-root").artifacts
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    storage.s3_client.cache_clear()
    with pytest.raises(InfrastructureError, match="no bucket 'absent'"):
        read_store("s3://absent/root")


def test_naming_an_artifact_to_be_traced_writes_nothing(tmp_path: Path) -> None:
    made = put(str(tmp_path), "documents", "a")
    marks.put(made.uri)
    before = storage.list_versions(str(tmp_path))
    assert place_of(f"{made.uri}/") == made.uri
    assert storage.list_versions(str(tmp_path)) == before


def test_a_long_chain_is_shown_from_either_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than Python's calls may be deep."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    made: list[Artifact] = []
    for index in range(1500):
        made.append(_artifact(index, {index - 1} if index else set(), made))
    store = Store("/store", {artifact.uri: artifact for artifact in made})
    down = trace_down("it", Named((made[-1].uri,), "a URI"), store, lambda: None)
    lines = trace_text(down).splitlines()
    assert sum(line.endswith(made[0].uri) for line in lines) == 1
    up = trace_up("it", "a URI", [made[0].uri], store, lambda: None)
    for found in (down, up):
        assert len(found.to_json()["artifacts"]) == 1500
        assert all(found.making(artifact.uri) for artifact in made)


def test_down_from_a_uri_reads_its_ancestry_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(tmp_path)
    base = put(root, "documents", "base")
    model = put(root, "model", "m", {"documents": [base]})
    scores = put(root, "scores", "s", {"model": [model]})
    put(root, "scores", "others", {"model": [put(root, "model", "other")]})
    read: list[str] = []
    real = storage.read_bytes

    def reads(uri: str) -> bytes:
        read.append(uri.split("/")[-3])
        return real(uri)

    monkeypatch.setattr(storage, "read_bytes", reads)

    found = read_ancestry(root, scores.uri)
    assert sorted(read) == ["documents", "model", "scores"]
    assert found.made_of([scores.uri]) == [base.uri, model.uri, scores.uri]
    found, whole = read_ancestry(root, model.uri), read_store(root)
    assert (found.made_of([model.uri]), found.outputs(model.uri)) == ([base.uri, model.uri], [scores.uri])
    assert found.inputs(model.uri) == whole.inputs(model.uri)
    # What was moved is found by its content, wherever it is.
    shutil.move(base.uri, tmp_path / "documents" / ("e" * 32))
    assert read_ancestry(root, model.uri).inputs(model.uri)[0].found == f"{root}/documents/{'e' * 32}"
