"""What names stand for, over stores in a folder, and how a trace tells of what it found."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from mmbert.errors import UserError
from mmbert.lineage import read_store
from mmbert.lineage.naming import Named, Servers, resolve
from mmbert.lineage.page import trace_page
from mmbert.lineage.text import trace_text
from mmbert.lineage.trace import Trace, trace_down, trace_up
from tests.lineage_stores import put

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
