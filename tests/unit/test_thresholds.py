"""The published thresholds by language, and the recipe's own on top of them."""

from __future__ import annotations

import pytest

from mmbert.data.steps.web_quality import limits_of
from mmbert.errors import UserError
from mmbert.recipe.languages import known_languages
from mmbert.recipe.loading import load_recipe
from mmbert.recipe.schema import WebQuality
from mmbert.recipe.thresholds import published_thresholds


def test_published_languages_have_their_own_thresholds() -> None:
    german, thai = published_thresholds("deu_Latn"), published_thresholds("tha_Thai")
    assert german["language_score"] == 0.821
    assert german["dup_line_frac"] == 0.263
    assert german["dup_n_grams"] == ((5, 0.141), (6, 0.134), (7, 0.126), (8, 0.117), (9, 0.108), (10, 0.098))
    assert german["top_n_grams"] == ((2, 0.169), (3, 0.153), (4, 0.137))
    assert german["stop_words"][:3] == ("der", "und", "die")
    assert (thai["language_score"], thai["max_avg_word_length"], thai["stop_words"][0]) == (0.9, 10, "ใน")
    # A stop word with a space in it.
    assert "། །" in published_thresholds("bod_Tibt")["stop_words"]


def test_nearly_all_languages_of_the_table_are_published() -> None:
    unpublished = published_thresholds("zzz_Latn")
    without = [code for code in known_languages() - {"code"} if published_thresholds(code) == unpublished]
    assert len(without) == 70
    assert "eng_Latn" not in without
    assert unpublished["stop_words"] == ()
    assert unpublished["min_stop_words"] == 0


def test_the_recipe_overrides_for_all_languages_and_then_for_one() -> None:
    settings = WebQuality.model_validate(
        {
            "all_languages": {"dup_line_frac": 0.5, "min_doc_words": 9},
            "by_language": {"deu_Latn": {"dup_line_frac": 0.7}},
        }
    )
    german, french = limits_of(settings, "deu_Latn"), limits_of(settings, "fra_Latn")
    assert (german.dup_line_frac, german.min_doc_words, german.new_line_ratio) == (0.7, 9, 0.152)
    assert (french.dup_line_frac, french.min_doc_words) == (0.5, 9)


def test_word_lengths_are_not_checked_where_words_come_from_a_segmenter_unless_the_recipe_asks() -> None:
    assert limits_of(WebQuality(), "tha_Thai").max_avg_word_length == 0
    assert limits_of(WebQuality(), "deu_Latn").max_avg_word_length == 15
    own = WebQuality.model_validate({"by_language": {"tha_Thai": {"max_avg_word_length": 6}}})
    assert limits_of(own, "tha_Thai").max_avg_word_length == 6


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("curation.quality={by_language: {german: {}}}", "quality.by_language: unknown language 'german'"),
        ("curation.language_identification={min_score_by_language: {xx: 0.5}}", "min_score_by_language: unknown lang"),
        ("curation.language_identification={min_score: 2}", "curation.language_identification.min_score = 2"),
        ("curation.quality={all_languages: {dup_lines: 1}}", "dup_lines = 1: unknown key"),
        ("curation.quality_classifier={scorer: my_scorer}", "curation.quality_classifier.scorer = 'my_scorer'"),
    ],
)
def test_wrong_settings_are_named(override: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        load_recipe("tiny", [override])
    assert message in str(error.value)
