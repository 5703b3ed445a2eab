"""What comes from outside and means harm: real files of each kind, told by name, and nothing written or run."""

from __future__ import annotations

import contextlib
import http.server
import json
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import zstandard

from mmbert import artifacts, storage
from mmbert.artifacts import ArtifactWriter, open_artifact
from mmbert.data.curation.executor import Jobs
from mmbert.data.curation.work import WorkStore
from mmbert.data.mds import COLUMNS
from mmbert.data.sources.mds import read_samples
from mmbert.data.sources.reader import UnreadableError
from mmbert.errors import InfrastructureError, UserError
from mmbert.evaluation.suites.finetuning import load_head, load_tokenizer
from mmbert.loader.shards import open_data_set
from mmbert.recipe import load_recipe
from mmbert.storage import list_files, list_versions

DIGEST = "0" * 64
TREES = ["../outside", "a/../../outside", "/outside", "a\0b"]


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Path]:
    """A folder to work in; afterwards nothing stands beside it."""
    folder = tmp_path / "inside"
    folder.mkdir()
    yield folder
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]


@pytest.mark.parametrize(
    "change",
    [
        *({"path": tree} for tree in TREES),
        *({"key": tree} for tree in TREES),
        {"path": ""},
        {"sha256": "../../outside"},
        {"sha256": DIGEST[1:]},
    ],
)
def test_a_manifest_that_names_files_outside_is_refused(inside: Path, change: dict[str, str]) -> None:
    writer = ArtifactWriter(str(inside / "artifact"), "documents", "f" * 32, {}, {})
    writer.add_bytes("a", b"text")
    manifest = writer.commit({}).manifest
    file = replace(manifest.files[0], **change)  # type: ignore[arg-type]
    digest = artifacts.content_digest(manifest.kind, [file])
    altered = {**asdict(manifest), "files": [asdict(file)], "content_digest": digest}
    (inside / "artifact" / "manifest.json").write_text(json.dumps(altered))
    with pytest.raises(UserError, match=r"artifact: manifest\.json cannot be read"):
        open_artifact(writer.uri).fetch_folder(inside / "target", inside / "cache")


def test_a_manifest_nested_beyond_reason_is_refused(inside: Path) -> None:
    (inside / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"manifest\.json cannot be read"):
        open_artifact(str(inside))


@contextlib.contextmanager
def store_with(keys: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An S3 server whose listing has these keys; ours here refuses to store them."""
    entries = "".join(f"<Contents><Key>{key}</Key><ETag>e</ETag><Size>1</Size></Contents>" for key in keys)
    listing = f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>".encode()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(listing)

        def log_message(self, *_: Any) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        for name in ("AWS_ENDPOINT_URL", "S3_ENDPOINT_URL"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{server.server_port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "any-key")
        storage.s3_client.cache_clear()
        yield
        storage.s3_client.cache_clear()
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("listed", [list_files, list_versions])
def test_an_object_whose_key_leaves_its_prefix_is_refused(
    listed: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("set/../../outside", "set//outside"):
        with store_with(["set/a", key], monkeypatch), pytest.raises(UserError, match="s3://bucket/set: an object") as e:
            listed("s3://bucket/set")
        assert "outside" in str(e.value)


def test_a_link_that_points_out_of_a_folder_is_refused(inside: Path) -> None:
    folder = inside / "set"
    folder.mkdir()
    (inside / "secret").write_text("a key")
    (folder / "real").write_text("text")
    (folder / "same").symlink_to(folder / "real")
    assert list_files(str(folder)) == ["real", "same"]
    (folder / "text.txt").symlink_to(inside / "secret")
    with pytest.raises(UserError, match=r"text\.txt: a link that points out of"):
        list_files(str(folder))


def shard(**changes: Any) -> dict[str, Any]:
    data = {"basename": "shard.mds", "bytes": 8, "hashes": {}}
    whole = {"raw_data": data, "zip_data": None, "compression": None, "hashes": ["xxh64"], "samples": 1}
    columns = {"column_names": ["tokens"], "column_encodings": ["bytes"], "column_sizes": [None]}
    return {"format": "mds", "version": 2, "size_limit": None, **whole, **columns, **changes}


def index(folder: Path, *shards: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": shards}))
    return folder


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("compression", [None, "zstd:1"])
def test_a_hub_shard_whose_name_leaves_its_folder_is_refused(inside: Path, tree: str, compression: str | None) -> None:
    named = {"basename": tree, "bytes": 8, "hashes": {}}
    plain = {"basename": "shard.mds", "bytes": 8, "hashes": {}}
    there = {"raw_data": plain, "zip_data": named} if compression else {"raw_data": named}
    folder = index(inside / "set", shard(**there, compression=compression))
    with pytest.raises(UnreadableError, match="which leaves its folder"):
        list(read_samples(str(folder), "", "index.json"))


@pytest.mark.parametrize("tree", TREES)
def test_a_loader_s_shard_whose_name_leaves_its_folder_is_refused(inside: Path, tree: str) -> None:
    columns = {"column_names": list(COLUMNS), "column_encodings": list(COLUMNS.values())}
    data = {"basename": tree, "bytes": 8, "hashes": {"xxh64": ""}}
    folder = index(inside / "set", shard(**columns, raw_data=data))
    (folder / "languages.json").write_text("{}")
    with pytest.raises(UserError, match=r"index.json: a shard is named .* leaves its folder"):
        open_data_set(str(folder))


class RunsCode:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return (Path.write_text, (self.place, "run"))


def test_a_shard_of_pickles_is_refused(inside: Path) -> None:
    import pickle

    value = pickle.dumps(RunsCode(inside / "run"))
    sample = struct.pack("<I", len(value)) + value
    whole = struct.pack("<III", 1, 12, 12 + len(sample)) + sample
    folder = index(inside / "set", shard(column_encodings=["pkl"]))
    (folder / "shard.mds").write_bytes(whole)
    with pytest.raises(UnreadableError, match="unsafe type: pkl"):
        list(read_samples(str(folder), "", "index.json"))
    assert not (inside / "run").exists()


def test_a_shard_is_unpacked_no_further_than_its_index_says(inside: Path) -> None:
    raw, packed = {"basename": "a.mds", "bytes": 1000, "hashes": {}}, {"basename": "a.zstd", "bytes": 1, "hashes": {}}
    folder = index(inside / "set", shard(raw_data=raw, zip_data=packed, compression="zstd:1"))
    bomb = zstandard.ZstdCompressor().compress(b"\0" * 2**28)
    assert len(bomb) < 2**15
    (folder / "a.zstd").write_bytes(bomb)
    import tracemalloc

    tracemalloc.start()
    with contextlib.suppress(UnreadableError):
        list(read_samples(str(folder), "", "index.json"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**25


def test_jobs_that_were_altered_in_the_store_are_not_unpickled(inside: Path) -> None:
    import pickle

    with Jobs.written(WorkStore(str(inside)), "attempt", ["first", "second"]) as jobs:
        assert [jobs[0], jobs[1]] == ["first", "second"]
        (file,) = (inside / "jobs").iterdir()
        evil = pickle.dumps(RunsCode(inside / "run"))
        file.write_bytes(struct.pack("<QQ", 16, 16 + 32 + len(evil)) + b"\0" * 32 + evil)
        with pytest.raises(UserError, match="it was altered since this run wrote it"):
            jobs[0]
    assert not (inside / "run").exists()


def bomb() -> str:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    return "\n".join(levels)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (bomb(), "more than 100,000 values"),
        ("seed: &a [*a]", "an alias stands inside of what it names"),
        ("seed: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("seed: !!python/name:os.system", "could not determine a constructor"),
        ("seed: " + "[" * 50_000, "not valid YAML"),
        ("seed: " + "9" * 10_000, "not valid YAML"),
        ("seed: 2026-13-45", "not valid YAML"),
        ("seed: 1\0", "not valid YAML"),
        ("sources: {a: {kind: files, path: 'https://me:password@example.org/x'}}", "sources.a.path holds an address"),
    ],
)
def test_yaml_that_means_harm_is_refused(inside: Path, text: str, why: str) -> None:
    recipe = inside / "recipe.yaml"
    recipe.write_text(text)
    with pytest.raises(UserError, match=why) as refused:
        load_recipe(str(recipe))
    assert "recipe.yaml" in str(refused.value)
    assert "me:password" not in str(refused.value)
    assert len(str(refused.value)) < 5000


@pytest.mark.parametrize("override", ["seed=!!python/name:os.system", "seed=" + "[" * 50_000, "seed=" + "9" * 10_000])
def test_an_override_that_means_harm_is_refused(override: str) -> None:
    with pytest.raises(UserError, match="is not a YAML value"):
        load_recipe("tiny", [override])


@pytest.mark.parametrize(
    ("auto", "load"),
    [
        ("AutoTokenizer", load_tokenizer),
        ("AutoModelForSequenceClassification", lambda folder: load_head(folder, "sequence", 2)),
        ("AutoModelForTokenClassification", lambda folder: load_head(folder, "tokens", 2)),
    ],
)
def test_a_model_s_own_code_is_not_run(inside: Path, auto: str, load: Callable[[Path], Any]) -> None:
    folder = inside / "model"
    folder.mkdir()
    (folder / "own.py").write_text(f"from pathlib import Path\nPath({str(inside / 'run')!r}).write_text('run')\n")
    named = ["own.Own", "own.Own"] if auto == "AutoTokenizer" else "own.Own"
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", auto: named}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    before = set(sys.modules)
    with pytest.raises(ValueError, match="trust_remote_code"):
        load(folder)
    assert not (inside / "run").exists()
    assert not [name for name in set(sys.modules) - before if name.endswith("own")]


@pytest.mark.parametrize("error", [UserError, InfrastructureError])
def test_a_message_shows_no_secret_and_moves_no_cursor(monkeypatch: pytest.MonkeyPatch, error: type[UserError]) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_aTokenOfSomebody")
    told = str(
        error(
            "document '\x1b[2J\x1b]0;title\x07evil\r\u202e' at https://me:password@host/a?X-Amz-Signature=abc123&b=1 "
            "with hf_aTokenOfSomebody; Authorization: Basic YWRtaW46cGFzc3dvcmQ="
        )
    )
    assert told == (
        r"document '\x1b[2J\x1b]0;title\x07evil\r\u202e' at https://***@host/a?X-Amz-Signature=***&b=1 "
        "with ***; Authorization: Basic ***"
    )
    assert str(error(told)) == told
