"""`mmbert trace` over a store in real S3 with a real MLflow server: down from a model, up from a source."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from playwright.sync_api import Browser

from components.cli import cli
from mmbert import storage
from mmbert.artifacts import Artifact
from mmbert.errors import UserError
from mmbert.evaluation.results.store import record
from mmbert.tracking import Registry, connect
from mmbert.tracking.api import Api
from tests.browser import opened
from tests.fixtures_stack import S3, MlflowServer
from tests.lineage_stores import put
from tests.scores import card, score

RUN = "nightly manual__2026-11-28T22:00:00+00:00"
AIRFLOW = {"dag_id": "mmbert_pretrain", "run_id": "manual__2026-11-28T22:00:00+00:00", "task_id": "merge"}
COMMIT = "a" * 40
WEIGHTS = {"weights": [1, 2, 3]}


@dataclass
class Made:
    """A run's artifacts by name, and what it is registered as."""

    root: str
    name: str
    released: Path
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    results: str = ""
    run_id: str = ""


def _documents(root: str, **producer: Any) -> Artifact:
    def kept(n: int) -> dict[str, Any]:
        return {"train": {"documents": n, "bytes": 10 * n}, "heldout": {"documents": 2, "bytes": 20}}

    sources = {
        "own": {"kind": "files", "path": "/texts"},
        "web": {"kind": "huggingface", "dataset": "someone/web", "revision": COMMIT},
        "elsewhere": {"kind": "eld"},  # none of its text is in this group of languages
    }
    files: dict[str, object] = {
        "counts.json": {"own": {"deu_Latn": kept(30), "eng_Latn": kept(50)}, "web": {"deu_Latn": kept(7)}}
    }
    return put(
        root, "documents", "curate", files=files,
        parameters={"recipe": {"sources": sources}, "files": {"own": "f" * 64}},
        texts={
            "train/own/deu_Latn/00000.jsonl.zst": ["own/deu_Latn/a.txt/1", "own/deu_Latn/a.txt/12"],
            "dropped/own/00000.jsonl.zst": ["own/deu_Latn/a.txt/3"],
        },
        **producer,
    )  # fmt: skip


def _mixture(root: str, shards: Artifact, name: str, rows: list[tuple[str, str, int]], **producer: Any) -> Artifact:
    listed = [{"source": s, "language": lang, "tokens": tokens} for s, lang, tokens in rows]
    return put(
        root, "mixture", name, {"shards": [shards]}, files={"mixture.json": {"rows": listed, "of": name}}, **producer
    )


@pytest.fixture(scope="module")
def made(s3_server: S3, mlflow_server: MlflowServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    with pytest.MonkeyPatch.context() as patch:
        for key, value in s3_server.environment.items():
            patch.setenv(key, value)
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
        patch.setenv("MMBERT_AIRFLOW_URL", "http://airflow.example:8080/")
        patch.setenv("MMBERT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield _made(f"{s3_server.make_bucket('tracing')}/root", mlflow_server, tmp_path_factory.mktemp("released"))


def _made(root: str, server: MlflowServer, released: Path) -> Made:
    found = Made(root, "traced-model", released)
    a = found.artifacts
    told: dict[str, Any] = {"workflow_run": RUN, "image": "mmbert-data:1@sha256:" + "b" * 64}
    a["documents"] = _documents(root, **told)
    a["tokenizer"] = put(root, "tokenizer", "tokenizer", {"documents": [a["documents"]]}, **told)
    counts = {"own": {"deu_Latn": {"tokens": 300}, "eng_Latn": {"tokens": 500}}, "web": {"deu_Latn": {"tokens": 70}}}
    inputs = {"documents": [a["documents"]], "tokenizer": [a["tokenizer"]]}
    a["shards"] = put(root, "shards", "tokenize", inputs, files={"counts.json": counts}, **told)
    a["first mixture"] = _mixture(root, a["shards"], "mixture_pretrain", [("own", "eng_Latn", 900)], **told)
    rows = [("own", "eng_Latn", 400), ("own", "deu_Latn", 250)]
    a["second mixture"] = _mixture(root, a["shards"], "mixture_extend", rows, **told)
    a["pretrained"] = put(
        root, "checkpoint", "train_pretrain", {"mixture": [a["first mixture"]], "shards": [a["shards"]]}, **told
    )
    a["extended"] = put(
        root, "checkpoint", "train_extend",
        {"checkpoint": [a["pretrained"]], "mixture": [a["second mixture"]], "shards": [a["shards"]]}, **told,
    )  # fmt: skip
    a["merged"] = put(root, "checkpoint", "merge", {"checkpoints": [a["extended"]]}, **told, airflow=AIRFLOW)
    with connect("mmbert/traced", RUN).component_run(
        task="convert", component="convert", fingerprint="f", tags={}
    ) as run:
        a["model"] = put(
            root, "model", "convert", {"checkpoint": [a["merged"]], "tokenizer": [a["tokenizer"]]},
            files={"model.safetensors": WEIGHTS}, mlflow_run_id=run.run_id, **told,
        )  # fmt: skip
        run.set_tags({"mmbert.uri": a["model"].uri})
        found.run_id = run.run_id or ""
    scores = card(score(value=0.6), score(value=0.5, language="deu_Latn"), model_digest=a["model"].digest)
    made_of = {"model": [a["model"]], "documents": [a["documents"]]}
    a["scores"] = put(root, "scores", "evaluate", made_of, files={"scores.json": scores.to_json()}, **told)
    found.results = record(root, scores)
    a["other"] = put(root, "recipe", "recipe", workflow_run="another run")
    (found.released / "model.safetensors").write_bytes(a["model"].read("model.safetensors"))
    (found.released / "README.md").write_text("# edited after its release")
    Registry(Api(server.uri)).register(
        name=found.name, source_uri=a["model"].remote_folder(""), content_digest=a["model"].digest, run_id=None,
        tags={"mmbert.uri": a["model"].uri, "mmbert.scores.xtreme": a["scores"].uri, "mmbert.gate": "passed"},
        description="", alias="candidate",
    )  # fmt: skip
    return found


def told(made: Made, *arguments: str) -> str:
    result = CliRunner().invoke(cli, ["trace", *arguments, "--root", made.root], catch_exceptions=False)
    return result.stdout


def traced(made: Made, *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(told(made, *arguments, "--json"))
    return found


def refused(made: Made, *arguments: str) -> str:
    with pytest.raises(UserError) as error:
        told(made, *arguments)
    return str(error.value)


DOWN = (
    "documents",
    "tokenizer",
    "shards",
    "first mixture",
    "second mixture",
    "pretrained",
    "extended",
    "merged",
    "model",
)


def test_a_released_model_is_traced_to_its_sources_with_links_to_what_made_it(
    made: Made, mlflow_server: MlflowServer
) -> None:
    found = traced(made, f"{made.name}@candidate")
    artifacts = {entry["uri"]: entry for entry in found["artifacts"]}
    assert set(artifacts) == {made.artifacts[name].uri for name in DOWN}
    assert found["targets"] == [made.artifacts["model"].uri]
    places = list(artifacts)
    for uri, entry in artifacts.items():
        assert all(places.index(item["uri"]) < places.index(uri) for item in entry["inputs"])
        assert entry["workflow_run"] == RUN
        assert entry["content_digest"] in {a.digest for a in made.artifacts.values()}
    model, merged = (artifacts[made.artifacts[name].uri] for name in ("model", "merged"))
    assert model["mlflow_url"] == f"{mlflow_server.uri}/#/runs/{made.run_id}"
    assert (
        merged["airflow_url"] == "http://airflow.example:8080/dags/mmbert_pretrain/runs/"
        "manual__2026-11-28T22%3A00%3A00%2B00%3A00/tasks/merge"
    )
    own, web = found["sources"]
    assert (own["name"], own["kind"], own["place"], own["version"]) == ("own", "files", "/texts", "f" * 64)
    assert own["documents"]["eng_Latn"] == {"heldout": 2, "train": 50}
    assert (web["place"], web["version"], web["languages"]) == ("someone/web", COMMIT, ["deu_Latn"])
    (version,) = found["registered"]
    assert (version["name"], version["aliases"], version["gate"]) == (made.name, ["candidate"], "passed")
    (scores,) = found["scores"]
    assert (scores["uri"], scores["suites"]) == (made.artifacts["scores"].uri, ["xtreme"])
    assert found["missing"] == found["problems"] == []


def test_in_the_terminal_what_is_shared_is_shown_once(made: Made) -> None:
    text = told(made, f"{made.name}/1")
    for name in DOWN:
        assert text.count(f"  {made.artifacts[name].uri}\n") == 1, name
    assert text.count("source  own: files, /texts@ffffffffffff, 84 documents") == 1
    shards = made.artifacts["shards"].digest[:12]
    assert text.count(f"{shards}  (above)") == 3


def test_every_name_of_a_thing_leads_to_the_same_trace(made: Made) -> None:
    model, scores = made.artifacts["model"], made.artifacts["scores"]
    for name in (
        model.uri, model.digest, model.digest[:10], model.manifest.fingerprint, made.run_id, str(made.released),
        str(made.released / "model.safetensors"), f"models:/{made.name}/1",
    ):  # fmt: skip
        assert traced(made, name)["targets"] == [model.uri], name
    for name in (f"{made.name}@candidate#xtreme", made.results, scores.uri):
        found = traced(made, name)
        assert found["targets"] == [scores.uri], name
        assert [v["score"] for v in found["scores"][0]["values"]] == ["xtreme/xnli/accuracy"]
    for name in (RUN, RUN.partition(" ")[2]):
        whole = traced(made, name)
        assert {entry["uri"] for entry in whole["artifacts"]} == {
            a.uri for key, a in made.artifacts.items() if key != "other"
        }


def test_of_a_name_that_means_nothing_it_says_where_it_looked_and_what_there_is(made: Made) -> None:
    for name, words in {
        f"{made.name}@champion": (f"'{made.name}' with the alias 'champion'", "it has the versions 1"),
        "absent@champion": ("there are", made.name),
        "0123456789abcdef": ("content digests, fingerprints", made.artifacts["model"].digest[:12]),
        "manual__2020": ("a workflow run in MLflow", "tokenizer"),
        f"{made.name}@candidate#glue": ("has scores of xtreme",),
    }.items():
        error = refused(made, name)
        for word in (*words, name.partition("#")[0]):
            assert word in error
    assert "there is no artifact; name another store" in refused(
        Made(f"{made.root}-empty", made.name, made.released), "0123456789abcdef"
    )
    assert "give either WHAT or --source" in refused(made)


def test_deleted_inputs_are_named_and_the_rest_is_traced(tmp_path: Path) -> None:
    root = str(tmp_path)
    documents = _documents(root)
    tokenizer = put(root, "tokenizer", "tokenizer", {"documents": [documents]})
    shards = put(root, "shards", "tokenize", {"documents": [documents], "tokenizer": [tokenizer]})
    storage.delete_tree(tokenizer.uri)
    (counts,) = [documents.remote(p) for p in documents.paths() if p == "counts.json"]
    storage.delete_file(counts)
    there = Made(root, "", tmp_path)
    found = traced(there, shards.uri)
    assert {entry["uri"] for entry in found["artifacts"]} == {documents.uri, shards.uri}
    (gone,) = found["missing"]
    assert (gone["uri"], gone["kind"], gone["needed_by"]) == (tokenizer.uri, "tokenizer", [shards.uri])
    assert {source["name"] for source in found["sources"]} == {"own", "web", "elsewhere"}
    assert any("counts.json" in problem and "is missing" in problem for problem in found["problems"])
    assert f"GONE: tokenizer {tokenizer.digest[:12]} at {tokenizer.uri}" in told(there, shards.uri)


def test_from_a_source_up_it_says_of_each_artifact_how_it_comes_from_it(made: Made) -> None:
    def exposure(*arguments: str) -> dict[str, str]:
        found = traced(made, *arguments)
        by_uri = {a.uri: name for name, a in made.artifacts.items()}
        return {by_uri[entry["uri"]]: entry["exposure"] for entry in found["artifacts"]}

    german = exposure("--source", "own", "--language", "deu_Latn")
    assert german == {
        "documents": "holds its text",
        "tokenizer": "its words were learned from the text",
        "shards": "holds its text as tokens",
        "first mixture": "draws nothing of it",
        "second mixture": "draws 250 tokens of own, deu_Latn",
        "pretrained": "not trained on it",
        "extended": "trained on 250 tokens of own, deu_Latn",
        "merged": "of weights that were trained on it",
        "model": "of weights that were trained on it",
        "scores": "of a model that was trained on it, measured on held-out text of it",
    }
    assert exposure("--source", "own")["pretrained"] == "trained on 900 tokens of own"
    # In the shards, and drawn by no mixture.
    web = exposure("--source", "web")
    assert (web["shards"], web["model"]) == ("holds its text as tokens", "not trained on it")
    # One document, not the twelfth that begins alike; and one that curation dropped.
    one = traced(made, "--source", "own/deu_Latn/a.txt/1")
    assert one["documents"] == {made.artifacts["documents"].uri: ["own/deu_Latn/a.txt/1"]}
    assert exposure("--source", "own/deu_Latn/a.txt")["extended"] == "trained on 250 tokens of own, deu_Latn"
    dropped = exposure("--source", "own/deu_Latn/a.txt/3")
    assert (dropped["documents"], dropped["shards"], dropped["model"]) == (
        "holds its text among what was dropped", "made beside it, holds none of it", "not trained on it",
    )  # fmt: skip
    assert "own/deu_Latn/a.txt/3 (dropped)" in told(made, "--source", "own/deu_Latn/a.txt/3")
    assert "name elsewhere, own, web" in refused(made, "--source", "absent")
    assert "text of that source in deu_Latn, eng_Latn" in refused(made, "--source", "own", "--language", "rus_Cyrl")


def test_up_from_an_artifact_leads_to_versions_and_scores(made: Made) -> None:
    found = traced(made, made.artifacts["second mixture"].uri, "--up")
    wanted = {made.artifacts[n].uri for n in ("second mixture", "extended", "merged", "model", "scores")}
    assert {entry["uri"] for entry in found["artifacts"]} == wanted
    assert [version["aliases"] for version in found["registered"]] == [["candidate"]]
    assert [entry["uri"] for entry in found["scores"]] == [made.artifacts["scores"].uri]


def test_without_mlflow_it_traces_and_says_what_it_does_not_know(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    found = traced(made, made.artifacts["model"].digest[:8])
    assert len(found["artifacts"]) == len(DOWN)
    assert any("MLFLOW_TRACKING_URI is not set" in problem for problem in found["problems"])
    assert "MLFLOW_TRACKING_URI is not set" in refused(made, f"{made.name}@candidate")


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_the_page_draws_links_and_fits(made: Made, browser: Browser, tmp_path: Path, width: int, scheme: str) -> None:
    written = tmp_path / "trace.html"
    told(made, f"{made.name}@candidate", "--page", str(written))
    shown = opened(browser, written.read_text("utf-8"), tmp_path, width, scheme)
    page = shown.page
    assert shown.errors == []
    assert [url for url in shown.requests if not url.startswith("file:")] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    links = page.eval_on_selector_all("#artifact-table a", "found => found.map(a => [a.textContent, a.href])")
    assert {label for label, _ in links} == {"MLflow", "Airflow"}
    assert any(href.endswith(f"/#/runs/{made.run_id}") for _, href in links)
    # Two sources and nine artifacts; what a node was made of lights up when it is pointed at.
    assert page.locator("#graph .node").count() == 2 + len(DOWN)
    merged = made.artifacts["merged"].digest
    page.locator(f'#graph .node[data-digest="{merged}"]').focus()
    lit = page.eval_on_selector_all("#graph .node.on", "found => found.map(node => node.dataset.digest)")
    assert merged in lit
    assert made.artifacts["model"].digest not in lit
    assert len(lit) == 2 + len(DOWN) - 1
