"""Warnings: what in the counts of a language says that its text, or how it is used, is not what it should be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mmbert.data.report.statistics import DUPLICATE_REASONS, DataStatistics, PhaseDraw, TextStatistics
from mmbert.recipe.languages import CODE, language_name
from mmbert.tables import counted

JUDGED_FROM = 20
"""Fewer documents than this say nothing about a language."""
FRAGMENT_CHARACTERS = 16
"""Sentences are longer in every script: the shortest medians of eld's languages are 45 (Japanese) and 48 (Chinese)."""
FRAGMENT_SHARE = 0.5
DROPPED_SHARE = 0.5
DUPLICATE_SHARE = 0.5
OTHER_LANGUAGE_SHARE = 0.5
WRONG_SCRIPT_SHARE = 0.2
FALLBACK_SHARE = 0.2
LITTLE_TEXT_TOKENS = 1_000
MANY_EPOCHS = 4.0
"""Up to four are about as good as new text (Muennighoff et al. 2023, "Scaling Data-Constrained Language Models")."""

_SCRIPTS_OF = {
    "Jpan": {"Jpan", "Hani", "Hira", "Kana"}, "Hrkt": {"Jpan", "Hira", "Kana"}, "Kore": {"Hang", "Hani"},
    "Hang": {"Hang", "Hani"}, "Hans": {"Hani"}, "Hant": {"Hani"}, "Aran": {"Arab"},
}  # fmt: skip
"""Script labels that fit a code's script, where that is more than the script itself."""


@dataclass(frozen=True)
class Kind:
    """A sort of warning: `title` and `meaning` are for people, `meaning` says what to look at."""

    name: str
    title: str
    meaning: str


@dataclass(frozen=True)
class LanguageWarning:
    """One warning about one language; `figure` says it in numbers, `size` orders those of a kind, the worst first."""

    kind: str
    language: str
    figure: str
    size: float


KINDS = (
    Kind("nothing_left", "Nothing left", "Curation dropped every document of these languages. "
         "Read the dropped samples, then lower the threshold of the reason or leave the language out."),
    Kind("other_language", "Mostly another language", "Language identification calls most of the text another one. "
         "The source may be mislabelled, or the two languages may be too close for the model to tell apart."),
    Kind("wrong_script", "A script that does not fit", "Much of the text is not in the script that the language's code "
         "names. The text may be another language, a transliteration, or the code may be wrong."),
    Kind("fragments", "Fragments, not sentences", f"Half of the texts have under {FRAGMENT_CHARACTERS} characters, or "
         "were dropped as too short: words and headings rather than sentences."),
    Kind("mostly_dropped", "Most of it dropped", "Filters dropped more than half of the documents, duplicates aside. "
         "Read the samples of the main reason: thresholds made for other languages often do not fit."),
    Kind("duplicates", "Mostly duplicates", "More than half of what passed the filters is there already. "
         "The source may be templates, or the same text from several sources."),
    Kind("byte_fallback", "The tokenizer does not know it", f"More than {FALLBACK_SHARE:.0%} of the tokens are single "
         "bytes: the vocabulary lacks the script, sequences get long and the model learns little."),
    Kind("little_text", "In the mixture with hardly any text", f"A phase draws from less than {LITTLE_TEXT_TOKENS:,} "
         "tokens. The model can only learn these documents by heart."),
    Kind("many_epochs", "Repeated often", f"A phase repeats the text more than {MANY_EPOCHS:.0f} times. "
         "Lower the temperature's effect with max_epochs, or add text."),
)  # fmt: skip


def find_warnings(data: DataStatistics) -> list[LanguageWarning]:
    """All warnings, in the order of `KINDS`, the worst of a kind first."""
    languages = data.languages
    known = identifiable(languages)
    found: list[LanguageWarning] = []
    for code, text in languages.items():
        found += text_warnings(code, text, identifiable=code in known)
        found += draw_warnings(code, text, data.phases)
    order = {kind.name: number for number, kind in enumerate(KINDS)}
    return sorted(found, key=lambda w: (order[w.kind], -w.size, w.language))


def text_warnings(code: str, text: TextStatistics, identifiable: bool = True) -> list[LanguageWarning]:
    """What is wrong with a language's text. `identifiable`: the identification model knows the language."""
    rules = (_nothing_left, _wrong_script, _fragments, _mostly_dropped, _duplicates, _byte_fallback)
    found = [warning for rule in rules if (warning := rule(code, text))]
    if identifiable and (other := _other_language(code, text)):
        found.append(other)
    return found


def draw_warnings(code: str, text: TextStatistics, phases: Iterable[PhaseDraw]) -> list[LanguageWarning]:
    """What is wrong with how phases draw a language; each kind once, for the phase where it is worst."""
    drawn = [(phase.label, phase.languages[code]) for phase in phases if code in phase.languages]
    drawn = [(label, part) for label, part in drawn if part.tokens]
    found = []
    if drawn and text.tokens < LITTLE_TEXT_TOKENS:
        label, most = max(drawn, key=lambda item: item[1].share)
        figure = f"{counted(text.tokens, 'token')}; {label} draws {most.share:.3%} of its tokens from it"
        found.append(LanguageWarning("little_text", code, figure, most.share))
    if drawn:
        label, most = max(drawn, key=lambda item: item[1].epochs)
        if most.epochs > MANY_EPOCHS:
            found.append(LanguageWarning("many_epochs", code, f"{most.epochs:,.1f} epochs in {label}", most.epochs))
    return found


def identifiable(languages: Mapping[str, TextStatistics]) -> set[str]:
    """Languages that identification has judged: their label was given to some text, or text was dropped for another's.

    The others are unknown to the model, which gives their text to whatever is close.
    """
    given = {_language(label) for text in languages.values() for label in text.identified}
    return {c for c, text in languages.items() if _language(c) in given or text.dropped["wrong_language"]}


def _nothing_left(code: str, text: TextStatistics) -> LanguageWarning | None:
    if text.documents or text.tokens or not text.dropped:
        return None
    reason, n = main_reason(text)
    left = f", {counted(text.held_out, 'document')} held out" if text.held_out else ""
    figure = f"{counted(text.dropped.total(), 'document')} dropped, {n:,} of them as {reason_name(reason)}{left}"
    return LanguageWarning("nothing_left", code, figure, text.dropped.total())


def _other_language(code: str, text: TextStatistics) -> LanguageWarning | None:
    judged = text.identified.total()
    if judged < JUDGED_FROM or code == CODE:
        return None
    foreign = {label: n for label, n in text.identified.items() if not _same_language(label, code)}
    # "other" is many small labels together, among which the language's own may be.
    named = {label: n for label, n in foreign.items() if label not in _NO_LANGUAGE}
    share = sum(foreign.values()) / judged
    if not named or share <= OTHER_LANGUAGE_SHARE:
        return None
    label = max(sorted(named), key=lambda item: named[item])
    figure = f"{share:.0%} identified as another language, {named[label] / judged:.0%} as {label_name(label)}"
    return LanguageWarning("other_language", code, figure, share)


def _wrong_script(code: str, text: TextStatistics) -> LanguageWarning | None:
    expected = code.partition("_")[2]
    if not expected:
        return None
    fitting = _SCRIPTS_OF.get(expected, {expected})
    wrong = {script: n for script, n in text.scripts.items() if script not in fitting and script not in _NO_LANGUAGE}
    judged = sum(n for script, n in text.scripts.items() if script not in _NO_LANGUAGE)
    # Without a count of scripts the drops tell.
    judged, n = (judged, sum(wrong.values())) if judged else (text.seen, text.dropped["wrong_script"])
    if judged < JUDGED_FROM or n / judged <= WRONG_SCRIPT_SHARE:
        return None
    most = f", most in {max(sorted(wrong), key=lambda item: wrong[item])}" if wrong else ""
    return LanguageWarning("wrong_script", code, f"{n / judged:.0%} not in {expected}{most}", n / judged)


def _fragments(code: str, text: TextStatistics) -> LanguageWarning | None:
    short, median = text.dropped["too_short"], text.median_length
    if text.seen >= JUDGED_FROM and short / text.seen > FRAGMENT_SHARE:
        return LanguageWarning(
            "fragments", code, f"{short / text.seen:.0%} of the documents are too short", short / text.seen
        )
    if text.lengths.total() >= JUDGED_FROM and median is not None and median < FRAGMENT_CHARACTERS:
        figure = f"the median document has {median:.0f} characters"
        return LanguageWarning("fragments", code, figure, 1 - median / FRAGMENT_CHARACTERS)
    return None


def _mostly_dropped(code: str, text: TextStatistics) -> LanguageWarning | None:
    if not text.documents or text.seen < JUDGED_FROM:
        return None
    filtered = {reason: n for reason, n in text.dropped.items() if reason not in DUPLICATE_REASONS}
    share = sum(filtered.values()) / text.seen
    if share <= DROPPED_SHARE:
        return None
    reason = max(sorted(filtered), key=lambda item: filtered[item])
    figure = f"{share:.0%} dropped, {filtered[reason] / text.seen:.0%} as {reason_name(reason)}"
    return LanguageWarning("mostly_dropped", code, figure, share)


def _duplicates(code: str, text: TextStatistics) -> LanguageWarning | None:
    share = text.duplicate_share
    if text.seen < JUDGED_FROM or share is None or share <= DUPLICATE_SHARE:
        return None
    return LanguageWarning("duplicates", code, f"{share:.0%} of what passed the filters", share)


def _byte_fallback(code: str, text: TextStatistics) -> LanguageWarning | None:
    share = text.fallback_share
    if share is None or share <= FALLBACK_SHARE:
        return None
    figure = f"{share:.0%} of the tokens are single bytes, {text.bytes_per_token or 0:.1f} bytes a token"
    return LanguageWarning("byte_fallback", code, figure, share)


def main_reason(text: TextStatistics) -> tuple[str, int]:
    """The reason that dropped most documents, and how many. There must be one."""
    reason = max(sorted(text.dropped), key=lambda item: text.dropped[item])
    return reason, text.dropped[reason]


def reason_name(reason: str) -> str:
    """`near_duplicate` as people read it."""
    return reason.replace("_", " ")


def label_name(label: str) -> str:
    """The name of what identification found."""
    return label if label in _NO_LANGUAGE else f"{language_name(label)} ({label})"


_NO_LANGUAGE = frozenset({"other", "unknown", "none", "und", ""})


def _language(code: str) -> str:
    return code.partition("_")[0]


def _same_language(label: str, code: str) -> bool:
    return _language(label) == _language(code)
