"""Warnings of the data report: broken text is named, good text is not."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmbert.data import eld
from mmbert.data.report.statistics import DataStatistics, Drawn, PhaseDraw, TextStatistics, length_class, total
from mmbert.data.report.warnings import KINDS, LanguageWarning, draw_warnings, find_warnings, text_warnings
from mmbert.data.scripts import script_of

MIN_CHARACTERS = 10


def curated(texts: list[str]) -> TextStatistics:
    """The counts that curation leaves of these texts, with the light filter's shortest length."""
    kept = [text for text in texts if len(text) >= MIN_CHARACTERS]
    return TextStatistics(
        documents=len(kept),
        bytes=sum(len(text.encode()) for text in kept),
        characters=sum(map(len, kept)),
        lengths=Counter(len(text).bit_length() for text in kept),
        dropped=Counter({"too_short": len(texts) - len(kept)}),
        scripts=Counter(script for text in kept if (script := script_of(text))),
    )


@pytest.fixture(scope="module")
def sentences() -> dict[str, list[str]]:
    """eld's texts by its own codes, the broken language too, which the reader leaves out."""
    found = defaultdict(list)
    for line in eld.sentence_file().read_text("utf-8").split("\n")[:-1]:
        code, _, text = line.partition("\t")
        found[code].append(text)
    return found


def test_words_instead_of_sentences_are_named(sentences: dict[str, list[str]]) -> None:
    found = {w.kind: w.figure for w in text_warnings("lao_Laoo", curated(sentences["lo"]))}
    assert set(found) == {"fragments", "mostly_dropped"}
    assert found["fragments"] == "99% of the documents are too short"
    kept = TextStatistics(documents=1000, lengths=Counter(len(text).bit_length() for text in sentences["lo"]))
    (warning,) = text_warnings("lao_Laoo", kept)
    assert (warning.kind, warning.figure) == ("fragments", "the median document has 4 characters")


def test_good_languages_do_not_warn(sentences: dict[str, list[str]]) -> None:
    languages = {code: curated(sentences[short][:400]) for short, code in eld.LANGUAGES.items()}
    for text, code in zip(languages.values(), languages, strict=True):
        text.identified = Counter({code: text.documents - 30, "eng_Latn": 30})
        text.tokens, text.tokenized_bytes, text.counted_tokens = 40_000, text.bytes, 40_000
    parts = {code: {"eld": text} for code, text in languages.items()}
    phase = PhaseDraw("pretrain", dict.fromkeys(languages, Drawn(0.1, 23_000, 0.6)), {})
    assert len(languages) == 59
    assert find_warnings(DataStatistics(parts, {}, (phase,))) == []


def text(**counts: object) -> TextStatistics:
    """A thousand good documents, but for what is given."""
    good: dict[str, object] = {
        "documents": 1000,
        "bytes": 200_000,
        "lengths": Counter({8: 1000}),
        "tokens": 50_000,
        "tokenized_bytes": 200_000,
        "counted_tokens": 50_000,
        "identified": Counter(deu_Latn=990, eng_Latn=10),
        "scripts": Counter(Latn=1000),
    }
    return TextStatistics(**{**good, **counts})  # type: ignore[arg-type]


BROKEN = [
    ("nothing_left",
     {"documents": 0, "tokens": 0, "lengths": Counter(), "dropped": Counter(few_letters=30, too_short=9)},
     "39 documents dropped, 30 of them as few letters"),
    ("other_language", {"identified": Counter(deu_Latn=300, nld_Latn=650, other=50)},
     "70% identified as another language, 65% as Dutch (nld_Latn)"),
    ("wrong_script", {"scripts": Counter(Latn=600, Cyrl=390, Grek=10)}, "40% not in Latn, most in Cyrl"),
    ("wrong_script", {"scripts": Counter(), "dropped": Counter(wrong_script=500)}, "33% not in Latn"),
    ("fragments", {"lengths": Counter({3: 600, 8: 400})}, "the median document has 6 characters"),
    ("mostly_dropped", {"dropped": Counter(few_letters=2000, too_short=1000)}, "75% dropped, 50% as few letters"),
    ("duplicates", {"dropped": Counter(duplicate=500, near_duplicate=1000)}, "60% of what passed the filters"),
    ("byte_fallback", {"fallback_tokens": 30_000.0}, "60% of the tokens are single bytes, 4.0 bytes a token"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "counts", "figure"), BROKEN, ids=[f"{kind}-{n}" for n, (kind, *_) in enumerate(BROKEN)]
)
def test_each_fault_has_its_warning(kind: str, counts: dict[str, object], figure: str) -> None:
    assert text_warnings("deu_Latn", text()) == []
    assert [(w.kind, w.figure) for w in text_warnings("deu_Latn", text(**counts))] == [(kind, figure)]


def test_every_kind_is_tested_and_explained() -> None:
    assert {kind for kind, *_ in BROKEN} | {"little_text", "many_epochs"} == {kind.name for kind in KINDS}


def test_a_few_documents_say_nothing() -> None:
    few = {"documents": 5, "lengths": Counter({3: 5}), "dropped": Counter(few_letters=10), "scripts": Counter(Cyrl=5)}
    assert text_warnings("deu_Latn", text(**few, identified=Counter(eng_Latn=5))) == []


def test_a_language_that_identification_does_not_know_is_not_called_another() -> None:
    """Its text gets the label of whatever is close; it is known where a text got its own, or was dropped."""
    saterland = text(identified=Counter(deu_Latn=1000))
    german = text(identified=Counter(deu_Latn=1000))
    assert find_warnings(DataStatistics({"stq_Latn": {"a": saterland}, "deu_Latn": {"a": german}}, {}, ())) == []
    judged = text(identified=Counter(deu_Latn=1000), dropped=Counter(wrong_language=100))
    (warning,) = find_warnings(DataStatistics({"stq_Latn": {"a": judged}, "deu_Latn": {"a": german}}, {}, ()))
    assert (warning.kind, warning.language) == ("other_language", "stq_Latn")


@pytest.mark.parametrize(
    ("code", "script"),
    [("jpn_Jpan", "Hani"), ("kor_Hang", "Hani"), ("cmn_Hans", "Hani"), ("urd_Aran", "Arab"), ("code", "Cyrl")],
)
def test_scripts_that_belong_together_fit(code: str, script: str) -> None:
    assert text_warnings(code, text(scripts=Counter({script: 1000})), identifiable=False) == []


def test_little_and_repeated_text_is_named_for_the_worst_phase() -> None:
    phases = [
        PhaseDraw("pretrain", {"deu_Latn": Drawn(0.001, 1_000, 1.1)}, {}),
        PhaseDraw("decay-all", {"deu_Latn": Drawn(0.02, 10_000, 11.1)}, {}),
    ]
    found = draw_warnings("deu_Latn", text(tokens=900), phases)
    assert [(w.kind, w.figure) for w in found] == [
        ("little_text", "900 tokens; decay-all draws 2.000% of its tokens from it"),
        ("many_epochs", "11.1 epochs in decay-all"),
    ]
    assert draw_warnings("fra_Latn", text(tokens=900), phases) == []


def test_the_worst_of_a_kind_comes_first() -> None:
    parts = {f"x{n:02d}_Latn": {"a": text(dropped=Counter(few_letters=1100 + 100 * n))} for n in range(5)}
    found: list[LanguageWarning] = find_warnings(DataStatistics(parts, {}, ()))
    assert [w.language for w in found] == [f"x{n:02d}_Latn" for n in (4, 3, 2, 1, 0)]


@given(st.lists(st.integers(1, 5_000), min_size=1, max_size=80))
def test_the_median_lies_in_the_length_class_of_the_true_one(lengths: list[int]) -> None:
    counted = TextStatistics(lengths=Counter(n.bit_length() for n in lengths))
    lower_median = sorted(lengths)[(len(lengths) - 1) // 2]
    low, high = length_class(lower_median.bit_length())
    assert counted.median_length is not None
    assert low <= counted.median_length <= high


counts = st.builds(
    TextStatistics,
    documents=st.integers(0, 99),
    held_out=st.integers(0, 99),
    tokens=st.integers(0, 99),
    dropped=st.dictionaries(st.sampled_from(["duplicate", "too_short"]), st.integers(0, 9)).map(Counter),
)


@given(st.lists(counts, max_size=6))
def test_counts_of_sources_add_up(parts: list[TextStatistics]) -> None:
    whole = total(parts)
    assert whole.seen == sum(part.seen for part in parts)
    assert whole.tokens == sum(part.tokens for part in parts)
    assert whole.dropped["duplicate"] == sum(part.dropped["duplicate"] for part in parts)
