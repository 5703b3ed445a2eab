"""Data sets of the Hugging Face hub: every entry of the catalog, pinned commits, and what is said when it refuses.

The hub is a server on loopback (tests/hub_server.py) with small files in the schemas that the catalog's entries cite.
"""

from __future__ import annotations

import gzip
import io
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from datatrove.data import Document as Record
from huggingface_hub.utils import http_backoff
from pydantic import TypeAdapter
from tokenizers import Tokenizer, models

from components import planning
from components.contract import get_component
from components.runtime import run_component
from mmbert import artifacts
from mmbert import hub as hub_client
from mmbert.data.documents import TRAIN, Document, part_path, write_documents
from mmbert.data.readers import Selection, is_error
from mmbert.data.sources import make_reader
from mmbert.data.sources.tokenized import TokenizedReader
from mmbert.data.tokenizer import train_bpe
from mmbert.errors import InfrastructureError, UserError
from mmbert.loader.shards import ShardReader, open_data_set
from mmbert.recipe import load_recipe
from mmbert.recipe.catalog import catalog
from mmbert.recipe.pins import pin_revisions, unpinned
from mmbert.recipe.schema import Source, TokenizedSource
from tests.fixtures_stack import free_port
from tests.hub_server import TOKEN, HubServer, Repo

EVERYTHING = Selection(1, 0, frozenset())
SOURCE: TypeAdapter[Any] = TypeAdapter(Source)
VOCAB_SIZE = 1000


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    hub_client.forget_commits()
    yield
    hub_client.forget_commits()


def source(kind: str = "huggingface", **settings: Any) -> Any:
    return SOURCE.validate_python({"kind": kind, **settings})


def read(settings: Any, selection: Selection = EVERYTHING) -> list[Record]:
    reader = make_reader("web", settings)
    return [record for unit in reader.units(selection) for record in reader.read(unit, selection)]


def parquet(rows: list[dict[str, Any]]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def card(paths: Mapping[str, str]) -> str:
    """A data card that lays out a subset a line."""
    configs = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {path}\n" for name, path in paths.items()
    )
    return f"---\nconfigs:\n{configs}---\n# A data set\n"


def mds(folder: Path, rows: list[dict[str, Any]], columns: dict[str, str], **options: Any) -> dict[str, bytes]:
    """Files of an MDS data set, as the streaming library writes it."""
    from streaming import MDSWriter

    with MDSWriter(out=str(folder), columns=columns, **options) as writer:
        for row in rows:
            writer.write(row)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def under(prefix: str, files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {f"{prefix}/{name}": data for name, data in files.items()}


WEB_ROW = {"text": "Hallo Welt", "id": "<urn:1>", "dump": "CC-MAIN-2020", "url": "https://a", "date": "2020-01-01",
           "file_path": "s3://x", "language": "deu", "language_score": 0.9, "language_script": "Latn",
           "minhash_cluster_size": 2, "top_langs": "{}", "quality_score": 0.7, "embeddings": [[0.1] * 4]}  # fmt: skip
WEB_FACTS = {"date": "2020-01-01", "url": "https://a", "dump": "CC-MAIN-2020"}
DOLMA_ROW = {"id": "d1", "text": "Hello", "source": "x", "added": "2023-01-01T00:00:00Z", "created": "2020-01-01",
             "version": "v0", "metadata": {"url": "https://a", "nested": {"mixed": [1, "two"]}}}  # fmt: skip
DOLMA_FACTS = {"date": "2020-01-01", "url": "https://a"}
DCLM_ROW = {"bff_contained_ngram_count_before_dedupe": 0, "language_id_whole_page_fasttext": {"en": 0.9},
            "metadata": {"WARC-Date": "2020-01-01T00:00:00Z", "WARC-Record-ID": "<urn:2>"}, "previous_word_count": 2,
            "text": "Hello", "url": "https://a", "warcinfo": "x",
            "fasttext_openhermes_reddit_eli5_vs_rw_v2_bigram_200k_train_prob": 0.1}  # fmt: skip
CODE_ROW = {"max_stars_repo_path": "a.py", "max_stars_repo_name": "a/b", "max_stars_count": 1, "id": "0",
            "content": "print()"}  # fmt: skip
WIKI_ROW = {"title": "Heide", "wikicode": "x", "hash": "ab12", "last_revision": "2023-12-03T10:50:40Z",
            "first_revision": None, "text": "Die Heide", "elements": [{"type": "heading", "level": 1},
            {"type": "paragraph", "sentences": [{"text": "x"}, "y"]}], "excerpts_with_citations": []}  # fmt: skip

CODE_FACTS = {"max_stars_repo_name": "a/b", "max_stars_repo_path": "a.py"}

# name: (repository, files, (id, text, language, facts) of what is read)
TABLE: dict[str, tuple[str, dict[str, bytes | str], tuple[str, str, str, dict[str, Any]]]] = {
    "fineweb2": (
        "HuggingFaceFW/fineweb-2",
        {"README.md": card({c: f"data/{c}/train/*" for c in ("deu_Latn", "deu_Latn_removed")}),
         "data/deu_Latn/train/000_00000.parquet": parquet([WEB_ROW]),
         "data/deu_Latn_removed/train/000_00000.parquet": parquet([WEB_ROW])},
        ("web/deu_Latn/<urn:1>", "Hallo Welt", "deu_Latn",
         WEB_FACTS | {"language_score": 0.9, "minhash_cluster_size": 2}),
    ),
    "fineweb2_hq": (
        "epfml/FineWeb2-HQ",
        {"README.md": card({"deu_Latn": "deu_Latn/*"}), "deu_Latn/000_00000.parquet": parquet([WEB_ROW])},
        ("web/deu_Latn/<urn:1>", "Hallo Welt", "deu_Latn", WEB_FACTS | {"quality_score": 0.7}),
    ),
    "dclm": (
        "mlfoundations/dclm-baseline-1.0",
        {"global-shard_01_of_10/local-shard_0_of_10/shard_00000000_processed.jsonl.zst":
         zstandard.compress(lines([DCLM_ROW]))},
        ("web/eng_Latn/<urn:2>", "Hello", "eng_Latn", {"date": "2020-01-01T00:00:00Z", "url": "https://a"}),
    ),
    "starcoder": (
        "bigcode/starcoderdata",
        {"python/train-00000-of-00059.parquet": parquet([CODE_ROW]),
         "git-commits-cleaned/train-00000-of-00010.parquet": parquet([{"content": "x", "commit_id": "1"}])},
        ("web/python/train-00000-of-00059.parquet/1", "print()", "code", CODE_FACTS),
    ),
    "wikipedia": (
        "jhu-clsp/megawika-2",
        {"de/de-00000-of-00002.jsonl": lines([WIKI_ROW]), "README.md": "# MegaWika 2", "schema.md": "x",
         "xx/xx-00000.jsonl": lines([WIKI_ROW])},
        ("web/deu_Latn/ab12", "Die Heide", "deu_Latn", {"date": "2023-12-03T10:50:40Z", "title": "Heide"}),
    ),
    "textbook_chapters": (
        "princeton-nlp/TextbookChapters",
        {"data/train-00000-of-00003.parquet": parquet([{"textbook_title": "Algebra", "chapter": "Sets"}])},
        ("web/data/train-00000-of-00003.parquet/1", "Sets", "eng_Latn", {}),
    ),
}  # fmt: skip
for _name, _folder in (("dclm_dolmino", "dclm/0000"), ("pes2o", "pes2o"), ("stackexchange_dolmino", "stackexchange"),
                       ("flan_dolmino", "flan"), ("dolmino_math", "math/tulu_math")):  # fmt: skip
    _subset = _folder.partition("/")[0]
    _row: dict[str, Any] = DOLMA_ROW | ({"metadata": "{}", "url": "https://a"} if _subset == "math" else {})
    _facts = {"url": "https://a"} if _subset == "dclm" else DOLMA_FACTS
    TABLE[_name] = (
        "allenai/dolmino-mix-1124",
        {"README.md": card({_subset: f"data/{_subset}/**"}),
         f"data/{_folder}/part-0.json.gz": gzip.compress(lines([_row]))},
        ("web/eng_Latn/d1", "Hello", "eng_Latn", _facts),
    )  # fmt: skip
DOLMA = {"arxiv": "redpajama-arxiv", "stackexchange": "redpajama-stackexchange", "books": "books",
         "tulu_flan": "tulu_flan"}  # fmt: skip
PROLONG = {"textbooks": "textbooks", "prolong_code": "thestackv1_concat_by_repo-65536"}
TOKENIZED = {
    "mmbert_pretrain_p1": ("train/fineweb2-a/deu_Latn_train-tokenized/batch_0", "deu_Latn"),
    "mmbert_pretrain_p2": ("train/deu_Latn/part-tokenized", "deu_Latn"),
    "mmbert_pretrain_p3": ("train/books/part-tokenized", "eng_Latn"),
    "mmbert_midtraining": ("train/books-sampled-ext/books_0-tokenized-chunked-8192-512-32-backfill-nodups", "eng_Latn"),
    "mmbert_decay": ("train/fineweb2-sampled-decay-v2/deu_Latn/x-tokenized", "deu_Latn"),
}


def test_every_entry_of_the_catalog_is_read_in_these_tests() -> None:
    assert {*TABLE, *DOLMA, *PROLONG, *TOKENIZED} == set(catalog())
    assert all(entry["taken_from"] and entry["about"] for entry in catalog().values())


@pytest.mark.parametrize("name", TABLE)
def test_the_catalogs_sets_are_read(hub: HubServer, name: str) -> None:
    repository, files, expected = TABLE[name]
    hub.add(repository, files)
    found = [(r.id, r.text, r.metadata["language"], r.metadata["facts"]) for r in read(source("catalog", name=name))]
    assert found == [expected]


@pytest.mark.parametrize("name", DOLMA)
def test_dolmas_files_lie_elsewhere(hub: HubServer, name: str) -> None:
    address = "https://olmo-data.org"
    path = f"/dolma-v1_7/{DOLMA[name]}/x-0000.json.gz"
    hub.files[path] = gzip.compress(lines([DOLMA_ROW]))
    urls = [f"{hub.endpoint}{path}", f"{hub.endpoint}/dolma-v1_7/wiki/wiki-0000.json.gz"]
    hub.add("allenai/dolma", {"urls/v1_7.txt": "\n".join(urls)})
    settings = source("catalog", name=name)
    (pattern,) = settings.data_files
    assert pattern.startswith(address)
    here = settings.model_copy(update={"data_files": (pattern.replace(address, hub.endpoint),)})
    found = [(r.id, r.text, r.metadata["language"], r.metadata["facts"]) for r in read(here)]
    assert found == [("web/eng_Latn/d1", "Hello", "eng_Latn", DOLMA_FACTS)]
    with pytest.raises(UserError, match=r"none of the 2 URLs in allenai/dolma/urls/v1_7\.txt matches"):
        read(settings)


@pytest.mark.parametrize("name", PROLONG)
def test_prolongs_tokens_become_text_again(hub: HubServer, name: str, tmp_path: Path) -> None:
    words = ["<pad>", "Sets", "are", "fun", "Maps", "too"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "<pad>"))
    hub.add("NousResearch/Meta-Llama-3-8B", {"tokenizer.json": tokenizer.to_str()})
    row = {"input_ids": np.array([1, 2, 3, 4, 5], np.uint32), "indices": np.array([[0, 3], [3, 5]], np.uint32)}
    columns = {"input_ids": "ndarray:uint32", "indices": "ndarray:uint32"}
    files = mds(tmp_path / "mds", [row], columns)
    hub.add("princeton-nlp/prolong-data-64K", under(f"{PROLONG[name]}/proc00-64", files))
    settings = source("catalog", name=name)
    assert [(r.text, r.metadata["language"]) for r in read(settings)] == [
        ("Sets are fun", settings.language), ("Maps too", settings.language)
    ]  # fmt: skip


@pytest.mark.parametrize("name", TOKENIZED)
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_published_tokens_are_read(hub: HubServer, name: str, compression: str | None, tmp_path: Path) -> None:
    settings = source("catalog", name=name)
    folder, language = TOKENIZED[name]
    rows = [{"input_ids": np.array(ids, np.uint32), "id": "x"} for ids in ([2, 7, 8, 9], [10, 11, 1], [999])]
    columns = {"input_ids": "ndarray:uint32", "id": "str"}
    files = mds(tmp_path / "mds", rows, columns, compression=compression)
    # Their repositories also have merged indexes above, which must not make anything count twice.
    merged = {"train/index.json": files["index.json"], f"{folder.rpartition('/')[0]}/index.json": files["index.json"]}
    hub.add(settings.dataset, {**merged, **under(folder, files)})
    reader = TokenizedReader("tokens", settings)
    (unit,) = reader.units(EVERYTHING)
    assert unit.languages == (language,)
    found = list(reader.read_tokens(unit, VOCAB_SIZE))
    assert [(name, ids.tolist()) for name, ids in found] == [(language, i) for i in ([2, 7, 8, 9], [10, 11, 1], [999])]
    assert {ids.dtype for _, ids in found} == {np.dtype(np.uint32)}
    assert reader.units(Selection(1, 0, frozenset({language}))) == []


def test_tokens_of_another_tokenizer_are_an_error(hub: HubServer, tmp_path: Path) -> None:
    rows = [{"input_ids": np.array(ids, np.uint32)} for ids in ([5], [5, 1000])]
    files = mds(tmp_path / "mds", rows, {"input_ids": "ndarray:uint32"})
    hub.add("a/tokens", under("deu_Latn", files) | {"fao_Latn/index.json": b"{"})
    settings = TokenizedSource(kind="tokenized", dataset="a/tokens", path="{language}")
    reader = TokenizedReader("tokens", settings)
    good, broken = reader.units(EVERYTHING)
    with pytest.raises(UserError, match=r"deu_Latn/shard\.00000\.mds, row 2: its token ids are 5 to 1000, the vocab"):
        list(reader.read_tokens(good, VOCAB_SIZE))
    with pytest.raises(UserError, match=r"fao_Latn/index\.json: not an index of MDS shards"):
        list(reader.read_tokens(broken, VOCAB_SIZE))
    other = TokenizedReader("tokens", settings.model_copy(update={"tokens_field": "tokens"}))
    with pytest.raises(UserError, match="no column 'tokens'; it has input_ids"):
        list(other.read_tokens(good, VOCAB_SIZE))
    with pytest.raises(UserError, match=r"has no index\.json of MDS shards at train/\{language\}"):
        TokenizedReader("t", settings.model_copy(update={"path": "train/{language}"})).units(EVERYTHING)


def test_only_the_languages_of_a_selection_are_listed(hub: HubServer) -> None:
    subsets = ("deu_Latn", "fao_Latn")
    files = {f"data/{c}/a.parquet": parquet([WEB_ROW]) for c in subsets}
    hub.add("a/some", {"README.md": card({c: f"data/{c}/*" for c in subsets}), **files})
    without = Selection(1, 0, frozenset({"deu_Latn"}))
    for settings in (
        source(dataset="a/some", subset="{language}"),
        source(dataset="a/some", data_files=["data/{language}/*"]),
    ):
        hub.requests.clear()
        (unit,) = make_reader("web", settings).units(without)
        assert (unit.name, unit.languages) == ("data/fao_Latn/a.parquet", ("fao_Latn",))
    assert not [request for request in hub.requests if request.endswith("/deu_Latn")]
    assert (
        make_reader("web", source(dataset="a/some", data_files=["data/**"], language="deu_Latn")).units(without) == []
    )


def test_subsets_with_codes_of_their_own(hub: HubServer) -> None:
    hub.add("a/codes", {"README.md": card({"de.x": "de/*", "zz.x": "zz/*"}), "de/a.jsonl": lines([{"text": "Ja"}]),
                        "zz/a.jsonl": lines([{"text": "?"}])})  # fmt: skip
    settings = source(dataset="a/codes", subset="{language}.x", language_codes={"de": "deu_Latn"})
    assert [(r.text, r.metadata["language"]) for r in read(settings)] == [("Ja", "deu_Latn")]


def test_a_data_set_without_a_card_or_in_a_local_folder(hub: HubServer, tmp_path: Path) -> None:
    files = {"train.jsonl": lines([{"text": "Ja"}])}
    hub.add("a/plain", files)
    (tmp_path / "train.jsonl").write_bytes(files["train.jsonl"])
    for dataset in ("a/plain", str(tmp_path)):
        assert [r.text for r in read(source(dataset=dataset, language="deu_Latn"))] == ["Ja"]
    assert (
        unpinned(load_recipe("tiny", [f"sources.a={{kind: huggingface, dataset: {tmp_path}, language: code}}"])) == []
    )


def test_formats_that_are_not_read_by_line_go_through_datasets(hub: HubServer) -> None:
    hub.add("a/array", {"train.json": json.dumps([{"text": "eins"}, {"text": "zwei"}], indent=1)})
    assert [r.text for r in read(source(dataset="a/array", language="deu_Latn"))] == ["eins", "zwei"]


def test_what_a_hub_file_holds_can_be_dropped_too(hub: HubServer) -> None:
    hub.add("a/broken", {"a.jsonl.gz": gzip.compress(lines([{"text": "Ja"}, {"body": "x"}]))[:-4]})
    settings = source(dataset="a/broken", data_files=["*"], language="deu_Latn")
    with pytest.raises(UserError, match=r"source web: a/broken/a\.jsonl\.gz, line 2: no text in the field 'text'"):
        read(settings)
    found = read(settings.model_copy(update={"on_error": "drop"}))
    assert [r.metadata["error"] for r in found if is_error(r)] == ["missing_field", "corrupt_compression"]


def test_a_run_reads_one_commit(hub: HubServer) -> None:
    repo = hub.add("a/moving", {"a.jsonl": lines([{"text": "alt"}])})
    settings = source(dataset="a/moving", data_files=["*.jsonl"], language="deu_Latn")
    recipe = load_recipe("tiny").model_copy(update={"sources": {"web": settings}})
    assert unpinned(recipe) == ["web"]
    pinned = pin_revisions(recipe)
    assert not unpinned(pinned)
    (before,) = make_reader("web", pinned.sources["web"]).units(EVERYTHING)
    repo.commit({"a.jsonl": lines([{"text": "neu"}])})
    repo.tags["v1"] = next(iter(repo.commits))
    hub_client.forget_commits()
    assert [r.text for r in read(pinned.sources["web"])] == ["alt"]
    assert [r.text for r in read(settings)] == ["neu"]
    assert [r.text for r in read(settings.model_copy(update={"revision": "v1"}))] == ["alt"]
    (after,) = make_reader("web", settings).units(EVERYTHING)
    assert before.version != after.version
    hub.requests.clear()
    pin_revisions(pinned)
    assert hub.requests == []


def test_a_workflow_run_keeps_its_commit_and_the_next_sees_the_new_one(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = hub.add("a/live", {"a.jsonl": lines([{"text": "alt"}])})
    monkeypatch.setenv("MMBERT_CACHE", str(tmp_path / "cache"))
    web = "sources={web: {kind: huggingface, dataset: a/live, data_files: ['*.jsonl'], language: deu_Latn}}"

    def made(run: str) -> tuple[str, str]:
        """(where the recipe is, the fingerprint of curation with it) in a workflow run."""
        monkeypatch.setenv("MMBERT_WORKFLOW_RUN", run)
        hub_client.forget_commits()
        arguments = {"preset": "tiny", "overrides": [web, "language_sets={}", *LANGUAGES]}
        uri = run_component(get_component("recipe"), arguments, str(tmp_path)).uri
        curation = planning.plan(get_component("curate"), {"recipe": uri, "group": "0"}, str(tmp_path))
        return uri, curation.fingerprint

    first = made("run 1")
    assert f"revision: {repo.find('main')}".encode() in artifacts.open_artifact(first[0]).read("recipe.yaml")
    unchanged = made("run 2")
    assert unchanged[1] == first[1]
    repo.commit({"a.jsonl": lines([{"text": "neu"}])})
    assert made("run 1") == first
    assert made("run 3")[1] != first[1]


LANGUAGES = [f"phases.{key}.languages=all" for key in ("pretrain", "extend")] + [
    "phases.decay.variants={decay-all: {languages: all}}", "phases.pretrain.language_shares={}"
]  # fmt: skip


@pytest.fixture
def private(hub: HubServer) -> Repo:
    hub.add("a/gated", {"README.md": card({"deu_Latn": "a.jsonl"}), "a.jsonl": lines([{"text": "Ja"}])}, gated=True)
    return hub.add("a/private", {"a.jsonl": lines([{"text": "Ja"}])}, private=True)


@pytest.mark.usefixtures("private")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "a/gated"}, r"a/gated is gated: accept its terms at http.*/datasets/a/gated, then set HF_TOKEN"),
        ({"dataset": "a/private"}, r"a/private does not exist, or is private: .* set HF_TOKEN to a .*\(none is set\)"),
        ({"dataset": "a/absent"}, r"a/absent does not exist"),
        ({"dataset": "a/open", "revision": "v2"}, r"a/open has no revision 'v2'; it has (main|v1)"),
        ({"dataset": "a/open", "subset": "deu_Lat"}, r"no subset 'deu_Lat'; among its 2 are deu_Latn"),
        ({"dataset": "a/open", "subset": "x-{language}"}, r"no subset 'x-\{language\}'"),
        ({"dataset": "a/open", "subset": "deu_Latn", "split": "dev"}, r"has no split 'dev'; it has train"),
        ({"dataset": "a/open", "data_files": ("data/*.jsonl",)}, r"no file .* matches .*; at its top are README\.md"),
        ({"dataset": "a/open", "text_field": "body"}, r"a/open/de\.jsonl, line 1: no text in the field 'body'"),
        ({"dataset": "a/script"}, r"a/script is read by a script of its own"),
    ],
)
def test_refusals_say_what_to_do(hub: HubServer, changes: dict[str, Any], message: str) -> None:
    subsets = {"README.md": card({"deu_Latn": "de.jsonl", "fao_Latn": "fo.jsonl"})}
    rows = lines([{"text": "Ja"}])
    repo = hub.add("a/open", {**subsets, "de.jsonl": rows, "fo.jsonl": rows})
    repo.tags["v1"] = next(iter(repo.commits))
    hub.add("a/script", {"script.py": "import datasets", "README.md": "x"})
    with pytest.raises(UserError, match=f"source web: .*{message}"):
        read(source(**{"language": "deu_Latn", **changes}))


@pytest.mark.usefixtures("private")
def test_a_token_opens_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(UserError, match=r"is gated: .*\(the present one is not\)"):
        read(source(dataset="a/gated", language="deu_Latn"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for dataset in ("a/gated", "a/private"):
        hub_client.forget_commits()
        assert [r.text for r in read(source(dataset=dataset, language="deu_Latn"))] == ["Ja"]


def test_a_hub_that_is_away_is_worth_a_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    settings = source(dataset="a/any", language="deu_Latn")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InfrastructureError, match=r"a/any cannot be reached at http://127\.0\.0\.1:9.*HF_ENDPOINT"):
        read(settings)
    with pytest.raises(InfrastructureError, match=r"a/model: .* http://127\.0\.0\.1:9 cannot be reached"):
        hub_client.model_commit("a/model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InfrastructureError, match="HF_HUB_OFFLINE"):
        read(settings)


def test_tokens_of_the_hub_become_shards_without_curation(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the components, beside text of the user's own."""
    rows = [{"input_ids": np.array(ids, np.uint32)} for ids in ([2, 2, 80, 90, 1], [100, 110], list(range(5, 65)))]
    hub.add("a/tokens", under("train/ltz_Latn", mds(tmp_path / "mds", rows, {"input_ids": "ndarray:uint32"})))
    own = tmp_path / "text" / "deu_Latn" / "a.txt"
    own.parent.mkdir(parents=True)
    own.write_text("".join(f"Satz {word} steht hier und sagt nichts.\n" for word in ["eins", "zwei", "drei", "vier"]))
    write_documents(
        part_path(tmp_path / "documents", TRAIN, "own", "deu_Latn"), [Document("1", "abc " * 99, "deu_Latn", "own")]
    )
    model = load_recipe("tiny", ["model.vocab_size=300"]).model
    train_bpe([tmp_path / "documents"], model, 1000, tmp_path / "tokenizer")
    monkeypatch.setenv("MMBERT_CACHE", str(tmp_path / "cache"))
    sources = {
        "own": {"kind": "files", "path": str(tmp_path / "text"), "held_out_share": 1e-9},
        "tokens": {"kind": "tokenized", "dataset": "a/tokens", "path": "train/{language}"},
    }
    overrides = [
        f"sources={json.dumps(sources)}", f"tokenizer={{kind: pretrained, name: {tmp_path / 'tokenizer'}}}",
        "model.vocab_size=300", "curation={groups: 1}", "shards.row_tokens=32",
    ]  # fmt: skip

    def run(component: str, **arguments: object) -> artifacts.Artifact:
        uri = run_component(get_component(component), arguments, str(tmp_path / "root")).uri
        return artifacts.open_artifact(uri)

    recipe = run("recipe", preset="tiny", overrides=overrides).uri
    documents = run("curate", recipe=recipe, group="0")
    assert list(documents.read_json("counts.json")) == ["own"]
    tokenizer = run("tokenizer", recipe=recipe, documents=[documents.uri])
    shards = run("tokenize", recipe=recipe, documents=documents.uri, tokenizer=tokenizer.uri)
    counts = shards.read_json("counts.json")
    assert sorted(counts) == ["own", "tokens"]
    assert counts["own"]["deu_Latn"]["documents"] == 4
    data_set, languages = open_data_set(shards.remote_folder("tokens"))
    assert list(languages) == ["ltz_Latn"]
    reader = ShardReader([data_set], tmp_path / "shard-cache", 300)
    tokens = [reader(0, row)[0].tolist() for row in range(languages["ltz_Latn"].rows)]
    # Whole documents first; the long one is cut into pieces, each with its own ends.
    assert tokens == [[2, 2, 80, 90, 1, 2, 100, 110, 1], [2, *range(5, 35), 1], [2, *range(35, 65), 1]]


def test_a_hub_that_is_tried_again_and_again_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    warned: list[str] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: warned.append(record.getMessage()))
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "handlers", [handler])
    with pytest.raises(InfrastructureError), hub_client.explained("source web", "a/b", "main"):
        http_backoff("GET", f"http://127.0.0.1:{free_port()}", max_retries=2, base_wait_time=0.01)
    assert len(warned) == 1
    assert warned[0].endswith("; trying again")
