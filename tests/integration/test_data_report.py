"""The data report made by its component from artifacts as the earlier steps leave them, read in a real browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator

from components.contract import get_component
from components.runtime import run_component
from mmbert.artifacts import ArtifactWriter, open_artifact
from mmbert.data.report.page import pick_samples
from mmbert.data.report.statistics import collect
from mmbert.errors import UserError
from mmbert.recipe.languages import language_table
from tests.browser import Opened, opened

pytestmark = pytest.mark.browser

HOSTILE = "</script><script>document.title = 'run'</script><img src=x onerror=document.title='run'> <b>&amp;"
ARABIC = "يولد جميع الناس أحرارا متساوين في الكرامة والحقوق."
LAO = ["ເສັດ", "ງົວ", "ເລີຍ"]
MANY = [code for code in language_table() if code not in {"code", "lao_Laoo", "arb_Arab", "deu_Latn"}][:300]


def split(documents: int, dropped: dict[str, int], lengths: dict[str, int] | None = None) -> dict[str, Any]:
    numbers = {"documents": documents, "bytes": documents * 200, "characters": documents * 150}
    return {**numbers, "lengths": {"8": documents} if lengths is None else lengths, "dropped": dropped}


def found(code: str, samples: dict[str, list[list[str]]]) -> dict[str, Any]:
    return {"identified": {code: 90, "other": 3}, "script": {code.partition("_")[2]: 93}, "samples": samples}


def shard(tokens: int, **more: float) -> dict[str, Any]:
    numbers = {"row_begin": 0, "rows": 1, "documents": 100, "bytes": tokens * 4, "bytes_per_token": 4.0}
    return {**numbers, "tokens": tokens, **more}


def write(root: Path, kind: str, name: str, files: dict[str, Any]) -> str:
    writer = ArtifactWriter(str(root / kind / name), kind, name, {}, {})
    for path, content in files.items():
        writer.add_json(path, content, digested=path != "report.json")
    return writer.commit({}).uri


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Two groups: one with the broken Lao and hostile text, one of 300 languages without `report.json`."""
    root = tmp_path_factory.mktemp("root")
    kept = {"train": split(100, {"duplicate": 20, "near_duplicate": 5}), "heldout": split(4, {})}
    counts = {
        "web": {
            "deu_Latn": {"train": split(300, {"too_short": 30}), "heldout": split(5, {"too_short": 1})},
            "lao_Laoo": {"train": split(2, {"too_short": 98}, {"3": 2})},
            "arb_Arab": kept,
        },
        "books": {"deu_Latn": {"train": split(50, {})}},
    }
    report = {
        "web": {
            "deu_Latn": found(
                "deu_Latn", {"kept": [["d1", "Alle Menschen sind frei."]], "too_short": [["d2", HOSTILE]]}
            ),
            "lao_Laoo": found("lao_Laoo", {"too_short": [[f"l{i}", word] for i, word in enumerate(LAO)]}),
            "arb_Arab": found("arb_Arab", {"kept": [["a1", ARABIC]]}),
        },
        "books": {"deu_Latn": found("deu_Latn", {"kept": [["b1", "Ein Buch."]]})},
    }
    web = {"deu_Latn": shard(9_000, byte_fallback_share=0.01), "arb_Arab": shard(5_000, byte_fallback_share=0.5)}
    rows = [
        {
            "source": source,
            "language": code,
            "share": share,
            "tokens": int(share * 1000),
            "epochs": 0.5,
            "capped": False,
        }
        for source, code, share in (("web", "deu_Latn", 0.6), ("books", "deu_Latn", 0.2), ("web", "arb_Arab", 0.2))
    ]
    plans = [("pretrain", ""), ("decay", "decay-all")]
    return {
        "documents": [
            write(root, "documents", "0", {"counts.json": counts, "report.json": report}),
            write(root, "documents", "1", {"counts.json": {"web": dict.fromkeys(MANY, kept)}}),
        ],
        "shards": [
            write(root, "shards", "0", {"counts.json": {"web": web, "books": {"deu_Latn": shard(1_000)}}}),
            write(root, "shards", "1", {"counts.json": {"web": {c: shard(2_000 + i) for i, c in enumerate(MANY)}}}),
        ],
        "mixtures": [
            write(root, "mixture", variant or phase, {
                  "mixture.json": {"phase": phase, "variant": variant, "rows": rows},
                  "warnings.json": [f"2 languages have no text: {HOSTILE}"] if variant else []})
            for phase, variant in plans
        ],
    }  # fmt: skip


@pytest.fixture(scope="module")
def made(inputs: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """The component's page and summary."""
    root = str(tmp_path_factory.mktemp("made"))
    artifact = open_artifact(run_component(get_component("data_report"), {"recipe": "tiny", **inputs}, root).uri)
    return artifact.read("data_report.html").decode(), artifact.read_json("data_summary.json")


@pytest.fixture(scope="module")
def report(browser: Browser, made: tuple[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return opened(browser, made[0], tmp_path_factory.mktemp("page"))


def rows(report: Opened) -> Locator:
    return report.page.locator("#language-table tbody tr")


def dialog(report: Opened, code: str) -> Locator:
    """The view of one language, opened from the table."""
    page = report.page
    page.keyboard.press("Escape")
    page.get_by_label("Find a language or code").fill(code)
    rows(report).first.get_by_role("button").click()
    page.locator(f"dialog[open][data-language={code}]").wait_for()
    return page.locator("dialog")


@pytest.fixture(autouse=True)
def _as_opened(report: Opened) -> None:
    report.page.keyboard.press("Escape")
    report.page.get_by_label("Find a language or code").fill("")
    report.page.locator("#kind").select_option("")
    report.page.locator("#source").select_option("")


def test_it_draws_without_errors_or_requests(report: Opened) -> None:
    assert report.errors == []
    assert [url for url in report.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    drawn = report.page.eval_on_selector_all(
        "[data-plot]",
        "all => all.map(p => [p.dataset.plot, p.querySelectorAll('svg .trace path, svg .bars path').length])",
    )
    assert {name for name, paths in drawn if paths > 0} == {"drops", "shares", "lengths", "tokens"}


def test_the_broken_language_is_warned_of_first(report: Opened, made: tuple[str, dict[str, Any]]) -> None:
    assert [(w["kind"], w["language"]) for w in made[1]["warnings"]] == [
        ("fragments", "lao_Laoo"),
        ("mostly_dropped", "lao_Laoo"),
        ("byte_fallback", "arb_Arab"),
    ]
    sections = report.page.locator("main > section").evaluate_all("all => all.map(s => s.id)")
    assert sections[:2] == ["overview", "warnings"]
    report.page.locator("[data-kind=fragments]").get_by_role("button", name="Lao").click()
    report.page.locator("dialog[open][data-language=lao_Laoo]").wait_for()
    assert "98% of the documents are too short" in report.page.locator("dialog").inner_text()
    assert report.page.locator("dialog .sample p").all_inner_texts() == LAO
    assert "2 languages have no text" in report.page.locator("#warnings").inner_text()


def test_totals_are_those_of_all_groups_and_sources(made: tuple[str, dict[str, Any]], report: Opened) -> None:
    totals = made[1]["totals"]
    assert made[1]["languages"] == 303
    assert totals["documents"] == 300 + 2 + 50 + 100 * 301
    assert totals["held_out_documents"] == 5 + 4 * 301
    assert totals["dropped_documents"] == {"duplicate": 20 * 301, "near_duplicate": 5 * 301, "too_short": 129}
    assert totals["tokens"] == 9_000 + 5_000 + 1_000 + sum(2_000 + i for i in range(300))
    assert "30,452 documents" in report.page.locator("#overview").inner_text()


def test_the_table_finds_sorts_and_filters_all_languages(report: Opened) -> None:
    page = report.page
    assert "303 languages" in page.locator("#shown").inner_text()
    tokens = page.locator("#language-table").get_by_role("button", name="Tokens", exact=True)
    tokens.click()
    assert page.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
    assert rows(report).first.get_attribute("data-language") == "deu_Latn"
    tokens.click()
    # Lao has no tokens, and is the smallest.
    assert rows(report).first.get_attribute("data-language") == "lao_Laoo"
    page.locator("#language-scroll").evaluate("e => e.scrollTo(0, 1e6)")
    page.wait_for_function("document.querySelectorAll('#language-table tbody tr').length > 60")
    page.get_by_label("Find a language or code").fill("german")
    assert "deu_Latn" in rows(report).evaluate_all("all => all.map(row => row.dataset.language)")
    assert all("german" in text.lower() for text in rows(report).locator("button").all_inner_texts())
    page.get_by_label("Find a language or code").fill("")
    page.locator("#kind").select_option("any")
    assert set(rows(report).evaluate_all("all => all.map(row => row.dataset.language)")) == {"lao_Laoo", "arb_Arab"}
    page.locator("#kind").select_option("")
    page.locator("#source").select_option(label="books")
    assert rows(report).evaluate_all("all => all.map(row => row.dataset.language)") == ["deu_Latn"]
    assert [text.replace("\u202f", " ") for text in rows(report).locator("td.phase").all_inner_texts()] == [
        "80%",
        "80%",
    ]
    page.locator("#phase-value").select_option(label="Phases: epochs")
    assert rows(report).locator("td.phase").all_inner_texts() == ["0.50", "0.50"]


def test_a_language_shows_reasons_sources_phases_and_samples(report: Opened) -> None:
    shown = dialog(report, "deu_Latn")
    text = shown.inner_text()
    for part in ("too short", "128–255", "Latn", "books", "decay-all", "80%", "web · d1"):
        assert part in text
    assert shown.locator(".sample p").all_inner_texts() == ["Ein Buch.", "Alle Menschen sind frei."]
    shown.get_by_role("button", name="too short (1)").click()
    assert shown.locator(".sample p").all_inner_texts() == [HOSTILE]


def test_text_from_the_data_cannot_become_markup(report: Opened, made: tuple[str, dict[str, Any]]) -> None:
    dialog(report, "deu_Latn").get_by_role("button", name="too short (1)").click()
    assert HOSTILE in report.page.locator("#warnings").inner_text()
    assert report.page.title() == "mmbert-tiny · data report"
    assert report.page.locator("img").count() == 0
    assert "<img src=x" not in made[0]
    assert report.errors == []


def test_right_to_left_text_is_shown_right(report: Opened) -> None:
    sample = dialog(report, "arb_Arab").locator(".sample p")
    assert sample.evaluate("e => [getComputedStyle(e).direction, e.lang]") == ["rtl", "arb"]


@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (390, "light")])
def test_it_fits_the_window_in_light_and_dark(
    browser: Browser, made: tuple[str, dict[str, Any]], tmp_path: Path, width: int, scheme: str
) -> None:
    page = opened(browser, made[0], tmp_path, width, scheme)
    shown = dialog(page, "deu_Latn")
    assert page.errors == []
    assert page.page.evaluate("document.documentElement.scrollWidth") <= width
    box = shown.bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    page.page.close()


def test_it_works_in_a_sandboxed_frame(browser: Browser, made: tuple[str, dict[str, Any]]) -> None:
    """As in MLflow's artifact view."""
    page = browser.new_page()
    opened_page = Opened(page)
    page.set_content("<iframe sandbox='allow-scripts' style='width:1200px;height:700px'></iframe>")
    page.eval_on_selector("iframe", "(frame, html) => { frame.srcdoc = html }", made[0])
    frame = page.frame_locator("iframe")
    frame.locator("html[data-ready]").wait_for(timeout=60_000)
    frame.locator("[data-kind=fragments] button").first.click()
    frame.locator("dialog[open] .sample").first.wait_for()
    assert opened_page.errors == []
    page.close()


def test_without_any_text_it_still_makes_a_page(browser: Browser, tmp_path: Path) -> None:
    empty = {
        "documents": [write(tmp_path, "documents", "0", {"counts.json": {}})],
        "shards": [write(tmp_path, "shards", "0", {"counts.json": {}})],
        "mixtures": [],
    }
    uri = run_component(get_component("data_report"), {"recipe": "tiny", **empty}, str(tmp_path)).uri
    page = opened(browser, open_artifact(uri).read("data_report.html").decode(), tmp_path)
    assert page.errors == []
    assert "Nothing found" in page.page.locator("#warnings").inner_text()
    page.page.close()


def test_the_page_is_made_of_its_inputs_alone(
    inputs: dict[str, list[str]], made: tuple[str, dict[str, Any]], tmp_path: Path
) -> None:
    again = run_component(get_component("data_report"), {"recipe": "tiny", **inputs}, str(tmp_path))
    assert open_artifact(again.uri).read("data_report.html").decode() == made[0]


def test_artifacts_of_an_older_kind_are_read(tmp_path: Path) -> None:
    """Without lengths and characters, as version 1 of curation wrote them."""
    old = {"eld": {"deu_Latn": {"train": {"documents": 3, "bytes": 90, "dropped": {"duplicate": 1}}}}}
    data = collect([open_artifact(write(tmp_path, "documents", "0", {"counts.json": old}))], [], [])
    german = data.languages["deu_Latn"]
    assert (german.documents, german.seen, german.median_length) == (3, 4, None)


def test_an_altered_input_is_named(tmp_path: Path) -> None:
    uri = write(tmp_path, "documents", "0", {"counts.json": {}})
    (file,) = Path(uri).glob("attempts/*/counts.json")
    file.write_text(json.dumps({"x": {}}), "utf-8")
    with pytest.raises(UserError, match=r"counts\.json.*documents artifact"):
        collect([open_artifact(uri)], [], [])


def test_samples_keep_to_their_budget_and_cover_every_reason() -> None:
    texts = {group: [(f"{group}-{n}", "ก" * 400) for n in range(3)] for group in ("kept", "few_letters", "too_short")}
    picked = pick_samples({"a": texts, "b": texts}, {"too_short": 9, "few_letters": 3}, 6_000)
    assert sum(len(text.encode()) for *_, text in picked) <= 6_000
    assert [group for group, *_ in picked] == [*["kept"] * 4, *["too_short"] * 4, *["few_letters"] * 4]
    assert {source for _, source, *_ in picked} == {"a", "b"}
    assert all(text.endswith("…") and set(text) == {"ก", "…"} for *_, text in picked)
