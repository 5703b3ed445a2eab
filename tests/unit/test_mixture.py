"""Mixtures: the formula, what is fixed by hand, caps, and what the recipe's author is told."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmbert.data.mixture import MixturePlan, plan_mixture, resolve_languages
from mmbert.errors import UserError
from mmbert.recipe.languages import language_table, published_set
from mmbert.recipe.loading import load_recipe
from mmbert.recipe.schema import Mixture

TOKENS = 1_000_000


def plan(
    sizes: Mapping[tuple[str, str], int], tokens: int = TOKENS, temperature: float = 0.5, **keys: Any
) -> MixturePlan:
    languages = sorted({language for _, language in sizes})
    return plan_mixture(sizes, Mixture(languages="all", temperature=temperature, **keys), languages, tokens)


def shares(found: MixturePlan) -> dict[tuple[str, str], float]:
    return {(row.source, row.language): row.share for row in found.rows}


def language_shares(found: MixturePlan) -> dict[str, float]:
    return {name: language.share for name, language in found.languages().items()}


def test_golden_shares() -> None:
    found = plan({("web", "deu"): 1_000_000, ("web", "fra"): 10_000, ("web", "fao"): 100})
    assert language_shares(found) == pytest.approx({"deu": 1000 / 1110, "fra": 100 / 1110, "fao": 10 / 1110}, abs=1e-12)
    assert sum(row.tokens for row in found.rows) == TOKENS
    row = next(row for row in found.rows if row.language == "fao")
    assert row.tokens == round(TOKENS * 10 / 1110)
    assert row.epochs == pytest.approx(row.tokens / 100)


SIZES = st.dictionaries(
    st.tuples(st.sampled_from(["a", "b", "c"]), st.sampled_from([f"l{i}" for i in range(12)])),
    st.integers(1, 10**12),
    min_size=1,
)


def by_language(sizes: Mapping[tuple[str, str], int]) -> dict[str, int]:
    found: dict[str, int] = {}
    for (_, language), size in sizes.items():
        found[language] = found.get(language, 0) + size
    return found


@given(SIZES, st.floats(0.05, 1), st.integers(1, 10**13))
def test_shares_are_size_to_the_temperature_when_nothing_binds(
    sizes: dict[tuple[str, str], int], temperature: float, tokens: int
) -> None:
    found = plan(sizes, tokens, temperature)
    held = by_language(sizes)
    total = math.fsum(size**temperature for size in held.values())
    assert language_shares(found) == {
        name: pytest.approx(size**temperature / total, rel=1e-12) for name, size in held.items()
    }
    assert math.fsum(row.share for row in found.rows) == pytest.approx(1, abs=1e-12)
    assert sum(row.tokens for row in found.rows) == tokens
    assert all(language.caps == () for language in found.languages().values())


LIMITS = st.fixed_dictionaries(
    {},
    optional={
        "max_epochs": st.floats(0.5, 20),
        "language_shares": st.dictionaries(st.sampled_from(["l0", "l1", "l2"]), st.floats(0, 0.3), max_size=3),
        "source_shares": st.sampled_from([{"a": 0.5, "b": 0.3, "c": 0.2}, {"a": 1.0}]),
    },
)


@given(SIZES, st.floats(0.1, 1), LIMITS, st.floats(0.01, 1), st.integers(2, 1_000))
@settings(max_examples=300)
def test_whatever_is_asked_shares_and_tokens_add_up_or_it_is_refused(
    sizes: dict[tuple[str, str], int], temperature: float, limits: dict[str, Any], load: float, scale: int
) -> None:
    tokens = max(1, int(sum(sizes.values()) * load))
    try:
        found = plan(sizes, tokens, temperature, **limits)
    except UserError:
        return
    assert math.fsum(row.share for row in found.rows) == pytest.approx(1, abs=1e-8)
    assert sum(row.tokens for row in found.rows) == tokens
    assert all(row.share > 0 for row in found.rows)
    languages = found.languages()
    assert list(languages) == sorted(languages, key=lambda name: (-languages[name].share, name))
    for row in found.rows:
        assert row.tokens <= limits.get("max_epochs", math.inf) * sizes[row.source, row.language] + 1
    for name, wanted in limits.get("language_shares", {}).items():
        reached = languages[name].share if name in languages else 0
        assert reached == pytest.approx(wanted, rel=0.01, abs=1e-12)
    by_source: dict[str, float] = {}
    for row in found.rows:
        by_source[row.source] = by_source.get(row.source, 0) + row.share
    if "source_shares" in limits:
        assert by_source == pytest.approx(limits["source_shares"], abs=1e-8)
    # Counting in other units (characters, bytes, ...) changes nothing.
    rescaled = plan({key: size * scale for key, size in sizes.items()}, tokens * scale, temperature, **limits)
    assert shares(rescaled) == pytest.approx(shares(found), rel=1e-6, abs=1e-9)


@given(SIZES, st.floats(0.05, 1), st.integers(2, 10**6))
def test_shares_do_not_change_with_the_unit_of_the_counts(
    sizes: dict[tuple[str, str], int], temperature: float, scale: int
) -> None:
    rescaled = plan({key: size * scale for key, size in sizes.items()}, temperature=temperature)
    assert shares(rescaled) == pytest.approx(shares(plan(sizes, temperature=temperature)), rel=1e-12)


@given(SIZES, st.floats(0.05, 1), st.one_of(st.none(), st.floats(1, 20)))
def test_a_larger_language_has_no_smaller_share(
    sizes: dict[tuple[str, str], int], temperature: float, max_epochs: float | None
) -> None:
    found = language_shares(plan(sizes, sum(sizes.values()), temperature, max_epochs=max_epochs))
    held = by_language(sizes)
    for smaller, larger in itertools.pairwise(sorted(held, key=lambda name: held[name])):
        assert found[smaller] <= found[larger] * (1 + 1e-9)


@given(SIZES)
def test_temperature_one_is_proportional(sizes: dict[tuple[str, str], int]) -> None:
    total = sum(sizes.values())
    found = shares(plan(sizes, temperature=1))
    assert found == {key: pytest.approx(size / total) for key, size in sizes.items()}


@given(SIZES, st.floats(0.1, 1), st.floats(0.5, 20), st.floats(0.01, 1))
def test_caps_hold_and_what_they_free_goes_to_the_others_in_proportion(
    sizes: dict[tuple[str, str], int], temperature: float, max_epochs: float, load: float
) -> None:
    sizes = {key: size + 1_000 for key, size in sizes.items()}
    tokens = int(sum(sizes.values()) * max_epochs * load)
    found = plan(sizes, tokens, temperature, max_epochs=max_epochs)
    free = plan(sizes, tokens, temperature)
    assert sum(row.tokens for row in found.rows) == tokens
    ratios = []
    for row, uncapped in zip(found.rows, free.rows, strict=True):
        held = sizes[row.source, row.language]
        assert row.share * tokens <= max_epochs * held * (1 + 1e-9)
        assert row.tokens <= max_epochs * held + 1
        if row.capped:
            assert row.share * tokens == pytest.approx(max_epochs * held)
        else:
            ratios.append(row.share / uncapped.share)
    assert not ratios or max(ratios) == pytest.approx(min(ratios), rel=1e-6)
    assert all(ratio >= 1 - 1e-9 for ratio in ratios)


def test_a_capped_language_is_marked_and_repeats_so_often() -> None:
    found = plan({("web", "deu"): 10**6, ("web", "fao"): 100}, max_epochs=2)
    by_language = {row.language: row for row in found.rows}
    assert by_language["fao"].capped
    assert by_language["fao"].tokens == 200
    assert not by_language["deu"].capped
    assert by_language["deu"].tokens == TOKENS - 200


def test_the_plan_says_which_caps_bind() -> None:
    sizes = {("web", "eng"): 10**7, ("web", "deu"): 10**6, ("web", "fao"): 100, ("wiki", "fao"): 100}
    found = plan(sizes, max_epochs=2, language_shares={"eng": 0.1}).languages()
    assert {name: language.caps for name, language in found.items()} == {
        "deu": (),
        "eng": ("fixed_share",),
        "fao": ("max_epochs",),
    }
    assert (found["fao"].tokens, found["fao"].size, found["fao"].epochs) == (400, 200, 2)
    both = plan(sizes, max_epochs=2, language_shares={"fao": 0.0004}).languages()["fao"]
    assert both.caps == ("fixed_share", "max_epochs")


def test_much_repetition_is_a_warning_unless_it_was_capped() -> None:
    sizes = {("web", "deu"): 10**6, ("web", "fao"): 100}
    assert plan(sizes, temperature=1).warnings == ()
    (warning,) = plan(sizes).warnings
    assert "the text of 1 language repeats more than 4 times, fao most: 99.0 epochs" in warning
    assert plan(sizes, max_epochs=50).warnings == ()


def test_too_little_text_for_the_phase_is_the_users_error() -> None:
    with pytest.raises(UserError, match=r"max_epochs.*enough for 0\.4 only: 600,000 tokens are missing"):
        plan({("web", "deu"): 200_000}, max_epochs=2)
    with pytest.raises(UserError, match=r"all sources has a share of 1 = .*600,000 tokens are missing"):
        plan({("web", "deu"): 100_000, ("web", "eng"): 100_000}, max_epochs=2, language_shares={"eng": 0.1})
    with pytest.raises(UserError, match=r"eng has a share of 0\.5 = 500,000.*300,000 tokens are missing"):
        plan({("web", "deu"): 10**7, ("web", "eng"): 100_000}, max_epochs=2, language_shares={"eng": 0.5})
    with pytest.raises(UserError, match=r"language_shares\.eng = 0\.5: .*max_epochs make it 0\.8.*300,000 tokens more"):
        plan({("web", "deu"): 100_000, ("web", "eng"): 10**7}, max_epochs=2, language_shares={"eng": 0.5})


def test_languages_that_fixed_shares_leave_nothing_are_left_out() -> None:
    found = plan({("web", "deu"): 10**6, ("web", "eng"): 10**6}, language_shares={"eng": 1.0})
    assert [row.language for row in found.rows] == ["eng"]
    assert found.warnings == ("the fixed shares leave nothing for 1 language: deu",)
    found = plan({("web", "deu"): 10**6, ("web", "eng"): 10**6}, language_shares={"eng": 0.0})
    assert [row.language for row in found.rows] == ["deu"]
    assert found.warnings == ()


def test_source_shares_are_fixed_and_temperature_works_within_them() -> None:
    sizes = {("web", "deu"): 10**6, ("web", "fra"): 10**4, ("books", "deu"): 100, ("unused", "deu"): 10**9}
    found = shares(plan(sizes, source_shares={"web": 0.75, "books": 0.25}))
    assert found == {
        ("web", "deu"): pytest.approx(0.75 * 1000 / 1100),
        ("web", "fra"): pytest.approx(0.75 * 100 / 1100),
        ("books", "deu"): pytest.approx(0.25),
    }


def test_without_source_shares_a_language_is_divided_by_size() -> None:
    found = shares(plan({("a", "deu"): 30_000, ("b", "deu"): 10_000, ("b", "fra"): 10_000}))
    assert found["a", "deu"] == pytest.approx(3 * found["b", "deu"])
    assert found["b", "fra"] == pytest.approx(1 / 3)


def test_language_shares_are_fixed_and_the_others_share_the_rest() -> None:
    sizes = {("web", "eng"): 10**9, ("web", "deu"): 10**6, ("web", "fra"): 10**4, ("books", "eng"): 10**9}
    found = plan(sizes, language_shares={"eng": 0.1})
    assert language_shares(found) == pytest.approx({"eng": 0.1, "deu": 0.9 * 10 / 11, "fra": 0.9 / 11})


def test_language_and_source_shares_hold_together() -> None:
    sizes = {("english", "eng"): 10**9, ("web", "eng"): 10**9, ("web", "deu"): 10**6, ("web", "fra"): 10**4}
    found = plan(sizes, source_shares={"english": 0.3, "web": 0.7}, language_shares={"eng": 0.4})
    assert language_shares(found) == pytest.approx({"eng": 0.4, "deu": 0.6 * 10 / 11, "fra": 0.6 / 11})
    assert shares(found)["english", "eng"] == pytest.approx(0.3)


def test_contradicting_shares_are_the_users_error() -> None:
    sizes = {("english", "eng"): 10**9, ("web", "deu"): 10**6}
    with pytest.raises(UserError, match=r"language_shares\.eng = 0\.1.*make it 0\.3"):
        plan(sizes, source_shares={"english": 0.3, "web": 0.7}, language_shares={"eng": 0.1})
    with pytest.raises(UserError, match=r"language_shares\.fao = 0\.001.*make it 0\.004"):
        plan({("x", "fao"): 10**6, ("web", "deu"): 10}, source_shares={"x": 0.004, "web": 0.996},
             language_shares={"fao": 0.001})  # fmt: skip
    with pytest.raises(UserError, match=r"language_shares\.deu = 0\.5.*make it 1\.0"):
        plan({("web", "deu"): 10**6}, language_shares={"deu": 0.5})


def test_a_source_with_a_share_but_no_text_is_named() -> None:
    with pytest.raises(UserError, match=r"source_shares\.books = 0\.5"):
        plan({("web", "deu"): 10}, source_shares={"web": 0.5, "books": 0.5})


def test_a_language_with_a_share_but_no_text_is_named() -> None:
    with pytest.raises(UserError, match=r"language_shares\.eng = 0\.5"):
        plan({("web", "deu"): 10}, language_shares={"eng": 0.5})


def test_languages_without_text_are_a_warning_and_none_with_text_an_error() -> None:
    mixture = Mixture(languages=("deu_Latn", "fao_Latn"), temperature=1)
    found = plan_mixture({("web", "deu_Latn"): 5, ("web", "eng_Latn"): 5}, mixture, ["deu_Latn", "fao_Latn"], 10)
    assert [row.language for row in found.rows] == ["deu_Latn"]
    assert len(found.warnings) == 1
    assert "fao_Latn" in found.warnings[0]
    with pytest.raises(UserError, match="no text of 1 language asked for"):
        plan_mixture({("web", "eng_Latn"): 5}, mixture, ["deu_Latn"], 10)


def test_published_phase_one_holds_together() -> None:
    """The published shares are rounded: English has 34.5%, and the English-only sources alone 34.7%."""
    recipe = load_recipe("base")
    mixture = recipe.mixture("pretrain")
    web = {c: entry.tokens["pretrain"] for c, entry in language_table().items() if c not in {"eng_Latn", "code"}}
    sizes = {("fineweb2", code): tokens for code, tokens in web.items()} | {("starcoder", "code"): 10**11}
    english = set(mixture.source_shares) - {"fineweb2", "starcoder"}
    sizes |= {(source, "eng_Latn"): 10**12 for source in english}
    found = plan_mixture(sizes, mixture, published_set("published-pretrain"), recipe.phases.pretrain.tokens)
    assert found.languages()["eng_Latn"].share == pytest.approx(0.345, abs=0.005)
    by_source: dict[str, float] = {}
    for row in found.rows:
        by_source[row.source] = by_source.get(row.source, 0) + row.share
    assert by_source == pytest.approx(mixture.source_shares, abs=1e-3)


def test_language_sets() -> None:
    sets = {"mine": ("fra_Latn", "deu_Latn")}
    assert resolve_languages("mine", sets, ["eng_Latn"]) == ["deu_Latn", "fra_Latn"]
    assert resolve_languages("all", sets, ["fra_Latn", "eng_Latn"]) == ["eng_Latn", "fra_Latn"]
    assert resolve_languages(("fra_Latn", "deu_Latn"), sets, []) == ["deu_Latn", "fra_Latn"]
    assert len(resolve_languages("published-pretrain", sets, [])) == 61
    with pytest.raises(UserError, match=r"no language set 'yours'; there are .*mine"):
        resolve_languages("yours", sets, [])
