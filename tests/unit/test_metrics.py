"""Scores, intervals and the suites' arithmetic; intents; published tables; claims; lineage."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from mmbert.data.documents import Document
from mmbert.errors import UserError
from mmbert.evaluation import lineage
from mmbert.evaluation.claims import claims
from mmbert.evaluation.probe import linear_probe
from mmbert.evaluation.published import published_tables
from mmbert.evaluation.report_data import LineageNode, PhaseReport, ReportData
from mmbert.evaluation.scores import Score, ratio_interval, resampling_counts
from mmbert.evaluation.suites import intent_scores, retrieval
from mmbert.evaluation.suites.intents import LANGUAGES, intent_sentences
from mmbert.evaluation.tables import tasks_of
from tests.integration.report_sample import sample_report


def test_a_score_survives_json() -> None:
    score = Score("demo", "retrieval", "accuracy", 0.5, 0.4, 0.6, 9, "deu_Latn", 0.1, settings={"articles": 10})
    assert Score.from_json(json.loads(json.dumps(score.to_json()))) == score


@given(st.integers(1, 40), st.integers(1, 30), st.integers(0, 5))
def test_each_bootstrap_sample_draws_as_many_units_as_there_are(n: int, samples: int, seed: int) -> None:
    counts = resampling_counts(n, samples, seed)
    assert counts.shape == (samples, n)
    assert (counts.sum(axis=1) == n).all()
    assert (counts == resampling_counts(n, samples, seed)).all()


def test_the_interval_of_a_mean_has_the_width_that_statistics_gives_it() -> None:
    values = np.random.default_rng(0).normal(3.0, 1.0, 400)
    low, high = ratio_interval(values, np.ones(400), 2000, seed=1)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def _embeddings(noise: float, offset: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(2)
    articles = rng.normal(size=(1, 10, 32))
    return articles + noise * rng.normal(size=(20, 10, 32)) + offset * rng.normal(size=(20, 1, 32))


def test_retrieval_is_perfect_on_equal_texts_whatever_sets_languages_apart() -> None:
    accuracies = retrieval.pair_accuracies(_embeddings(noise=0.01, offset=50.0))
    assert np.isnan(np.diag(accuracies)).all()
    assert retrieval.mean_accuracy(accuracies) == 1.0
    assert retrieval.accuracy_interval(accuracies, 200, 0) == (1.0, 1.0)
    assert (retrieval.language_accuracies(accuracies) == 1.0).all()


def test_retrieval_of_noise_is_chance_and_its_interval_says_so() -> None:
    noise = np.random.default_rng(3).normal(size=(40, 10, 16))
    accuracies = retrieval.pair_accuracies(noise)
    low, high = retrieval.accuracy_interval(accuracies, 1000, 0)
    assert low < 0.1 < high
    assert high - low < 0.05


def test_retrieval_takes_the_languages_with_most_text_among_those_that_have_every_article() -> None:
    def article(language: str, number: int) -> Document:
        return Document(f"{language}-{number}", f"{language} {number}", language, "udhr", {"article": number})

    declarations = {code: [article(code, n) for n in (21, 22, 23)] for code in ("aaa_Latn", "bbb_Latn", "ccc_Latn")}
    declarations["ddd_Latn"] = [article("ddd_Latn", 21)]
    sizes = {"aaa_Latn": 1, "bbb_Latn": 3, "ccc_Latn": 2, "ddd_Latn": 9}
    parallel = retrieval.parallel_articles(declarations, sizes, languages=2)
    assert parallel.languages == ("bbb_Latn", "ccc_Latn")
    assert parallel.articles == (21, 22, 23)
    assert parallel.texts[0] == ("bbb_Latn 21", "bbb_Latn 22", "bbb_Latn 23")


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abcd")), min_size=2, max_size=40))
def test_intent_scores_are_those_of_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    truth, predicted = [t for t, _ in pairs], [p for _, p in pairs]
    templates = [f"t{i % 7}" for i in range(len(pairs))]
    predictions = intent_scores.Predictions("deu_Latn", templates, truth, predicted)
    found = intent_scores.accuracy([predictions], 50, 0)
    assert found.value == pytest.approx(accuracy_score(truth, predicted))
    assert found.low <= found.value <= found.high
    f1 = f1_score(truth, predicted, labels=sorted(set(truth)), average="macro", zero_division=0)
    assert intent_scores.macro_f1([predictions], 50, 0).value == pytest.approx(f1)


def test_sentences_of_one_template_widen_the_interval() -> None:
    """Ten sentences of a template stand or fall together, so they count as one unit and not as ten."""
    right = np.random.default_rng(0).random(20) < 0.5
    truth = ["a"] * 200
    predicted = list(np.where(np.repeat(right, 10), "a", "b"))
    by_sentence = intent_scores.Predictions("x", [f"t{i}" for i in range(200)], truth, predicted)
    by_template = intent_scores.Predictions("x", [f"t{i // 10}" for i in range(200)], truth, predicted)
    narrow, wide = (intent_scores.accuracy([p], 500, 0) for p in (by_sentence, by_template))
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


@pytest.mark.parametrize("language", ["eng_Latn", "ell_Grek", "kor_Hang", "heb_Hebr", "hun_Latn"])
def test_intents_are_split_by_template_without_a_leak(language: str) -> None:
    sentences = intent_sentences(language, 160, 17)
    train = [s for s in sentences if s.train]
    test = [s for s in sentences if not s.train]
    assert len(sentences) >= 100
    assert not {s.template for s in train} & {s.template for s in test}
    assert not {s.text for s in train} & {s.text for s in test}
    assert {s.intent for s in test} <= {s.intent for s in train}
    assert not [s.text for s in sentences if any(mark in s.text for mark in "[](){}<>|")]


def test_intents_depend_on_nothing_but_language_size_and_seed() -> None:
    first = intent_sentences("deu_Latn", 80, 1)
    intent_sentences.cache_clear()
    assert intent_sentences("deu_Latn", 80, 1) == first
    assert intent_sentences("deu_Latn", 80, 2) != first


def test_a_language_without_templates_is_named() -> None:
    with pytest.raises(UserError, match="no templates for 'zul_Latn'"):
        intent_sentences("zul_Latn", 80, 1)
    assert len(LANGUAGES) >= 12


def test_a_linear_probe_learns_what_is_linear_and_only_that() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(400, 8)).astype(np.float32) * 100
    labels = np.where(features[:, 3] > 0, "yes", "no")
    right = linear_probe(features[:200], list(labels[:200]), features[200:]) == labels[200:]
    assert right.mean() > 0.95
    shuffled = linear_probe(features[:200], list(rng.permutation(labels[:200])), features[200:]) == labels[200:]
    assert shuffled.mean() < 0.65


@pytest.mark.parametrize(
    ("table", "model", "column", "value"),
    [
        ("xtreme", "mmBERT base", "XNLI", 77.1),
        ("xtreme", "XLM-R base", "Avg", 70.4),
        ("xtreme", "mmBERT small", "UDPOS", 70.6),
        ("glue", "ModernBERT base", "CoLA", 65.3),
        ("glue", "mmBERT base", "Avg", 86.3),
        ("mteb-english", "mmBERT base", "Summ.", 26.0),
        ("mteb-english", "EuroBERT 210m", "Pair", 79.5),
        ("mteb-multilingual", "mmBERT small", "Bitext", 50.5),
        ("mteb-multilingual", "mGTE base", "Multilabel", 17.2),
        ("coir", "EuroBERT 210m", "Avg", 45.3),
        ("coir", "mmBERT base", "CodeFeedback-MT", 32.4),
        ("coir", "mGTE base", "Apps", None),
        ("low-resource-qa", "FoQA, mmBERT base", "1833 languages", 76.0),
        ("low-resource-qa", "TiQuAD, mmBERT small", "English-focused", 15.7),
    ],
)
def test_published_figures(table: str, model: str, column: str, value: float | None) -> None:
    assert published_tables()[table].value(model, column) == value


def test_published_averages_are_those_of_their_rows() -> None:
    for model, values in published_tables()["xtreme"].rows.items():
        known = [v for v in values if v is not None]
        assert np.mean(known[:-1]) == pytest.approx(known[-1], abs=0.11), model


def test_claims_hold_for_a_run_that_learns() -> None:
    verdicts = [claim.holds for claim in claims(sample_report())]
    assert verdicts == [True, True, True]


def _with_phase(data: ReportData, old: PhaseReport, **changes: object) -> ReportData:
    changed = dataclasses.replace(old, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(data, phases=tuple(changed if p is old else p for p in data.phases))


def test_a_phase_that_makes_its_own_languages_worse_breaks_the_first_claim() -> None:
    data = sample_report()
    extend = data.trunk[1]
    worse = {
        code: bits + (2.0 if code in extend.language_shares() else 0) for code, bits in extend.bits_per_byte.items()
    }
    assert claims(_with_phase(data, extend, bits_per_byte=worse))[0].holds is False


def test_a_mean_that_falls_by_a_few_languages_alone_breaks_the_first_claim() -> None:
    data = sample_report()
    extend, before = data.trunk[1], data.trunk[0].bits_per_byte
    trained = sorted(set(extend.language_shares()) & set(before))
    few = set(trained[: len(trained) // 3])
    bits = {code: before[code] + (-3.0 if code in few else 0.1) for code in trained}
    found = claims(_with_phase(data, extend, bits_per_byte={**extend.bits_per_byte, **bits}))[0]
    assert (found.holds, f"better in {len(few)} of {len(trained)} languages" in " ".join(found.figures)) == (
        False,
        True,
    )


def test_a_wide_decay_that_does_not_help_new_languages_breaks_the_second_claim() -> None:
    data = sample_report()
    wide, english = data.widest_variant, data.variants[0]
    assert wide is not None
    assert claims(_with_phase(data, wide, bits_per_byte=english.bits_per_byte))[1].holds is False


def test_retrieval_within_the_untrained_models_interval_breaks_the_third_claim() -> None:
    data = sample_report()

    def lowered(score: Score) -> Score:
        return dataclasses.replace(score, low=0.16) if score.task == "article_retrieval" else score

    release = data.models[0]
    changed = dataclasses.replace(release, scores=tuple(map(lowered, release.scores)))
    assert claims(dataclasses.replace(data, models=(changed, *data.models[1:])))[2].holds is False


def test_claims_are_unknown_without_the_models_they_need() -> None:
    data = dataclasses.replace(sample_report(), models=(), phases=())
    assert [claim.holds for claim in claims(data)] == [None, None, None]
    assert claims(data)[2].figures == ("needs the scores of the released and the untrained model",)


def test_a_corpus_without_parallel_text_has_no_retrieval_to_claim() -> None:
    data = sample_report()
    models = tuple(
        dataclasses.replace(model, scores=tuple(s for s in model.scores if s.task != "article_retrieval"))
        for model in data.models
    )
    (reason,) = claims(dataclasses.replace(data, models=models))[2].figures
    assert reason.startswith("needs the same text in several languages")


def test_languages_that_no_phase_trained_on_are_noted_beside_the_task() -> None:
    data = sample_report()
    other = Score("demo", "intent_classification", "accuracy", 0.5, 0.4, 0.6, 10, language="xxx_Latn")
    release = dataclasses.replace(data.models[0], scores=(*data.models[0].scores, other))
    for models, noted in (data.models, 0), ((release, *data.models[1:]), 1):
        notes = [t.note for t in tasks_of(dataclasses.replace(data, models=models)) if t.task == other.task]
        assert notes
        assert sum("no phase trained on 1 of its " in note for note in notes) == noted * len(notes)


def _node(name: str, *inputs: str) -> LineageNode:
    # Pages are of equal digests.
    return LineageNode("kind", name, name, "digest", inputs)


@given(st.integers(0, 12).flatmap(lambda n: st.lists(st.sets(st.integers(0, max(n - 1, 0))), min_size=n, max_size=n)))
def test_lineage_puts_everything_below_what_it_was_made_from(inputs: list[set[int]]) -> None:
    nodes = [_node(str(i), *(str(j) for j in sources if j < i)) for i, sources in enumerate(inputs)]
    drawing = lineage.draw(nodes)
    boxes = {box.node.uri: box for box in drawing.boxes}
    assert set(boxes) == {node.uri for node in nodes}
    for node in nodes:
        for source in node.inputs:
            assert boxes[source].y + lineage.HEIGHT < boxes[node.uri].y
            assert {boxes[source].name, *boxes[source].ancestors} <= set(boxes[node.uri].ancestors)
    assert len({(box.x, box.y) for box in drawing.boxes}) == len(nodes)
    assert all(0 <= b.x <= drawing.width - lineage.WIDTH and 0 <= b.y <= drawing.height for b in drawing.boxes)


def test_lineage_survives_inputs_that_are_gone_or_circular() -> None:
    drawing = lineage.draw([_node("a", "gone", "b"), _node("b", "a")])
    assert len(drawing.boxes) == 2
