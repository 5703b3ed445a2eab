"""Adding languages: the recipe made for it, what is refused, what tokens cost, and what counts as gain and loss."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from mmbert.artifacts import ArtifactWriter
from mmbert.data.new_languages import check, seen_elsewhere, token_costs
from mmbert.data.report.statistics import collect
from mmbert.errors import UserError
from mmbert.evaluation.new_languages import outcome, summary, verdict
from mmbert.evaluation.new_languages_page import build_page
from mmbert.evaluation.results.scorecard import Scorecard
from mmbert.evaluation.scores import Score, Units
from mmbert.recipe import load_recipe
from mmbert.recipe.new_languages import languages_of, recipe_for, seen_languages, variants_for


def write(folder: Path, *paths: str) -> Path:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("some text\n", "utf-8")
    return folder


def test_the_recipe_draws_new_text_beside_the_old(tmp_path: Path) -> None:
    text = write(tmp_path / "text", "smo_Latn/a.txt", "smo_Latn/b.txt", "bre_Latn/a.jsonl")
    base = load_recipe("tiny")
    made = recipe_for(base, str(text))
    assert made.new_languages == ("bre_Latn", "smo_Latn")
    assert set(made.sources) == {*base.sources, "new"}
    assert made.tokenizer.kind == "checkpoint"
    assert set(base.reserved_languages) - set(made.reserved_languages) == {"bre_Latn", "smo_Latn"}
    variants = made.phases.decay.variants
    assert [variants[name].language_shares for name in ("new-quarter", "new-half", "new-three-quarters")] == [
        {"bre_Latn": 0.125, "smo_Latn": 0.125}, {"bre_Latn": 0.25, "smo_Latn": 0.25},
        {"bre_Latn": 0.375, "smo_Latn": 0.375},
    ]  # fmt: skip
    assert {draw.languages for draw in variants.values()} == {"all"}
    decay = made.phases.decay
    assert decay.schedule.warmup_tokens + decay.schedule.decay_tokens == decay.tokens == base.phases.decay.tokens
    assert (decay.mask_probability, decay.temperature) == (0.05, 0.3)


def test_overrides_have_the_last_word() -> None:
    overrides = ["phases.decay.tokens=80k", "phases.decay.schedule={decay_tokens: 80k}",
                 "phases.decay.variants={mine: {languages: all}}"]  # fmt: skip
    base = load_recipe("tiny", overrides)
    made = recipe_for(base, "", overrides)
    assert list(made.phases.decay.variants) == variants_for(base, overrides) == ["mine"]
    assert made.phases.decay.schedule.warmup_tokens == 0
    assert variants_for(load_recipe("tiny")) == ["new-quarter", "new-half", "new-three-quarters"]


def test_without_text_the_reserved_languages_are_the_new_ones() -> None:
    made = recipe_for(load_recipe("tiny"), "")
    assert len(made.new_languages) == 12
    assert made.reserved_languages == ()
    assert "new" not in made.sources
    with pytest.raises(UserError, match="no language to add"):
        recipe_for(load_recipe("tiny", ["reserved_languages=[]"]), "")


def test_folders_that_are_no_new_language_are_refused(tmp_path: Path) -> None:
    assert languages_of(str(write(tmp_path / "good", "bre_Latn/a.txt", "bre_Latn/deep/b.txt"))) == {"bre_Latn": 2}
    (tmp_path / "good" / "smo_Latn").mkdir()
    for problem, folder in {
        r"smo_Latn: this folder is empty": tmp_path / "good",
        r"a\.txt: this file lies in no language's folder": write(tmp_path / "flat", "a.txt"),
        r"breton: unknown language 'breton'": write(tmp_path / "code", "breton/a.txt"),
        r"nothing: no text is here": tmp_path / "nothing",
    }.items():
        with pytest.raises(UserError, match=problem):
            languages_of(str(folder))
    known = write(tmp_path / "known", "deu_Latn/a.txt", "bre_Latn/a.txt")
    with pytest.raises(UserError, match=r"the model knows deu_Latn \(German.*\) already"):
        recipe_for(load_recipe("tiny"), str(known))


def test_a_language_that_only_the_decay_drew_may_be_added_again() -> None:
    known = seen_languages(load_recipe("tiny"))
    assert "deu_Latn" in known
    assert "gla_Latn" in known
    assert "abk_Cyrl" not in known  # of decay-all's `all`


def data_of(folder: Path, identified: dict[str, int], fallback: float, tokens: int = 2000, held: int = 4) -> object:
    documents = ArtifactWriter(f"{folder}/documents", "documents", "d", {}, {})
    split = {"documents": 40, "bytes": 4000, "characters": 4000, "dropped": {}, "lengths": {"7": 40}}
    held_out = {"heldout": {"documents": held, "dropped": {}}} if held else {}
    documents.add_json("counts.json", {
        "new": {"bre_Latn": {"train": split} | held_out}, "old": {"deu_Latn": {"train": split}},
    })  # fmt: skip
    documents.add_json("report.json", {"new": {"bre_Latn": {"identified": identified, "script": {"Latn": 40}}}})
    shards = ArtifactWriter(f"{folder}/shards", "shards", "s", {}, {})
    new = {"tokens": tokens, "bytes": 4000, "byte_fallback_share": fallback}
    old = {"tokens": 1000, "bytes": 4000, "byte_fallback_share": 0.0}
    shards.add_json("counts.json", {"new": {"bre_Latn": new}, "old": {"deu_Latn": old}})
    return collect([documents.commit({})], [shards.commit({})], [])


def test_costs_of_tokens_are_told_and_hopeless_ones_warned_of(tmp_path: Path) -> None:
    data = data_of(tmp_path, {"bre_Latn": 40}, 0.1)
    costs = token_costs(data, ["bre_Latn"])  # type: ignore[arg-type]
    assert costs["bre_Latn"].to_json() == {
        "bytes": 4000, "tokens": 2000, "bytes_per_token": 2.0, "byte_fallback_share": 0.1, "beside_others": 0.5,
    }  # fmt: skip
    assert check(data, costs) == []  # type: ignore[arg-type]
    for name, identified, said in (
        ("u", {}, "judged none of this text"),
        (
            "f",
            {"fra_Latn": 40},
            "bre_Latn (Breton): language identification calls none of its text so, most of it French",
        ),
    ):
        unsure = data_of(tmp_path / name, identified, 0.1)
        (warned,) = check(unsure, token_costs(unsure, ["bre_Latn"]))  # type: ignore[arg-type]
        assert said in warned
        assert "bre_Latn (Breton)" in warned
    hopeless = data_of(tmp_path / "h", {"bre_Latn": 40}, 0.9)
    said = check(hopeless, token_costs(hopeless, ["bre_Latn"]))  # type: ignore[arg-type]
    assert "90% of its tokens are single bytes: this tokenizer does not know its script" in said[-1]
    with pytest.raises(UserError, match=r"smo_Latn.*nothing was left to train on"):
        token_costs(data, ["smo_Latn"])  # type: ignore[arg-type]


def test_text_too_thin_to_learn_or_to_measure_is_told(tmp_path: Path) -> None:
    thin = data_of(tmp_path, {"bre_Latn": 40}, 0.1, tokens=300)
    assert "bre_Latn (Breton): 300 tokens to train on" in check(thin, token_costs(thin, ["bre_Latn"]))[0]  # type: ignore[arg-type]
    unmeasured = data_of(tmp_path / "u", {"bre_Latn": 40}, 0.1, held=0)
    with pytest.raises(UserError, match=r"no document of bre_Latn is held out.*held_out_share: 0.3"):
        check(unmeasured, token_costs(unmeasured, ["bre_Latn"]))  # type: ignore[arg-type]


def test_languages_that_other_sources_have_too_are_found(tmp_path: Path) -> None:
    data = data_of(tmp_path, {"bre_Latn": 40}, 0.1)
    assert seen_elsewhere(data, ["bre_Latn", "deu_Latn"], "new") == ["deu_Latn"]  # type: ignore[arg-type]


def test_text_that_is_mostly_another_language_stops_the_run(tmp_path: Path) -> None:
    data = data_of(tmp_path, {"fra_Latn": 36, "bre_Latn": 4}, 0.1)
    with pytest.raises(
        UserError, match=r"text of a new language is mixed: bre_Latn \(Breton\): 90% identified as another"
    ):
        check(data, token_costs(data, ["bre_Latn"]))  # type: ignore[arg-type]


def card(model: str, bits: dict[str, list[float]]) -> Scorecard:
    """Documents of 100 bytes each, with these bits."""
    scores = []
    for language, parts in bits.items():
        value = sum(parts) / (100 * len(parts))
        units = Units(tuple(parts), (100.0,) * len(parts))
        scores.append(
            Score(
                "demo", "masked_bits_per_byte", "bits_per_byte", value, value, value, len(parts), language, units=units
            )
        )
    return Scorecard(model, model, "model", "demo", tuple(scores))


def test_gain_and_loss_are_of_all_bytes_of_the_new_and_the_old_languages(tmp_path: Path) -> None:
    before = card("before", {"bre_Latn": [800, 600], "smo_Latn": [600], "deu_Latn": [300, 310], "fra_Latn": [290]})
    after = card("released", {"bre_Latn": [500, 400], "smo_Latn": [300], "deu_Latn": [306, 312], "fra_Latn": [291]})
    found = outcome(before, after, ["bre_Latn", "smo_Latn"])
    assert found.gain == pytest.approx(1 - 1200 / 2000)
    assert found.loss == pytest.approx(909 / 900 - 1)
    assert found.gains == pytest.approx({"bre_Latn": 5 / 14, "smo_Latn": 0.5})
    assert "(-40.0%, half of them -42.9% or better)" in verdict(found)
    assert "(+1.0%): kept" in verdict(found)
    cost = {"bytes": 1, "tokens": 1, "bytes_per_token": 1.0, "byte_fallback_share": None, "beside_others": None}
    told = summary([found], {"bre_Latn": cost})
    assert json.loads(json.dumps(told))["models"][0]["new_gain"] == pytest.approx(0.4)
    html = build_page([found], {"bre_Latn": cost, "smo_Latn": cost}, "mine", {"Run": "a run"})
    drawn = json.loads(html.partition('id="figures">')[2].partition("</script>")[0])
    languages = {name: figure["layout"]["yaxis"]["ticktext"] for name, figure in drawn.items()}
    assert languages == {"change-0-0": ["Samoan", "Breton"], "change-1-0": ["French", "German"]}
    worse = card("worse", {"bre_Latn": [500, 400], "smo_Latn": [300], "deu_Latn": [400, 312], "fra_Latn": [300]})
    assert "lost more than 2%" in verdict(outcome(before, worse, ["bre_Latn", "smo_Latn"]))
    assert "a run" in html
    intents = Score("demo", "intent_classification", "accuracy", 0.5, 0.4, 0.6, 10, "kor_Hang")
    sides = [dataclasses.replace(side, scores=(*side.scores, intents)) for side in (before, after)]
    html = build_page([outcome(*sides, ["bre_Latn", "smo_Latn"])], {"bre_Latn": cost, "smo_Latn": cost}, "mine", {})
    assert [title in html for title in ("The new ones", "The old ones", "Others, without held-out text")] == [True] * 3
    with pytest.raises(UserError, match="no bits per byte of dzo_Tibt on both sides"):
        outcome(before, after, ["dzo_Tibt"])
    with pytest.raises(UserError, match="no bits per byte of bre_Latn, smo_Latn on both sides"):
        outcome(card("before", {"bre_Latn": [800]}), card("after", {"smo_Latn": [300]}), ["bre_Latn", "smo_Latn"])
