"""The planner against mmBERT's published counts: these figures stand in docs/mixture.md."""

from __future__ import annotations

import statistics

import pytest

from mmbert.data.published_mixture import compare_with_published, scripts_by_code
from mmbert.recipe.languages import language_table


@pytest.mark.parametrize(
    ("column", "temperature", "close", "median_ratio", "median_error"),
    [
        ("ext", 0.5, 58, 0.999, 0.003),
        ("decay-eng", 0.3, 58, 0.977, 0.030),
        ("decay-mid", 0.3, 52, 0.963, 0.057),
        ("decay-all", 0.3, 44, 0.956, 0.070),
    ],
)
def test_later_phases_follow_from_the_first(
    column: str, temperature: float, close: int, median_ratio: float, median_error: float
) -> None:
    found = compare_with_published(column, temperature)
    assert len(found.ratios) == 59
    assert found.close == close
    assert found.median_ratio == pytest.approx(median_ratio, abs=5e-4)
    assert found.median_error == pytest.approx(median_error, abs=5e-4)


def test_another_temperature_does_not_fit() -> None:
    for temperature in (0.4, 0.6):
        assert compare_with_published("ext", temperature).close < 30


def test_outliers_are_those_that_the_guide_explains() -> None:
    assert list(compare_with_published("ext", 0.5).outliers()) == ["xho_Latn"]
    assert list(compare_with_published("decay-eng", 0.3).outliers()) == ["swe_Latn"]
    high = {code for code, ratio in compare_with_published("decay-all", 0.3).outliers().items() if ratio > 1}
    assert high == {"tam_Taml", "hin_Deva", "arb_Arab", "swe_Latn", "urd_Arab", "sin_Sinh"}


def test_what_decay_all_has_more_of_is_second_scripts() -> None:
    """Against decay-mid: all that FineWeb2 has in two scripts, and no other language but Sinhala, which is doubled."""
    table = language_table()
    gains = {code: table[code].tokens["decay-all"] / table[code].tokens["decay-mid"]
             for code in compare_with_published("decay-all", 0.3).ratios}  # fmt: skip
    usual = statistics.median(gains.values())
    several = {code for code in gains if len(scripts_by_code()[code.split("_")[0]]) > 1}
    assert {code for code, gain in gains.items() if gain / usual > 1.02} == several | {"sin_Sinh"}
    assert len(several) == 13
    sinhala = table["sin_Sinh"].tokens
    assert sinhala["decay-all"] / sinhala["decay-eng"] == pytest.approx(2, abs=0.002)


def test_the_smallest_languages_of_decay_all_are_capped() -> None:
    """p ~ size^0.3 would need less than a token of text for them, had German 400B: their text was used up."""
    tokens = {code: entry.tokens["decay-all"] for code, entry in language_table().items()}
    smallest = min(count for count in tokens.values() if count)
    assert smallest == 216
    assert 4e11 * (smallest / tokens["deu_Latn"]) ** (1 / 0.3) < 1e-6
