"""Mixtures: the formula, what is fixed by hand, caps, and what the recipe's author is told."""

from __future__ import annotations

import itertools
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


def test_golden_shares() -> None:
    found = plan({("web", "deu"): 1_000_000, ("web", "fra"): 10_000, ("web", "fao"): 100})
    assert found.languages() == pytest.approx({"deu": 1000 / 1110, "fra": 100 / 1110, "fao": 10 / 1110}, abs=1e-12)
    assert sum(row.tokens for row in found.rows) == TOKENS
    row = next(row for row in found.rows if row.language == "fao")
    assert row.tokens == round(TOKENS * 10 / 1110)
    assert row.epochs == pytest.approx(row.tokens / 100)


SIZES = st.dictionaries(
    st.tuples(st.sampled_from(["a", "b", "c"]), st.sampled_from([f"l{i}" for i in range(12)])),
    st.integers(1, 10**12),
    min_size=1,
)


@given(SIZES, st.floats(0.05, 1), st.integers(1, 10**13))
@settings(deadline=None)
def test_shares_add_up_and_keep_the_order_of_sizes(
    sizes: dict[tuple[str, str], int], temperature: float, tokens: int
) -> None:
    found = plan(sizes, tokens, temperature)
    assert sum(row.share for row in found.rows) == pytest.approx(1)
    assert sum(row.tokens for row in found.rows) == tokens
    by_size: dict[str, int] = {}
    for (_, language), size in sizes.items():
        by_size[language] = by_size.get(language, 0) + size
    ordered = sorted(by_size, key=lambda language: by_size[language])
    languages = found.languages()
    for smaller, larger in itertools.pairwise(ordered):
        assert languages[smaller] <= languages[larger] * (1 + 1e-9)


@given(SIZES)
@settings(deadline=None)
def test_temperature_one_is_proportional(sizes: dict[tuple[str, str], int]) -> None:
    total = sum(sizes.values())
    found = shares(plan(sizes, temperature=1))
    assert found == {key: pytest.approx(size / total) for key, size in sizes.items()}


@given(SIZES, st.floats(0.1, 1), st.floats(0.5, 20), st.floats(0.01, 1))
@settings(deadline=None)
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


def test_too_little_text_for_the_phase_is_the_users_error() -> None:
    with pytest.raises(UserError, match=r"max_epochs.*enough for 0\.4"):
        plan({("web", "deu"): 200_000}, max_epochs=2)


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
    assert found.languages() == pytest.approx({"eng": 0.1, "deu": 0.9 * 10 / 11, "fra": 0.9 / 11})


def test_language_and_source_shares_hold_together() -> None:
    sizes = {("english", "eng"): 10**9, ("web", "eng"): 10**9, ("web", "deu"): 10**6, ("web", "fra"): 10**4}
    found = plan(sizes, source_shares={"english": 0.3, "web": 0.7}, language_shares={"eng": 0.4})
    assert found.languages() == pytest.approx({"eng": 0.4, "deu": 0.6 * 10 / 11, "fra": 0.6 / 11})
    assert shares(found)["english", "eng"] == pytest.approx(0.3)


def test_contradicting_shares_are_the_users_error() -> None:
    sizes = {("english", "eng"): 10**9, ("web", "deu"): 10**6}
    with pytest.raises(UserError, match=r"language_shares\.eng = 0\.1.*make it 0\.3"):
        plan(sizes, source_shares={"english": 0.3, "web": 0.7}, language_shares={"eng": 0.1})
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
    with pytest.raises(UserError, match="has any text"):
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
    assert found.languages()["eng_Latn"] == pytest.approx(0.345, abs=0.005)
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
