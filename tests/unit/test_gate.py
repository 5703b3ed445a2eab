"""The release gate: bounds, allowed drops, significance, and what refuses because it cannot be compared."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mmbert.errors import UserError
from mmbert.evaluation.results.gate import Verdict, judge
from mmbert.evaluation.scores import Score
from mmbert.recipe import load_recipe
from mmbert.recipe.schema import Gate
from tests.scores import card, score

BITS = {"metric": "bits_per_byte", "suite": "demo"}


def judged(gate: dict[str, Any], before: list[Score], after: list[Score]) -> Verdict:
    return judge(Gate(**gate), card(*after, model="new"), card(*before, model="old"))


def refusals(found: Verdict) -> list[str]:
    return [finding.name for finding in found.refusals]


@pytest.mark.parametrize(
    ("gate", "fails"),
    [
        ({"minimum": {"xtreme/xnli": 0.7}}, []),
        ({"minimum": {"xtreme/xnli": 0.71}}, ["xtreme/xnli"]),
        ({"minimum": {"xtreme/mlqa": 0.45}}, []),
        ({"minimum": {"xtreme/mlqa/exact_match": 0.45}}, ["xtreme/mlqa/exact_match"]),
        ({"minimum": {"xtreme": 0.6}}, []),
        ({"minimum": {"xtreme": 0.61}}, ["xtreme"]),
        ({"minimum": {"glue": 0.1}}, ["glue"]),
        ({"maximum": {"demo/bits": 4.0}}, []),
        ({"maximum": {"demo/bits": 3.9}}, ["demo/bits"]),
    ],
)
def test_a_first_release_is_judged_by_bounds_alone(gate: dict[str, Any], fails: list[str]) -> None:
    mlqa = [score("mlqa", 0.5, metric="f1"), score("mlqa", 0.4, metric="exact_match")]
    found = judge(Gate(**gate), card(score(), *mlqa, score("bits", 4.0, **BITS)), None)
    assert refusals(found) == fails
    assert found.passed == (not fails)


def test_a_drop_refuses_only_where_it_is_larger_than_allowed_and_significant() -> None:
    before = [score(value=0.7, width=0.005)]
    small, large = [score(value=0.695, width=0.001)], [score(value=0.66, width=0.005)]
    unsure = [score(value=0.66, width=0.08)]
    assert judged({}, before, small).findings == ()
    assert refusals(judged({}, before, large)) == ["xtreme/xnli/accuracy"]
    assert judged({"largest_drop": 0.05}, before, large).passed
    assert judged({"largest_drops": {"xtreme": 0.05}}, before, large).passed
    assert judged({"largest_drops": {"xtreme/xnli": 0.05}}, before, large).passed
    noted = judged({}, before, unsure)
    assert noted.passed
    assert "within chance" in noted.text()
    assert not judged({"significance": 0.9}, before, unsure).passed


def test_a_refusal_says_from_what_to_what_with_interval_and_limit() -> None:
    found = judged({}, [score(value=0.7, language="deu_Latn")], [score(value=0.6, language="deu_Latn")])
    (finding,) = found.refusals
    assert str(finding).startswith("xtreme/xnli/accuracy/deu_Latn: from 0.7000 to 0.6000 (-10.00 points, 95% interval")
    assert "allowed 0.05" in str(finding)
    assert (finding.before, finding.after, finding.limit) == (0.7, 0.6, 0.05)
    assert found.champion == "old (digest-of-ol)"


def test_languages_have_a_limit_of_their_own_and_a_correction() -> None:
    codes = [f"l{i}" for i in range(30)]
    before = [score(language=code, width=0.02) for code in codes]
    after = [replace(s, value=s.value - (0.06 if s.language == "l3" else 0.0)) for s in before]
    assert refusals(judged({}, before, after)) == ["xtreme/xnli/accuracy/l3"]
    assert judged({"largest_language_drop": 0.1}, before, after).passed
    # Alone it would be significant; among thirty it is chance.
    after = [replace(s, value=s.value - (0.06 if s.language == "l3" else 0.0), low=0.6, high=0.68) for s in before]
    assert judged({}, before, after).passed
    assert refusals(judged({}, before[3:4], after[3:4])) == ["xtreme/xnli/accuracy/l3"]


def test_metrics_with_a_unit_may_drop_by_a_share_of_the_champion_s_value() -> None:
    before = [score("bits", 4.0, **BITS), score("speed", 1000.0, width=1, metric="tokens_per_second")]
    worse = [replace(before[0], value=4.3), replace(before[1], value=960.0)]
    better = [replace(before[0], value=3.0), replace(before[1], value=2000.0)]
    assert judged({"largest_drop": 0.1}, before, worse).passed
    assert refusals(judged({"largest_drop": 0.05}, before, worse)) == ["demo/bits/bits_per_byte"]
    assert judged({"largest_drop": 0}, before, better).passed


def test_a_collapse_that_no_interval_can_test_refuses() -> None:
    found = judged({}, [score(value=1.0, width=0)], [score(value=0.0, width=0)])
    assert "no interval to test it by" in found.text()
    assert not found.passed
    # A single document tells nothing, so it is noted and stops no release.
    alone = judged({}, [score(value=1.0, width=0, n=1)], [score(value=0.0, width=0, n=1)])
    assert alone.passed
    assert "no interval to test it by" in alone.text()


def test_what_was_not_measured_or_not_alike_refuses() -> None:
    before = [score(), score("udpos"), score("udpos", language="deu_Latn")]
    lost = judged({}, before, [score()])
    assert refusals(lost) == ["xtreme/udpos/accuracy"]
    other = judged({}, [score()], [score(settings={"epochs": 9})])
    assert "not comparable with the champion's (epochs: - / 9); evaluate the champion again" in other.text()
    assert not other.passed


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "{minimum: {demo/article_retrieval/accuracy/deu: 0.1}}",
            "minimum: 'demo/article_retrieval/accuracy/deu' is not",
        ),
        ("{minimum: {dmeo: 0.1}}", "this recipe does not evaluate suite 'dmeo'"),
        ("{minimum: {demo: .nan}}", "minimum.demo is nan"),
        (
            "{minimum: {demo/article_retrieval: 15}}",
            "release.gate.minimum.demo/article_retrieval: 15 is no value that accuracy can have; it is from 0 to 1",
        ),
        ("{minimum: {demo: -0.1}}", "release.gate.minimum.demo: -0.1 is no value that"),
        ("{maximum: {demo/masked_bits_per_byte: -1}}", "-1 is no value that bits_per_byte can have; it is 0 or more"),
        ("{minimum: {demo/masked_bits_per_byte: 1}}", "lower bits_per_byte is better; put it under maximum"),
        ("{maximum: {demo: 0.5}}", "maximum.demo: higher accuracy is better; put it under minimum"),
        ("{minimum: {demo/intent_classification/f1: 0.5}}", "the task's metrics are accuracy, macro_f1"),
        ("{minimum: {demo: 0.1}, maximum: {demo: 0.2}}", "minimum and maximum both name 'demo'"),
        ("{largest_drop: 1.5}", "largest_drop"),
        ("{largest_drops: {demo/a/accuracy: 0.1}}", "is not of the form SUITE or SUITE/TASK"),
        ("{significance: 0}", "significance"),
        ("{largest_dropp: 0.1}", "largest_dropp"),
    ],
)
def test_a_wrong_gate_is_an_error_before_anything_runs(override: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        load_recipe("tiny", [f"release.gate={override}"])
    assert words in str(error.value)


@pytest.mark.parametrize("preset", ["tiny", "small", "base"])
def test_every_preset_s_gate_has_a_bound_to_reach(preset: str) -> None:
    gate = load_recipe(preset).release.gate
    assert gate.minimum
