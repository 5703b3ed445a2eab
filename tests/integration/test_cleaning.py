"""The cleaning steps on real text in several scripts: what each drops, why, and what it leaves alone."""

from __future__ import annotations

import json
import pickle
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import fasttext
import pytest
from datatrove.data import Document as Record
from datatrove.pipeline.base import PipelineStep

from mmbert.data import eld
from mmbert.data.documents import HELD_OUT, TRAIN, Document
from mmbert.data.readers import to_record
from mmbert.data.steps.classifier import ScoreQuality
from mmbert.data.steps.cleaning import cleaning_steps, language_settings
from mmbert.data.steps.decontamination import ContaminationIndex, Decontamination, EvaluationText
from mmbert.data.steps.personal_data import MaskPersonalData
from mmbert.errors import UserError
from mmbert.evaluation.suites.intents import suite_sentences
from mmbert.evaluation.suites.texts import evaluation_texts
from mmbert.recipe.loading import load_recipe
from mmbert.recipe.schema import (
    Curation,
    FilesSource,
    PersonalData,
    QualityClassifier,
)
from tests.curating import curate, dropped

SCRIPTS = ("deu_Latn", "rus_Cyrl", "hin_Deva", "arb_Arab", "cmn_Hani", "kor_Hang", "ell_Grek", "heb_Hebr", "jpn_Jpan")
FULL = Curation.model_validate({"language_identification": {}, "quality": {}, "personal_data": {}})


class Kept:
    """Takes what filters drop, as curation's writer does."""

    def __init__(self) -> None:
        self.dropped: list[Record] = []

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def write(self, record: Record, rank: int = 0) -> None:
        self.dropped.append(record)


@pytest.fixture(scope="module")
def sentences() -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for _, code, text in eld.read_sentences(eld.sentence_file()):
        found[code].append(text)
    return found


@pytest.fixture(scope="module")
def pages(sentences: dict[str, list[str]]) -> dict[str, str]:
    """A page of 24 sentences in each language."""
    return {code: "\n".join(" ".join(texts[i : i + 4]) for i in range(0, 24, 4)) for code, texts in sentences.items()}


def record(text: str, language: str = "deu_Latn", held_out: bool = False) -> Record:
    return to_record(Document("id", text, language, "mine"), held_out)


def run(steps: Iterable[PipelineStep], records: list[Record]) -> list[Record]:
    data: Any = records
    for step in steps:
        data = step.run(data)
    return list(data)


def reason(text: str, language: str, curation: Curation = FULL, **parts: Any) -> str | None:
    """Why the cleaning steps drop a document; None where they keep it."""
    dropped = Kept()
    kept = run(cleaning_steps(curation, dropped, **parts), [record(text, language)])
    return None if kept else str(dropped.dropped[0].metadata["filter_reason"])


@pytest.mark.parametrize("language", SCRIPTS)
def test_a_good_page_passes_at_full_strength(language: str, pages: dict[str, str]) -> None:
    assert reason(pages[language], language) is None


@pytest.mark.parametrize("language", SCRIPTS)
@pytest.mark.parametrize(
    ("expected", "step", "spoil"),
    [
        ("too_short", "light", lambda page: page[:5]),
        ("few_letters", "light", lambda page: "".join(c + " 12345" for c in page[:200])),
        ("repeated_lines", "light", lambda page: "\n".join([page.split("\n")[0]] * 9)),
        ("dup_line_frac", "gopher_repetition", lambda page: page + ("\n" + page[:40]) * 7),
        ("top_2_gram", "gopher_repetition", lambda page: page + " 2 2" * 400),
        ("duplicated_5_n_grams", "gopher_repetition", lambda page: page + " - " + page.replace("\n", " - ")),
        ("line_punct_ratio", "fineweb_quality", lambda page: "\n".join(line[:-9] + "x" for line in page.split("\n"))),
        ("char_dup_ratio", "fineweb_quality", lambda page: page + "\n" + page),
        ("list_ratio", "fineweb_quality", lambda page: "\n".join(page[i : i + 4] + "." for i in range(0, 800, 4))),
        ("gopher_short_doc", "gopher_quality", lambda page: page[:60]),
        ("gopher_too_many_hashes", "gopher_quality", lambda page: page + "#" * 120),
        ("gopher_too_many_ellipsis", "gopher_quality", lambda page: page + " ..." * 120),
        ("gopher_too_many_bullets", "gopher_quality", lambda page: "- " + page.replace("\n", "\n- ")),
        ("gopher_too_many_end_ellipsis", "gopher_quality", lambda page: page.replace("\n", "…\n") + "…"),
        ("gopher_below_alpha_threshold", "gopher_quality", lambda page: page + " 2012" * 200),
        (
            "gopher_enough_stop_words",
            "gopher_quality",
            lambda page: "Ω " + " ".join("αβγδεζηθ"[i % 8] * 6 for i in range(99)),
        ),
    ],
)
def test_a_spoilt_page_is_dropped_for_its_fault(
    expected: str, step: str, spoil: Callable[[str], str], language: str, pages: dict[str, str]
) -> None:
    # The published German limit on line ends is 0.
    quality = {"filters": [step], "by_language": {"deu_Latn": {"line_punct_thr": 0.2}}}
    curation = Curation() if step == "light" else Curation.model_validate({"quality": quality})
    assert reason(pages[language], language, curation) is None
    assert reason(spoil(pages[language]), language, curation) == expected


def test_source_code_passes_all_but_the_length(pages: dict[str, str]) -> None:
    lines = "for (;;) { i++; }\n" * 40
    assert reason(lines, "code") is None
    assert reason("x", "code") == "too_short"


IDENTIFY = Curation.model_validate({"language_identification": {}})


@pytest.mark.parametrize(
    ("written", "said", "expected"),
    [
        ("deu_Latn", "deu_Latn", None),
        ("deu_Latn", "fra_Latn", "wrong_language"),
        ("rus_Cyrl", "ukr_Cyrl", "wrong_language"),
        ("urd_Arab", "arb_Arab", "wrong_language"),
        ("cmn_Hani", "jpn_Jpan", "wrong_language"),
        ("eng_Latn", "hin_Deva", "wrong_script"),
        ("srp_Cyrl", "srp_Latn", "wrong_script"),
        ("jpn_Jpan", "cmn_Hani", "wrong_script"),
        # So close that a model cannot tell them apart in a text of this length.
        ("hrv_Latn", "bos_Latn", None),
        ("zsm_Latn", "ind_Latn", None),
        # lid.176 does not know Wolof, and Yoruba too badly.
        ("eng_Latn", "wol_Latn", None),
        ("eng_Latn", "yor_Latn", None),
        ("rus_Cyrl", "wol_Latn", "wrong_script"),
        ("eng_Latn", "code", None),
    ],
)
def test_language_and_script_must_be_those_that_the_source_gives(
    written: str, said: str, expected: str | None, pages: dict[str, str]
) -> None:
    assert reason(pages[written], said, IDENTIFY) == expected


def test_what_was_identified_stands_in_the_facts(pages: dict[str, str]) -> None:
    dropped = Kept()
    [kept] = run(cleaning_steps(IDENTIFY, dropped), [record(pages["deu_Latn"]), record(pages["nld_Latn"])])
    assert kept.metadata["facts"] == {"identified": "deu_Latn", "language_score": pytest.approx(1, abs=0.01)}
    [wrong] = dropped.dropped
    assert wrong.metadata["facts"]["identified"] == "nld_Latn"
    assert wrong.metadata["facts"]["language_score"] < 0.3


def test_a_language_can_have_a_threshold_of_its_own_and_short_texts_are_not_judged(pages: dict[str, str]) -> None:
    dutch = pages["nld_Latn"]
    lenient = Curation.model_validate({"language_identification": {"min_score_by_language": {"deu_Latn": 0}}})
    assert reason(dutch, "deu_Latn", lenient) is None
    assert reason(dutch, "fra_Latn", lenient) == "wrong_language"
    assert reason(dutch[:49], "deu_Latn", IDENTIFY) is None
    assert reason(dutch[:99], "deu_Latn", IDENTIFY) == "wrong_language"


def test_of_long_texts_pieces_from_all_over_are_judged(sentences: dict[str, list[str]]) -> None:
    judged = Curation.model_validate({"language_identification": {"max_characters": 4000, "min_score": 0.5}})
    mostly_german = " ".join(sentences["fra_Latn"][:30] + sentences["deu_Latn"][:400])
    assert reason(mostly_german, "deu_Latn", judged) is None
    assert reason(mostly_german, "fra_Latn", judged) == "wrong_language"


@pytest.fixture(scope="module")
def language_model(sentences: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fastText model with GlotLID's labels, of three languages."""
    folder = tmp_path_factory.mktemp("model")
    lines = [
        f"__label__{code} {text}" for code in ("deu_Latn", "fra_Latn", "rus_Cyrl") for text in sentences[code][:300]
    ]
    (folder / "train.txt").write_text("\n".join(lines), "utf-8")
    # fastText gives each of ten threads a tenth of the weights to initialise; with fewer it trains on stray memory.
    model = fasttext.train_supervised(
        str(folder / "train.txt"), dim=16, epoch=25, lr=0.2, minn=2, maxn=3, bucket=20000, thread=10, verbose=0
    )
    model.save_model(str(folder / "model.bin"))
    return folder / "model.bin"


def test_a_model_of_ones_own_judges_the_languages_that_it_has_labels_for(
    language_model: Path, pages: dict[str, str]
) -> None:
    own = Curation.model_validate({"language_identification": {"model": str(language_model)}})
    assert reason(pages["deu_Latn"], "deu_Latn", own) is None
    assert reason(pages["deu_Latn"], "fra_Latn", own) == "wrong_language"
    assert reason(pages["deu_Latn"], "ita_Latn", own) is None


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("/nowhere/model.bin", "no such fastText model"),
        (__file__, "not a fastText model"),
        ("hf://glotlid", "write a file of the hub as hf://OWNER/NAME/FILE"),
    ],
)
def test_a_model_that_cannot_be_read_is_a_users_error(model: str, message: str, pages: dict[str, str]) -> None:
    with pytest.raises(UserError, match=message):
        reason(pages["deu_Latn"], "deu_Latn", Curation.model_validate({"language_identification": {"model": model}}))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Schreiben Sie an otto.muster+x@post.firma.de, bitte.", "Schreiben Sie an email@example.com, bitte."),
        ("a@b.org, c@d.org; e@f.org", "email@example.com, firstname.lastname@example.org; email@example.com"),
        ("ping 8.8.8.8 und 10.0.0.1", "ping 192.0.2.1 und 10.0.0.1"),
        ("@user 3.14 a@b 1.2.3", "@user 3.14 a@b 1.2.3"),
        ("写信给ab@c.cn。", "写信给ab@c.cn。"),
    ],
)
def test_addresses_are_masked_and_nothing_else(before: str, after: str) -> None:
    assert MaskPersonalData(PersonalData()).mask(before) == after


def test_a_mask_does_not_depend_on_the_documents_before() -> None:
    step = MaskPersonalData(PersonalData(email_replacements=("<1>", "<2>")))
    texts = ["a@b.org c@d.org e@f.org", "g@h.org i@j.org"]
    assert [step.mask(text) for text in texts] == ["<1> <2> <1>", "<1> <2>"]


def test_code_keeps_what_looks_like_an_ip_address_and_dropped_documents_are_masked() -> None:
    curation = Curation.model_validate({"personal_data": {}, "min_characters": 30})
    dropped = Kept()
    text = "version 8.8.8.8 by me@firm.org, all rights reserved"
    [code] = run(cleaning_steps(curation, dropped), [record(text, "code"), record("me@firm.org")])
    assert code.text == "version 8.8.8.8 by email@example.com, all rights reserved"
    assert dropped.dropped[0].text == "email@example.com"


def test_masking_takes_linear_time_on_long_runs_without_spaces() -> None:
    step = MaskPersonalData(PersonalData())
    run_of_base64 = ("A" * 50 + "/") * 20_000
    assert step.mask(f"me@x.org {run_of_base64}@x.org") == f"email@example.com {run_of_base64[:-320]}" + step.mask(
        f"{run_of_base64[-320:]}@x.org"
    ).replace("email@example.com", "firstname.lastname@example.org")


LONG = (
    "Jeder Mensch hat das Recht auf Bildung, und die Bildung ist unentgeltlich, zum mindesten der Unterricht "
    "in der Schule"
)
PLANTED = [
    EvaluationText("suite/long", LONG),
    EvaluationText("suite/short", "turn on the kitchen light"),
    EvaluationText("suite/tiny", "stop now"),
    EvaluationText(
        "suite/cmn", "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。"
    ),
    EvaluationText("suite/tha", "มนุษย์ทั้งปวงเกิดมามีอิสระและเสมอภาคกันในศักดิ์ศรีและสิทธิ ต่างในตนมีเหตุผลและมโนธรรม"),
]


@pytest.fixture(scope="module")
def index() -> ContaminationIndex:
    return ContaminationIndex.build(PLANTED, words=12, min_words=4)


@pytest.mark.parametrize(
    ("text", "task"),
    [
        (f"Davor. {LONG}. Danach.", "suite/long"),
        (f"Davor. {LONG[30:]} und mehr", "suite/long"),
        (LONG.upper().replace(" ", "\n \n"), "suite/long"),
        (LONG.replace(",", " -"), "suite/long"),
        # Eleven words are not twelve.
        (" ".join(LONG.split()[:11]) + " und Freizeit", None),
        ("One line\nTurn on  the KITCHEN light!\nanother", "suite/short"),
        ("Please turn on the kitchen light", None),
        ("Stop now", None),
        ("前文" + PLANTED[3].text[4:40] + "后文", "suite/cmn"),
        ("人人生而自由，在尊严和权利上一律不同", None),
        ("ข้อความ" + PLANTED[4].text[9:70], "suite/tha"),
        ("", None),
    ],
)
def test_evaluation_text_is_found_whatever_its_case_and_spacing(
    text: str, task: str | None, index: ContaminationIndex
) -> None:
    assert index.find([text]) == [task]
    assert index.find(["x", text]) == [None, task]


def test_contaminated_training_documents_are_dropped_and_held_out_ones_kept(
    index: ContaminationIndex, sentences: dict[str, list[str]]
) -> None:
    dropped = Kept()
    clean = [record(text) for text in sentences["deu_Latn"][:200]]
    documents = [*clean[:70], record(LONG), record(LONG, held_out=True), *clean[70:]]
    kept = run([Decontamination(index, dropped)], documents)
    assert [r.metadata["split"] for r in kept if r.text == LONG] == [HELD_OUT]
    assert len(kept) == 201
    [found] = dropped.dropped
    assert found.metadata["split"] == TRAIN
    assert (found.metadata["filter_reason"], found.metadata["facts"]) == (
        "contaminated",
        {"contaminated_by": "suite/long"},
    )


def test_texts_of_a_batch_do_not_run_into_each_other(index: ContaminationIndex) -> None:
    words = LONG.split()
    assert index.find([" ".join(words[:8]), " ".join(words[8:])]) == [None, None]


def test_the_index_does_not_depend_on_the_order_of_texts_and_its_digest_on_every_text() -> None:
    build = ContaminationIndex.build
    digests = {build(texts, 12, 4).digest() for texts in (PLANTED, PLANTED[::-1])}
    assert len(digests) == 1
    assert digests.isdisjoint({build(PLANTED[1:], 12, 4).digest(), build(PLANTED, 11, 4).digest()})


def test_the_demo_suites_sentences_are_kept_out_of_training(pages: dict[str, str]) -> None:
    recipe = load_recipe("tiny", ["curation.decontamination={}", "evaluation.intent_languages=2"])
    index = ContaminationIndex.build(evaluation_texts(["demo"], recipe.evaluation, recipe.seed), words=12, min_words=4)
    planted = [s.text for rows in suite_sentences(recipe.evaluation, recipe.seed).values() for s in rows]
    planted = [text for text in planted if len(text.split()) >= 5]
    assert len(planted) > 50
    assert set(index.find(planted)) == {"demo/intent_classification"}
    assert index.find(list(pages.values())) == [None] * len(pages)


def vowels(texts: list[str], language: str) -> list[float]:
    """A scorer: the share of vowels, none in French."""
    return [0.0 if language == "fra_Latn" else sum(c in "aeiou" for c in text) / len(text) for text in texts]


def one_score(texts: list[str], language: str) -> list[float]:
    return [1.0]


SCORER = f"{__name__}:vowels"


def test_a_scorers_documents_below_the_minimum_of_their_language_are_dropped() -> None:
    settings = QualityClassifier(scorer=SCORER, min_score=0.5, min_score_by_language={"fra_Latn": 0}, batch_size=2)
    dropped = Kept()
    documents = [record("aaab"), record("bbba"), record("bbba", "fra_Latn"), record("aabb"), record("abbb")]
    kept = run([ScoreQuality(settings, dropped)], documents)
    assert [(r.text, r.metadata["facts"]["quality_score"]) for r in kept] == [
        ("aaab", 0.75),
        ("bbba", 0),
        ("aabb", 0.5),
    ]
    assert [r.metadata["filter_reason"] for r in dropped.dropped] == ["low_quality"] * 2


def test_a_fasttext_classifier_scores_by_the_probability_of_its_label(
    language_model: Path, sentences: dict[str, list[str]]
) -> None:
    settings = QualityClassifier(scorer=f"fasttext:{language_model}#deu_Latn", min_score=0.5)
    documents = [record(sentences[code][-1]) for code in ("deu_Latn", "fra_Latn", "rus_Cyrl")]
    assert [r.text for r in run([ScoreQuality(settings)], documents)] == [sentences["deu_Latn"][-1]]


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        ("no_such_package.module:score", "cannot be imported: No module named"),
        ("math:no_such_function", "cannot be imported: module 'math' has no"),
        ("math:pi", "is no function"),
        ("fasttext:/nowhere.bin#good", "no such fastText model"),
        (f"{__name__}:one_score", "2 texts in deu_Latn got 1 scores"),
    ],
)
def test_a_scorer_that_does_not_score_is_a_users_error(scorer: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run([ScoreQuality(QualityClassifier(scorer=scorer))], [record("a"), record("b")])


def test_a_label_that_the_classifier_lacks_is_a_users_error(language_model: Path) -> None:
    with pytest.raises(UserError, match="no label 'good'; it has deu_Latn, fra_Latn, rus_Cyrl"):
        run([ScoreQuality(QualityClassifier(scorer=f"fasttext:{language_model}#good"))], [record("a")])


def test_settings_of_a_language_change_with_what_touches_it_and_nothing_else() -> None:
    def settings(*overrides: str) -> dict[str, dict[str, Any]]:
        curation = load_recipe("base", ["curation.language_identification.model=lid.176", *overrides]).curation
        return {code: language_settings(curation, code) for code in ("deu_Latn", "tha_Thai", "code")}

    def touched(*overrides: str) -> set[str]:
        after = settings(*overrides)
        return {code for code in before if before[code] != after[code]}

    before = settings()
    assert json.loads(json.dumps(before)) == before
    assert touched() == set()
    assert touched("curation.quality.by_language.deu_Latn.dup_line_frac=0.5") == {"deu_Latn"}
    assert touched("curation.language_identification.min_score_by_language.tha_Thai=0.5") == {"tha_Thai"}
    # The published value.
    assert touched("curation.quality.by_language.deu_Latn.dup_line_frac=0.263") == set()
    assert touched("curation.min_letter_share=0.4") == {"deu_Latn", "tha_Thai"}
    assert touched("curation.personal_data.ip_addresses=false") == {"deu_Latn", "tha_Thai"}
    assert touched("curation.personal_data.emails=false") == {"deu_Latn", "tha_Thai", "code"}
    assert touched("curation.min_characters=11") == {"deu_Latn", "tha_Thai", "code"}


def test_settings_follow_the_content_of_a_model_file(language_model: Path, tmp_path: Path) -> None:
    def settings(path: Path) -> dict[str, Any]:
        curation = Curation.model_validate({"language_identification": {"model": str(path)}})
        return language_settings(curation, "deu_Latn")

    copy, other = tmp_path / "copy.bin", tmp_path / "other.bin"
    copy.write_bytes(language_model.read_bytes())
    other.write_bytes(language_model.read_bytes() + b"x")
    assert settings(copy) == settings(language_model) != settings(other)


def test_pickled_steps_do_the_same(pages: dict[str, str], index: ContaminationIndex) -> None:
    curation = FULL.model_copy(update={"quality_classifier": QualityClassifier(scorer=SCORER)})

    def results(steps: list[PipelineStep]) -> list[tuple[str, Any]]:
        documents = [record(page, code) for code, page in pages.items()]
        return [(r.text, r.metadata) for r in run(steps, documents)]

    steps = [*cleaning_steps(curation, None), Decontamination(index)]
    before = results(steps)
    assert len(before) > 40
    assert results(pickle.loads(pickle.dumps(steps))) == before  # noqa: S301 - our own bytes


def test_curation_counts_every_reason(tmp_path: Path, pages: dict[str, str]) -> None:
    for code, text in (
        ("deu_Latn", pages["deu_Latn"]),
        ("fra_Latn", pages["ita_Latn"]),
        ("hin_Deva", pages["eng_Latn"]),
    ):
        file = tmp_path / "text" / code / "a.jsonl"
        file.parent.mkdir(parents=True)
        rows = [{"text": text}, {"text": "Das ist ein zu kurzer Text."}] if code == "deu_Latn" else [{"text": text}]
        file.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    source = FilesSource(kind="files", path=str(tmp_path / "text"), held_out_share=1e-9)
    counts = curate({"mine": source}, FULL, [], 0, tmp_path / "out").counts["mine"]
    assert counts["deu_Latn"][TRAIN]["documents"] == 1
    assert counts["deu_Latn"][TRAIN]["dropped"] == {"top_2_gram": 1}
    assert counts["fra_Latn"][TRAIN]["dropped"] == {"wrong_language": 1}
    assert counts["hin_Deva"][TRAIN]["dropped"] == {"wrong_script": 1}
    facts = {d.language: d.metadata for d in dropped(tmp_path / "out")}
    assert facts["fra_Latn"]["identified"] == "ita_Latn"
    assert facts["fra_Latn"]["reason"] == "wrong_language"
