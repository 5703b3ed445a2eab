"""Scores as they are kept and read: one schema in JSON, Parquet and the store; other versions refused."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from mmbert.errors import UserError
from mmbert.evaluation.results import store
from mmbert.evaluation.results.scorecard import merged, read_scorecard
from mmbert.evaluation.scores import Units
from tests.scores import card, score

FULL = card(
    score(
        seeds=(1, 2, 3),
        deviation=0.01,
        chance=0.33,
        language="deu_Latn",
        settings={"learning_rate": 3e-5, "grid": [1, 2]},
        units=Units((1.0, 0.5), (2.0, 3.0)),
    ),
    score("udpos", metric="f1"),
    when="2026-11-24T10:00:00+00:00",
    commit="c0ffee",
)


def written(content: object) -> bytes:
    return json.dumps(content).encode()


def test_scores_survive_json_and_parquet() -> None:
    assert read_scorecard(written(FULL.to_json()), "x") == FULL
    assert store.from_parquet(store.to_parquet(FULL), "x") == FULL


def test_parquet_is_a_plain_table_for_other_programs(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    (tmp_path / "a.parquet").write_bytes(store.to_parquet(FULL))
    rows = pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert [(r["model_digest"], r["suite"], r["task"], r["language"], r["value"]) for r in rows] == [
        ("digest-of-one", "xtreme", "xnli", "deu_Latn", 0.7),
        ("digest-of-one", "xtreme", "udpos", None, 0.7),
    ]
    assert json.loads(rows[0]["settings"])["learning_rate"] == 3e-5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema_version": 3}, "x: scores of schema version 3; .* reads version 2"),
        ({"schema_version": None}, "schema version None"),
        ({"model_digest": ...}, "x: the key 'model_digest' is missing"),
        ({"scores": [{"task": "xnli"}]}, "does not have the fields of schema version 2: .*missing"),
        ({"scores": [{**score().to_json(), "colour": "red"}]}, "colour"),
        ({"scores": [score(value=77.1).to_json()]}, "xtreme/xnli/accuracy is 77.1; shares are 0 to 1"),
        ({"scores": [score(value=float("nan")).to_json()]}, "no finite number"),
        ({"scores": [score().to_json()] * 2}, "xtreme/xnli/accuracy stands there twice"),
    ],
)
def test_a_file_that_is_not_of_this_schema_is_refused_by_saying_so(change: dict[str, object], words: str) -> None:
    content = {key: value for key, value in {**FULL.to_json(), **change}.items() if value is not ...}
    with pytest.raises(UserError, match=words):
        read_scorecard(written(content), "x")


def test_a_file_from_before_versions_says_what_to_do() -> None:
    content = FULL.to_json()
    del content["schema_version"]
    with pytest.raises(UserError, match=r"schema version 1; .* Evaluate the model again"):
        read_scorecard(written(content), "x")


@pytest.mark.parametrize("data", [b"", b"[1]", b'{"a": 1}'])
def test_what_is_no_scores_file_is_named(data: bytes) -> None:
    with pytest.raises(UserError, match=r"/p/scores.json: no scores file"):
        read_scorecard(data, "/p/scores.json")


def test_a_parquet_file_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "SCHEMA_VERSION", 3)
    store._schema.cache_clear()
    later = store.to_parquet(FULL)
    monkeypatch.undo()
    store._schema.cache_clear()
    with pytest.raises(UserError, match="schema version 3"):
        store.from_parquet(later, "x")
    with pytest.raises(UserError, match="no Parquet file"):
        store.from_parquet(b"PAR1 not", "x")


def test_the_store_keeps_each_result_once_with_its_first_time(tmp_path: Path) -> None:
    root = str(tmp_path)
    first = store.record(root, FULL)
    assert store.record(root, replace(FULL, when="2026-12-01T00:00:00+00:00")) == first
    better = replace(FULL, scores=(score(value=0.8),), when="2026-12-02T00:00:00+00:00")
    other = card(score("cola", suite="glue"), model="two", when="2026-11-01T00:00:00+00:00")
    store.record(root, better)
    store.record(root, other)
    assert store.history(root) == [other, FULL, better]
    assert store.history(root, model_digest="digest-of-two") == [other]
    assert store.history(root, suite="xtreme") == [FULL, better]
    assert store.history(str(tmp_path / "nothing")) == []


def test_many_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    cards = [card(score(value=i / 100), when="2026-11-24T10:00:00+00:00") for i in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda c: store.record(str(tmp_path), c), cards * 2))
    kept = store.history(str(tmp_path))
    assert sorted(c.scores[0].value for c in kept) == [i / 100 for i in range(40)]


def test_suites_of_one_model_are_put_together_and_of_two_refused() -> None:
    glue = card(score("cola", suite="glue"))
    both = merged([FULL, glue], "x")
    assert both.suites() == ["xtreme", "glue"]
    with pytest.raises(UserError, match=r"several models: one \(digest-of-on\), two"):
        merged([FULL, card(score(), model="two")], "x")
    with pytest.raises(UserError, match="stands there twice"):
        merged([FULL, FULL], "x")
    with pytest.raises(UserError, match="x: no scores"):
        merged([], "x")
