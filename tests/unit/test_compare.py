"""Differences between models: significance that is right, corrections, and what may not be compared."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from mmbert.evaluation.results.compare import Difference, compare, holm
from mmbert.evaluation.results.text import comparison_text
from tests.scores import card, measured, score


def only(found: list[Difference]) -> Difference:
    (difference,) = found
    return difference


def answers(rng: np.random.Generator, n: int, rate: float) -> np.ndarray:
    return (rng.random(n) < rate).astype(float)


def test_a_paired_comparison_agrees_with_the_paired_t_test_and_beats_the_intervals() -> None:
    rng = np.random.default_rng(0)
    old = answers(rng, 800, 0.7)
    new = np.where(rng.random(800) < 0.06, 1 - old, old)
    new[:10] = 1.0
    before, after = measured(old), measured(new)
    paired = only(compare(card(before), card(after, model="two")).overall)
    assert paired.method == "paired bootstrap"
    assert paired.change == pytest.approx(new.mean() - old.mean())
    expected = stats.ttest_rel(new, old)
    assert paired.p == pytest.approx(expected.pvalue, abs=0.03)
    interval = expected.confidence_interval()
    assert (paired.low, paired.high) == pytest.approx((interval.low, interval.high), abs=0.003)
    apart = only(compare(card(replace(before, units=None)), card(after, model="two")).overall)
    assert apart.method == "intervals"
    assert apart.low is not None
    assert paired.low is not None
    assert apart.low < paired.low - 0.01


def test_equal_models_are_called_different_as_rarely_as_the_level_says() -> None:
    rng = np.random.default_rng(1)
    found = []
    for _ in range(200):
        pair = [measured(answers(rng, 200, 0.6)) for _ in range(2)]
        with_units = compare(card(pair[0]), card(pair[1]))
        without = compare(*(card(replace(s, units=None)) for s in pair))
        found.append([only(c.overall).significant(0.05) for c in (with_units, without)])
    rates = np.mean(found, axis=0)
    # 0.05 with a standard deviation of 0.015 for 200 trials.
    assert (rates > 0.01).all()
    assert (rates < 0.1).all()


def test_from_intervals_the_p_value_is_that_of_two_normal_errors() -> None:
    found = only(compare(card(score(value=0.70, width=0.0196)), card(score(value=0.73, width=0.0196))).overall)
    z = 0.03 / np.hypot(0.01, 0.01)
    assert found.p == pytest.approx(2 * stats.norm.sf(z), rel=1e-3)
    assert (found.low, found.high) == pytest.approx((0.00228, 0.05772), abs=1e-5)


def test_the_spread_over_seeds_widens_the_interval() -> None:
    seeded = score(value=0.73, deviation=0.04, seeds=(1, 2, 3, 4))
    one, several = (only(compare(card(score()), card(s)).overall) for s in (score(value=0.73), seeded))
    assert one.significant()
    assert not several.significant()


def test_a_change_of_every_unit_by_the_same_is_judged_by_its_sign() -> None:
    units = np.zeros(20)
    found = only(compare(card(measured(units)), card(measured(units + 1))).overall)
    assert found.significant(1e-5)
    assert not only(compare(card(measured(units)), card(measured(units))).overall).significant()


def test_without_any_interval_nothing_is_significant() -> None:
    found = only(compare(card(score(width=0)), card(score(value=0.1, width=0))).overall)
    assert (found.method, found.p, found.low) == ("none", None, None)


def test_holm_is_what_its_paper_says() -> None:
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, never falling.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_many_languages_are_corrected_within_their_task_and_the_overall_score_is_not() -> None:
    languages = [f"l{i:02}" for i in range(40)]
    before = [score(language=code) for code in [None, *languages]] + [score("udpos", language="l00")]
    after = [replace(s, value=s.value + 0.03) for s in before]
    found = compare(card(*before), card(*after, model="two"))
    assert only(found.overall).significant()
    by_task = {"xnli": set(), "udpos": set()}
    for d in found.by_language:
        by_task[d.after.task].add(d.significant())
    assert by_task == {"xnli": {False}, "udpos": {True}}


def test_less_is_better_where_the_metric_says_so() -> None:
    bits = {"metric": "bits_per_byte", "suite": "demo"}
    before, after = card(score("bits", 4.0, **bits)), card(score("bits", 3.5, **bits), model="two")
    found = compare(before, after)
    assert only(found.overall).gain == pytest.approx(0.5)
    assert "better *" in comparison_text(found, None, 0.05)
    assert "worse *" in comparison_text(compare(after, before), None, 0.05)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"settings": {"max_length": 128}}, "max_length: - / 128"),
        ({"data_revision": "def"}, "data revision: abc / def"),
    ],
)
def test_other_settings_or_data_are_said_and_never_judged(change: dict[str, object], words: str) -> None:
    rows = [score(), score(language="deu_Latn")]
    found = compare(card(*rows), card(*(replace(s, value=0.1, **change) for s in rows), model="two"))
    assert [d.p for d in found.differences] == [None, None]
    assert found.by_language == []
    assert found.suites() == []
    said = comparison_text(found, None, 0.05)
    assert f"not compared, {words} (one / two): xtreme/xnli/accuracy, xtreme/xnli/accuracy/deu_Latn" in said
    same = {"settings": {"bootstrap_samples": 9}}
    assert compare(card(score()), card(score(**same))).differences[0].unlike == ()


def test_what_only_one_side_has_is_named() -> None:
    found = compare(card(score(), score("udpos")), card(score(), score("cola", suite="glue"), model="two"))
    said = comparison_text(found, None, 0.05)
    assert "only one has: xtreme/udpos/accuracy" in said
    assert "only two has: glue/cola/accuracy" in said


def test_a_suite_s_mean_takes_each_task_s_first_metric() -> None:
    rows = [("a", "f1", 0.5), ("a", "exact_match", 0.1), ("b", "f1", 0.7), ("c", "tokens_per_second", 9.0)]
    before = card(*(score(task, value, metric=metric) for task, metric, value in rows))
    after = card(*(score(task, value * 1.1, metric=metric) for task, metric, value in rows), model="two")
    (suite,) = compare(before, after).suites()
    assert (suite.tasks, suite.before, suite.after) == (2, pytest.approx(0.6), pytest.approx(0.66))
    error = np.hypot(0.02, 0.02) / 1.959964 * np.sqrt(2) / 2
    assert suite.p == pytest.approx(2 * stats.norm.sf(0.06 / error), rel=1e-3)
