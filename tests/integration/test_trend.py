"""The trend page and its alerts: what counts as worse, and the page in a real browser."""

from __future__ import annotations

from dataclasses import replace

import pytest
from playwright.sync_api import Browser

from mmbert.evaluation.trend import Trend, alerts_of, evaluated_models, gain_interval, worse
from mmbert.evaluation.trend_page import build_trend
from mmbert.tracking.registry import CHAMPION
from tests.browser import Opened, opened
from tests.integration.trend_sample import DIGESTS, LANGUAGES, card, sample_history, sample_trend

CHAMPIONS = [("version 2 (champion)", CHAMPION, DIGESTS["2"])]


@pytest.fixture(scope="module")
def trend() -> Trend:
    return sample_trend()


def test_a_drop_with_new_data_is_told_with_the_reason(trend: Trend) -> None:
    own = [line for line in trend.alerts if line.startswith("version 2 (champion), against its evaluation before")]
    assert any("66.0% (65.0% to 67.0%) to 62.0% (61.0% to 63.0%) (data revision: rev-b / rev-c)" in x for x in own)


def test_languages_that_fell_are_named_together(trend: Trend) -> None:
    (line,) = [line for line in trend.alerts if line.startswith("version 3 (candidate), against the champion")]
    assert "got worse in 2 languages" in line
    assert all(trend.name_of(code) in line for code in (LANGUAGES[3], LANGUAGES[7]))


def test_nothing_is_told_within_chance() -> None:
    history = [card("2", 0, 0.62), card("2", 1, 0.619)]
    assert alerts_of(evaluated_models(history, CHAMPIONS), {}) == []


def test_fewer_bits_are_no_drop_and_more_are() -> None:
    def bits(values: tuple[float, float]) -> bool:
        cards = [
            replace(found, scores=tuple(replace(s, value=v, low=v - 0.03, high=v + 0.03) for s in found.scores[1:2]))
            for v, found in zip(values, (card("2", 0, 0.6), card("2", 1, 0.6)), strict=True)
        ]
        (model,) = evaluated_models(cards, CHAMPIONS)
        assert model.since is not None
        (difference,) = model.since.differences
        low, high = gain_interval(difference)
        assert low < difference.gain < high
        return worse(difference)

    assert not bits((2.0, 1.5))
    assert bits((1.5, 2.0))


def test_suites_of_one_model_are_compared_across_evaluations() -> None:
    """A later evaluation of another suite does not hide what the first suite was before."""
    first, second = card("2", 0, 0.62), card("2", 2, 0.5)
    other = replace(card("2", 1, 0.9), scores=(replace(card("2", 1, 0.9).scores[0], suite="glue", task="cola"),))
    (model,) = evaluated_models([first, other, second], CHAMPIONS)
    assert model.since is not None
    assert {d.after.suite for d in model.since.differences} == {"xtreme", "demo"}


@pytest.fixture(scope="module")
def page(browser: Browser, trend: Trend, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return opened(browser, build_trend(trend), tmp_path_factory.mktemp("trend"))


@pytest.mark.browser
def test_it_draws_offline(page: Opened) -> None:
    assert page.errors == []
    assert [url for url in page.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert page.page.locator("#time [data-plot]").count() == 2
    assert page.page.locator("#changes [data-plot]").count() == 2


@pytest.mark.browser
def test_points_have_intervals_and_releases_have_marks(page: Opened, trend: Trend) -> None:
    plot = page.page.locator("#plot-trend-0")
    assert plot.locator(".points path").count() == len(sample_history())
    assert plot.locator(".errorbars path.yerror").count() == len(sample_history())
    marks = plot.locator(".annotation-text").all_text_contents()
    assert marks == ["v1", "v2 · champion", "v3 · candidate"]


@pytest.mark.browser
def test_alerts_and_the_gates_word_stand_first(page: Opened, trend: Trend) -> None:
    assert page.page.locator("#alerts .alerts li").all_inner_texts() == list(trend.alerts)
    assert "two languages fell" in page.page.locator("#alerts").inner_text()


@pytest.mark.browser
def test_languages_stand_in_the_order_of_their_change(page: Opened, trend: Trend) -> None:
    table = page.page.locator("#changes table.sortable").last
    gains = [float(cell.get_attribute("data-sort") or "nan") for cell in table.locator("td:nth-child(6)").all()]
    assert len(gains) == len(LANGUAGES)
    assert gains == sorted(gains, reverse=True)


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (390, "light")])
def test_it_fits_the_window(
    browser: Browser, trend: Trend, tmp_path_factory: pytest.TempPathFactory, width: int, scheme: str
) -> None:
    found = opened(browser, build_trend(trend), tmp_path_factory.mktemp("fit"), width, scheme)
    assert found.errors == []
    assert found.page.evaluate("document.documentElement.scrollWidth") <= width
    found.page.close()


def test_text_from_the_registry_cannot_become_markup(trend: Trend) -> None:
    hostile = "</script><script>alert(1)</script>"
    assert "<script>alert" not in build_trend(replace(trend, name=hostile, alerts=(hostile,), verdicts=(hostile,)))
