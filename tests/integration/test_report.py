"""The report in a real browser: it draws, without a network, as a file and inside another page's frame."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from mmbert.evaluation.published import published_tables
from mmbert.evaluation.report import build_report
from mmbert.evaluation.report_data import ReportData
from mmbert.evaluation.scores import Score
from mmbert.evaluation.suites.names import RETRIEVAL
from tests.browser import Opened, opened
from tests.integration.report_sample import sample_report

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def data() -> ReportData:
    return sample_report()


@pytest.fixture(scope="module")
def html(data: ReportData) -> str:
    return build_report(data)


@pytest.fixture(scope="module")
def report(browser: Browser, html: str, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return opened(browser, html, tmp_path_factory.mktemp("report"))


def test_every_plot_has_drawn_without_errors_or_requests(report: Opened) -> None:
    assert report.errors == []
    assert [url for url in report.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    drawn = report.page.eval_on_selector_all(
        "[data-plot]",
        """plots => plots.map(p => [p.dataset.plot, p.dataset.drawn,
             p.querySelectorAll('svg .trace path, svg .bars path').length, p.getBoundingClientRect().height])""",
    )
    assert {name for name, *_ in drawn} == {
        *("shares-1", "shares-2", "shares-3", "training", "bits-1", "bits-2", "bits-3", "retrieval", "time"),
        *(f"score-{i}" for i in range(6)),
        *("trend", "change-0-0", "change-0-1", "change-1-0", "change-1-1"),
    }
    for name, state, paths, height in drawn:
        assert state == "true", name
        assert paths > 0, name
        assert height > 150, name


def test_each_phase_has_a_panel_with_all_its_languages(report: Opened, data: ReportData) -> None:
    for index, languages in ((1, 59), (2, 110), (3, 450)):
        points = report.page.locator(f"#plot-shares-{index} .points path").count()
        assert points == languages
    assert report.page.locator("#plot-bits-3 .points path").count() == len(data.trunk[-1].bits_per_byte)


def test_hovering_a_point_names_its_language(report: Opened) -> None:
    report.page.locator("#plot-shares-1").scroll_into_view_if_needed()
    report.page.locator("#plot-shares-1 .points path").first.hover(force=True)
    label = report.page.locator("#plot-shares-1 .hovertext")
    label.wait_for()
    assert "English" in (label.text_content() or "")


def test_claims_and_scores_stand_with_their_figures(report: Opened) -> None:
    claims = report.page.locator("[data-claim]")
    assert [claims.nth(i).get_attribute("data-holds") for i in range(3)] == ["yes", "yes", "yes"]
    text = report.page.locator("#overview").inner_text()
    assert "21.8%" in text
    assert "450" in text
    assert "better in 340 of 340 languages" in text


def test_published_tables_are_labelled_as_published_on_other_data(report: Opened) -> None:
    section = report.page.locator("#published")
    assert "Published figures, on other data" in section.inner_text()
    tables = published_tables()
    assert section.locator("table").count() == len(tables)
    for summary in section.locator("summary").all_inner_texts():
        assert "published" in summary
    assert "77.1" in section.locator("table").first.inner_text()


def test_the_table_of_languages_sorts_and_filters(report: Opened) -> None:
    page = report.page
    rows = page.locator("#bits-table tbody tr:visible")
    page.get_by_role("button", name="Change", exact=True).click()
    changes = [float(text) for text in page.locator("#bits-table tbody td:last-child").all_inner_texts()]
    assert changes == sorted(changes)
    page.get_by_role("button", name="Change", exact=True).click()
    assert page.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
    page.get_by_label("Find a language").fill("deu_Latn")
    assert rows.count() == 1
    assert "German" in rows.inner_text()
    page.get_by_label("Find a language").fill("")


def test_languages_stand_in_the_order_of_their_change_with_intervals(report: Opened, data: ReportData) -> None:
    table = report.page.locator("#change-table-0 tbody tr")
    gains = table.evaluate_all("rows => rows.map(row => Number(row.cells[5].dataset.sort))")
    assert gains == sorted(gains, reverse=True)
    assert len(gains) == sum(len(data.models[1].by_language(task)) for task in ("masked_bits_per_byte", RETRIEVAL))
    plot = report.page.locator("#plot-change-0-0")
    assert plot.locator(".points path").count() == plot.locator(".errorbars path").count() == 40
    assert "420 languages between" in (plot.text_content() or "")


def test_any_suites_tasks_have_their_plots_and_say_what_is_unverified(
    browser: Browser, data: ReportData, tmp_path: Path
) -> None:
    glue = Score("glue", "cola", "matthews_correlation", 0.41, 0.38, 0.44, 1043)
    models = (dataclasses.replace(data.models[0], scores=(*data.models[0].scores, glue)), *data.models[1:])
    found = opened(browser, build_report(dataclasses.replace(data, models=models)), tmp_path)
    assert found.errors == []
    text = found.page.locator("#scores").inner_text()
    assert text.index("Suite demo") < text.index("Suite glue")
    assert "cola, matthews correlation" in text
    assert "Unverified: cola. " in text  # what was measured, not all that the suite has
    found.page.close()


def test_bits_per_byte_are_drawn_from_phase_to_phase(report: Opened) -> None:
    ticks = report.page.locator("#plot-trend .xaxislayer-above text").all_text_contents()
    assert ticks[:3] == ["Untrained", "Pre-training", "Context extension"]
    assert ticks[-1] == "Merged model"


def test_lineage_goes_down_to_digests_and_shows_what_a_thing_was_made_from(report: Opened, data: ReportData) -> None:
    page = report.page
    assert page.locator("#graph .node").count() == len(data.lineage)
    text = page.locator("#lineage table").inner_html()
    assert all(node.digest in text and node.uri in text for node in data.lineage)
    page.locator("#graph .node", has_text="Pre-trained").focus()
    lit = " ".join(page.locator("#graph .node.on").all_text_contents())
    assert "Tokenizer" in lit
    assert "Mixture pretrain" in lit
    assert "Mixture extend" not in lit


def test_its_head_and_its_artifacts_lead_to_where_they_were_made(data: ReportData) -> None:
    first = dataclasses.replace(data.lineage[0], links={"MLflow": "http://mlflow/#/runs/a", "Airflow": ""})
    html = build_report(
        dataclasses.replace(data, lineage=(first, *data.lineage[1:])), {"DAG run": "http://airflow/dags/d"}
    )
    away = 'target="_blank" rel="noopener noreferrer"'
    assert f'<a href="http://airflow/dags/d" {away}>DAG run</a>' in html
    assert f'<a href="http://mlflow/#/runs/a" {away}>MLflow</a>' in html
    assert 'href=""' not in html


@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (390, "light")])
def test_it_fits_the_window_in_light_and_dark(
    browser: Browser, html: str, tmp_path: Path, width: int, scheme: str
) -> None:
    found = opened(browser, html, tmp_path, width, scheme)
    assert found.errors == []
    assert found.page.evaluate("document.documentElement.scrollWidth") <= width
    light = found.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(247, 247, 244)"
    assert light == (scheme == "light")
    found.page.close()


def test_it_works_in_a_sandboxed_frame(browser: Browser, html: str) -> None:
    """As in MLflow's artifact view: no address of its own, so a link to a section must not load another page."""
    page = browser.new_page()
    found = Opened(page)
    page.set_content("<iframe sandbox='allow-scripts' style='width:1200px;height:700px'></iframe>")
    page.eval_on_selector("iframe", "(frame, html) => { frame.srcdoc = html }", html)
    frame = page.frame_locator("iframe")
    frame.locator("html[data-ready]").wait_for(timeout=60_000)
    frame.get_by_role("link", name="Lineage").click()
    frame.locator("nav a[aria-current]", has_text="Lineage").wait_for()
    assert frame.locator("[data-plot]").count() == 20
    assert found.errors == []
    page.close()


def test_a_run_without_phases_or_scores_still_makes_a_page(browser: Browser, data: ReportData, tmp_path: Path) -> None:
    empty = dataclasses.replace(
        data, phases=(), models=(), times=(), lineage=(), data_card="", new_languages=frozenset()
    )
    found = opened(browser, build_report(empty), tmp_path)
    assert found.errors == []
    assert found.page.locator("[data-holds=unknown]").count() == 3
    found.page.close()


def test_text_from_the_run_cannot_become_markup(data: ReportData) -> None:
    hostile = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    names = dict.fromkeys(data.language_names, hostile)
    page = build_report(
        dataclasses.replace(data, description=hostile, data_card=hostile, recipe_name=hostile, language_names=names)
    )
    assert "<script>alert" not in page
    assert "<img src=x" not in page


def test_the_page_is_made_of_its_data_alone(data: ReportData, html: str) -> None:
    assert build_report(data) == html
    assert not re.findall(r"""(?:src|href)=["'](?:https?:)?//""", html.partition("plotly.js v")[0])
