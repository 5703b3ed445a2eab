"""`mmbert compare` and `mmbert results` as their user meets them, and the comparison's page in a real browser."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from mmbert.errors import UserError
from mmbert.evaluation.published import COLUMN, baseline, baseline_names, published_tables, with_columns
from mmbert.evaluation.results import store
from mmbert.evaluation.results.compare import compare
from mmbert.evaluation.results.page import comparison_page
from mmbert.evaluation.results.scorecard import Scorecard
from mmbert.evaluation.suites.registry import get_suite
from tests.browser import opened
from tests.integration.test_command import mmbert
from tests.integration.test_promotion import scores_artifact
from tests.scores import card, score

CODES = ("eng_Latn", "deu_Latn", "tir_Ethi")


def model(name: str, change: float = 0.0) -> Scorecard:
    rows = [score("xnli", 0.74 + change), score("wikiann", 0.6, metric="f1")]
    rows += [score("xnli", 0.7 + change * i, language=code) for i, code in enumerate(CODES)]
    return card(*rows, model=name)


def written(folder: Path, found: Scorecard) -> str:
    path = folder / found.model / "scores.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(found.to_json()), "utf-8")
    return str(path)


def test_sides_may_be_files_folders_artifacts_and_baselines(tmp_path: Path) -> None:
    old, new = model("old"), model("new", 0.06)
    file = written(tmp_path, old)
    parquet = tmp_path / "new.parquet"
    parquet.write_bytes(store.to_parquet(new))
    artifact = scores_artifact(tmp_path / "root", new)
    texts = set()
    for before in (file, str(tmp_path / "old")):
        for after in (str(parquet), artifact):
            found = mmbert("compare", before, after, "--baseline", "mmbert-base")
            assert found.returncode == 0, found.stderr
            texts.add(found.stdout)
    (text,) = texts
    xnli, german, tigrinya = (
        next(line for line in text.splitlines() if line.startswith(name))
        for name in ("xtreme/xnli/accuracy ", "xtreme/xnli/accuracy/deu_Latn", "xtreme/xnli/accuracy/tir_Ethi")
    )
    assert ("77.1%" in xnli, "+6.0" in xnli, "better *" in xnli) == (True, True, True)
    assert "better *" in german
    assert "+12.0 (+9.2 to +14.8)" in tigrinya
    assert "of 3 scores of languages 0 fell and 2 rose significantly (Holm, by task)" in text
    assert "method: intervals for 5" in text

    alike = written(tmp_path / "again", old)
    told = mmbert("compare", file, alike).stdout
    assert told.startswith(f"{file} -> {alike}: ")

    against = mmbert("compare", "mmbert-base", file)
    assert against.returncode == 0, against.stderr
    assert "published" in against.stdout
    assert "only mmbert-base has: " in against.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("OLD", "nowhere"), "'nowhere': no scores there; it must be"),
        (("OLD", "name@champion"), "MLFLOW_TRACKING_URI is not set"),
        (("OLD", "OLD", "--baseline", "bert"), "no published baseline 'bert'; there are eurobert-210m"),
        (("OLD", "OLD", "--out", "page.htm"), "ends in .html"),
        (("OLD", "GLUE"), "no score in common: old has xtreme; glue has glue"),
        (("OLD", "absent.json"), "absent.json: no such file"),
        (("OLD", "V1"), "schema version 1"),
    ],
)
def test_what_cannot_be_compared_is_said(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    first = tmp_path / "v1.json"
    first.write_text(json.dumps({"model": "a", "kind": "release", "scores": []}), "utf-8")
    glue = card(score("cola", suite="glue"), model="glue")
    places = {"OLD": written(tmp_path, model("old")), "GLUE": written(tmp_path, glue), "V1": str(first)}
    found = mmbert("compare", *(places.get(a, a) for a in arguments))
    assert found.returncode == 2
    assert words in found.stderr
    assert "Traceback" not in found.stderr


def test_scores_of_two_models_in_one_folder_are_refused(tmp_path: Path) -> None:
    written(tmp_path, model("old"))
    written(tmp_path, model("new"))
    found = mmbert("compare", str(tmp_path), str(tmp_path / "old"))
    assert found.returncode == 2
    assert "scores of several models: " in found.stderr


def test_the_results_store_is_listed(tmp_path: Path) -> None:
    empty = mmbert("results", "--root", str(tmp_path))
    assert (empty.returncode, "no results yet" in empty.stderr) == (2, True)
    store.record(str(tmp_path), model("old"))
    store.record(str(tmp_path), model("new", 0.06))
    both = mmbert("results", "--root", str(tmp_path))
    assert both.stdout.count("xtreme/xnli/accuracy") == 2
    one = mmbert("results", "--root", str(tmp_path), "--model", "ne", "--languages")
    assert one.stdout.count("xtreme/xnli/accuracy/") == 3
    assert "old" not in one.stdout
    other = mmbert("results", "--root", str(tmp_path), "--model", "mm", "--suite", "xtreme")
    assert other.returncode == 2
    assert "nothing for --model mm and --suite xtreme; there are\nnew (digest-of-ne): xtreme\nold (" in other.stderr


def test_baselines_are_the_published_values_as_shares() -> None:
    assert {"mmbert-base", "mmbert-small", "xlm-r-base", "mgte-base"} <= set(baseline_names())
    scores = {s.name: s.value for s in baseline("mmbert-base").scores}
    assert scores["xtreme/xnli/accuracy"] == pytest.approx(0.771)
    assert scores["glue/cola/matthews"] == pytest.approx(0.619)
    assert scores["low-resource/tiquad/f1"] == pytest.approx(0.268)
    assert scores["low-resource/foqa/f1"] == pytest.approx(0.735)
    with pytest.raises(UserError, match="no published baseline 'mmbert'"):
        baseline("mmbert")


@pytest.mark.parametrize("table", ["xtreme", "glue", "mteb-english", "mteb-multilingual", "coir"])
def test_every_published_column_but_the_average_is_in_the_baseline(table: str) -> None:
    found = published_tables()[table]
    suites = {s.name: s for s in baseline("mmbert-base").scores if s.suite == table}
    values = {round(100 * s.value, 1) for s in suites.values()}
    published = {found.value("mmBERT base", column) for column in found.columns if column != "Avg"}
    assert values == published


def test_a_column_of_several_tasks_is_compared_as_their_mean() -> None:
    suite = get_suite("mteb-english")
    members = [task for task, column in suite.columns.items() if column == "STS"]
    scores = [score(t, 0.7 + i / 100, suite="mteb-english", metric="x") for i, t in enumerate(members)]
    measured = with_columns(card(*scores))
    (mean,) = [s for s in measured.scores if s.metric == COLUMN]
    assert mean.value == pytest.approx(0.7 + (len(members) - 1) / 200)
    (against,) = compare(baseline("mmbert-base"), measured).differences
    assert (against.before.value, against.after, against.p) == (pytest.approx(0.748), mean, None)
    assert [s for s in with_columns(card(*scores[1:])).scores if s.metric == COLUMN] == []


@pytest.mark.browser
def test_the_page_draws_every_plot_without_errors_or_requests(browser: Browser, tmp_path: Path) -> None:
    found = compare(model("old </script>"), model("new", 0.06))
    page = opened(browser, comparison_page(found, baseline("mmbert-base"), 0.05), tmp_path)
    assert page.errors == []
    assert [url for url in page.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert page.page.locator("#plot-suite-xtreme .points path").count() == 6
    assert page.page.locator("#plot-languages-0 .points path").count() == len(CODES)
    assert page.page.locator("#language-table tbody tr").count() == len(CODES)
    assert page.page.locator("#task-table .good").first.inner_text().startswith("+6.0")
    assert "Tigrinya" in page.page.locator("#language-table").inner_text()
