"""What names stand for, over stores in a folder, and how a trace tells of what it found."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from mmbert import storage
from mmbert.artifacts import Artifact
from mmbert.errors import UserError
from mmbert.evaluation.results.promotion import SCORES
from mmbert.evaluation.results.store import record
from mmbert.lineage import read_store
from mmbert.lineage.naming import Named, Servers, resolve
from mmbert.lineage.page import trace_page
from mmbert.lineage.removal import part_of
from mmbert.lineage.text import trace_text
from mmbert.lineage.trace import Trace, trace_down, trace_source, trace_up
from mmbert.tracking.registry import ModelVersion
from tests.lineage_stores import put
from tests.scores import card, score

AWAY = Servers(lambda: None, lambda: None)


def named(what: str, root: str, servers: Servers = AWAY) -> Named:
    return resolve(what, read_store(root), servers)


def refused(what: str, root: str, servers: Servers = AWAY) -> str:
    with pytest.raises(UserError) as error:
        named(what, root, servers)
    return str(error.value)


def down(root: str, *uris: str) -> Trace:
    return trace_down("it", Named(uris, "a URI"), read_store(root), lambda: None)


def up(root: str, *uris: str) -> Trace:
    return trace_up("it", "a URI", uris, read_store(root), lambda: None)


def test_a_digest_that_says_the_kind_alone_names_none_of_several(tmp_path: Path) -> None:
    root = str(tmp_path)
    one = put(root, "report", "first", digested=False)
    assert named(one.digest, root).uris == (one.uri,)
    two = put(root, "report", "second", digested=False)
    told = refused(one.digest[:8], root)
    for word in (one.uri, two.uri, "first", "second", "says that it is a report and no more"):
        assert word in told
    assert named(two.manifest.fingerprint[:8], root).uris == (two.uri,)
    # What there is, is listed by what names it.
    told = refused("0123456789", root)
    assert one.manifest.fingerprint[:12] in told
    assert one.digest[:12] not in told


def test_a_digest_that_says_the_kind_alone_is_not_shown_as_one(tmp_path: Path) -> None:
    root = str(tmp_path)
    made = put(root, "report", "run", digested=False)
    above = put(root, "release", "release", {"report": [made]})
    for found in (down(root, above.uri), up(root, made.uri)):
        text = trace_text(found)
        assert made.digest[:12] not in text
        assert "not digested" in text
        entries: list[dict[str, Any]] = found.to_json()["artifacts"]
        assert {entry["uri"]: entry["identified"] for entry in entries} == {made.uri: False, above.uri: True}
    (tmp_path / "report").rename(tmp_path / "away")
    text = trace_text(down(root, above.uri))
    assert made.digest[:12] not in text
    assert f"GONE: report at {made.uri}" in text


def drawn(found: Trace) -> dict[str, str]:
    """The URIs of the drawing's nodes, each with the digits that it shows."""
    nodes = re.findall(r'<g class="node".*?</g>', trace_page(found), re.DOTALL)
    shown = (re.search(r"<title>.* · (.*)</title>.*>(.*)</text>\s*</g>", node, re.DOTALL) for node in nodes)
    return {match[1]: match[2] for match in shown if match}


def test_of_one_digest_each_is_drawn_for_itself(tmp_path: Path) -> None:
    root = str(tmp_path)
    reports = [put(root, "report", run, digested=False) for run in ("one", "two")]
    equal = [put(root, "documents", run, files={"a.json": "equal"}) for run in ("one", "two")]
    above = put(root, "release", "release", {"report": reports, "documents": equal})
    assert drawn(down(root, above.uri)) == {
        **{a.uri: "not digested" for a in reports}, **{a.uri: a.digest[:12] for a in (*equal, above)}
    }  # fmt: skip
    (tmp_path / "report").rename(tmp_path / "away")
    assert f"{reports[0].uri}, gone" in drawn(down(root, above.uri))


def counted(*languages: str, documents: int = 10) -> dict[str, Any]:
    return {language: {"train": {"documents": documents}, "heldout": {"documents": 1}} for language in languages}


def texts_of(root: str, name: str, own: list[str], version: str = "v") -> Artifact:
    """Documents of one group of languages, from the source `own` and from `eld`, which has no version."""
    return put(
        root, "documents", name, files={"counts.json": {"own": counted(*own), "eld": counted(*own, documents=500)}},
        parameters={"recipe": {"sources": {"own": {"kind": "files", "path": "/texts"}, "eld": {"kind": "eld"}}},
                    "files": {"own": version, "eld": ""}},
        texts={f"train/own/{own[0]}/0.jsonl.zst": [f"own/{own[0]}/a.txt/1"]},
    )  # fmt: skip


def of_source(root: str, source: str, language: str = "") -> Trace:
    return trace_source(part_of(source, language), read_store(root), lambda: None)


def test_what_comes_from_a_source_is_told_with_its_place(tmp_path: Path) -> None:
    made = texts_of(str(tmp_path), "curate", ["deu_Latn"])
    (line,) = [line for line in trace_text(of_source(str(tmp_path), "own")).splitlines() if "holds its text" in line]
    assert line.endswith(made.uri)


def test_only_what_was_asked_for_is_counted(tmp_path: Path) -> None:
    root = str(tmp_path)
    for group in (["deu_Latn", "eng_Latn"], ["fra_Latn"]):
        texts_of(root, group[0], group)
    (own,) = of_source(root, "own").sources
    assert (own.name, own.languages, own.kept()) == ("own", ["deu_Latn", "eng_Latn", "fra_Latn"], 33)
    (own,) = of_source(root, "own", "deu_Latn").sources
    assert (own.languages, own.kept()) == (["deu_Latn"], 11)
    for asked in ("own/deu_Latn", "own/deu_Latn/a.txt/1"):
        (own,) = of_source(root, asked).sources
        assert (own.languages, own.kept()) == (["deu_Latn"], 1)
    page = trace_page(of_source(root, "own", "deu_Latn"))
    assert ">eld<" not in page
    assert "fra_Latn" not in page


def test_each_of_two_groups_shows_its_own_counts_and_runs_on_one_text_count_it_once(tmp_path: Path) -> None:
    root = str(tmp_path)
    groups = [texts_of(root, group[0], group) for group in (["deu_Latn", "eng_Latn"], ["fra_Latn"])]
    texts_of(root, "another run", ["fra_Latn"])
    shards = put(root, "shards", "shards", {"documents": groups})
    text = trace_text(down(root, shards.uri))
    for documents in ("22", "11"):
        assert f"source  own: files, /texts@v, {documents} documents" in text
    assert "\n  own: files, /texts@v, 33 documents" in text
    (own,) = of_source(root, "own").sources
    assert own.kept() == 33
    texts_of(root, "another state", ["fra_Latn"], "w")
    assert [own.kept() for own in of_source(root, "own").sources] == [33, 11]


def test_that_a_source_has_no_version_is_said(tmp_path: Path) -> None:
    made = texts_of(str(tmp_path), "curate", ["deu_Latn"])
    found = down(str(tmp_path), made.uri)
    assert "eld: eld, the PyPI package eld, no version recorded" in trace_text(found)
    shown = drawn(found)
    assert shown["eld: the PyPI package eld, no version recorded"] == "no version"
    assert shown["own: /texts, v"] == "v"


def test_a_page_with_notes_alone_says_of_nothing_that_it_is_gone(tmp_path: Path) -> None:
    made = texts_of(str(tmp_path), "curate", ["deu_Latn"])
    above = put(str(tmp_path), "shards", "shards", {"documents": [made]}, files={"counts.json": {}})
    page = trace_page(of_source(str(tmp_path), "own"))
    assert "<h2>Notes</h2>" in page
    assert "Gone" not in page
    storage.delete_tree(made.uri)
    assert "<h2>Gone and not known</h2>" in trace_page(down(str(tmp_path), above.uri))


def test_a_language_that_is_meant_is_named(tmp_path: Path) -> None:
    texts_of(str(tmp_path), "curate", [*(f"{chr(97 + i)}aa_Latn" for i in range(20)), "deu_Latn"])
    for asked in ("deu", "deu_Latin", "due_Latn"):
        with pytest.raises(UserError, match=r"did you mean deu_Latn\?"):
            of_source(str(tmp_path), "own", asked)
    with pytest.raises(UserError) as error:
        of_source(str(tmp_path), "own", "zzz_Zzzz")
    assert "did you mean" not in str(error.value)


def test_where_names_are_looked_for_is_easy_to_read(tmp_path: Path) -> None:
    root = str(tmp_path)
    put(root, "recipe", "recipe", workflow_run="nightly 1")
    assert "a digest or fingerprint needs at least 4 digits" in refused("aaa", root)
    assert f"\n  the names of workflow runs: 1 made artifacts below {root}\n" in refused("aaaa", root)


def test_the_scores_of_a_record_can_have_been_collected(tmp_path: Path) -> None:
    root = str(tmp_path)
    model = put(root, "model", "model")
    told = card(score(), model_digest=model.digest)
    scores = put(root, "scores", "scores", {"model": [model]}, files={"scores.json": told.to_json()})
    place = record(root, told)
    assert named(place, root).uris == (scores.uri,)
    storage.delete_tree(scores.uri)
    said = refused(place, root)
    assert "the scores of this record are no artifact" in said
    assert f"`mmbert trace {model.digest[:12]}`" in said
    storage.delete_tree(model.uri)
    said = refused(place, root)
    assert model.digest[:12] in said
    assert "`mmbert trace" not in said


class _Registered:
    def __init__(self, **tags: str) -> None:
        self.found = ModelVersion("mine", "3", "", "", {"mmbert.content_digest": "d" * 64, **tags}, (), 0.0)

    def by_alias(self, name: str, alias: str) -> ModelVersion:
        return self.found

    def versions(self, name: str) -> list[ModelVersion]:
        return [self.found]


def test_a_versions_scores_are_found_in_a_copied_store(tmp_path: Path) -> None:
    there, here = str(tmp_path / "there"), str(tmp_path / "here")
    scores = put(there, "scores", "scores")
    put(there, "scores", "others")
    registry: Any = _Registered(**{f"{SCORES}demo": scores.uri})
    servers = Servers(lambda: registry, lambda: None)
    shutil.move(there, here)
    moved = scores.uri.replace(there, here)
    assert named("mine@champion#demo", here, servers).uris == (moved,)
    storage.delete_tree(moved)
    told = refused("mine@champion#demo", here, servers)
    assert scores.uri in told
    assert "its scores of demo" in told
    assert "d" * 12 not in told
