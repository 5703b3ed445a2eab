"""The web filters of Gopher and FineWeb with thresholds by language: datatrove's verdicts at several times its speed.

What datatrove's GopherRepetitionFilter and GopherQualityFilter spend their time in, loops over words and n-grams, is
done here by other means with equal results (tests/integration/test_web_quality.py holds them to that); its
FineWebQualityFilter is used as it is. All three share one list of words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from datatrove.data import Document as Record
from datatrove.pipeline.filters import FineWebQualityFilter
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.filters.gopher_repetition_filter import find_duplicates
from datatrove.utils.text import PUNCTUATION_SET, split_into_words

from mmbert.data.steps.verdict import Verdict
from mmbert.data.steps.words import UNSPACED_SCRIPTS, Words
from mmbert.recipe.languages import CODE
from mmbert.recipe.schema import WebQuality
from mmbert.recipe.thresholds import published_thresholds

WORDS = Words()
_PARAGRAPH_ENDS = re.compile(r"\n{2,}")
_LINE_ENDS = re.compile(r"\n+")


@dataclass(frozen=True)
class Limits:
    """A language's thresholds, by the names of datatrove's arguments; what each allows stands in `WebThresholds`."""

    dup_line_frac: float
    dup_para_frac: float
    dup_line_char_frac: float
    dup_para_char_frac: float
    top_n_grams: tuple[tuple[int, float], ...]
    dup_n_grams: tuple[tuple[int, float], ...]
    min_doc_words: int
    max_doc_words: int
    min_avg_word_length: float
    max_avg_word_length: float
    max_symbol_word_ratio: float
    max_bullet_lines_ratio: float
    max_ellipsis_lines_ratio: float
    max_non_alpha_words_ratio: float
    min_stop_words: int
    stop_words: tuple[str, ...]
    line_punct_thr: float
    short_line_thr: float
    short_line_length: int
    char_duplicates_ratio: float
    new_line_ratio: float


def limits_of(settings: WebQuality, language: str) -> Limits:
    """The published thresholds of a language with the recipe's own.

    Where FineWeb2 counted with a word segmenter, a word's length says nothing about pieces of a set length: its check
    is off unless the recipe sets it.
    """
    limits = published_thresholds(language)
    del limits["language_score"]
    if segmented(language):
        limits |= {"min_avg_word_length": 0, "max_avg_word_length": 0}
    for own in (settings.all_languages, settings.by_language.get(language)):
        limits |= own.model_dump(exclude_none=True) if own else {}
    return Limits(**limits)


def segmented(language: str) -> bool:
    """Whether FineWeb2's words of a language are a segmenter's; Korean's are morphemes."""
    return language.rpartition("_")[2] in UNSPACED_SCRIPTS or language == "kor_Hang"


class WebFilters(BaseFilter):
    """Gopher's repetition, FineWeb's and Gopher's quality filters, in FineWeb2's order. Source code passes."""

    name = "web quality"

    def __init__(self, settings: WebQuality, exclusion_writer: Any = None) -> None:
        super().__init__(exclusion_writer)
        self.settings = settings
        self._languages: dict[str, tuple[Limits, FineWebQualityFilter]] = {}

    def filter(self, doc: Record) -> Verdict:
        language = doc.metadata["language"]
        if language == CODE:
            return True
        limits, fineweb = self._of(language)
        chosen = self.settings.filters
        words = split_into_words(doc.text, WORDS)
        if not words:
            return False, "empty"
        reason = gopher_repetition(doc.text, words, limits) if "gopher_repetition" in chosen else None
        if reason is None and "fineweb_quality" in chosen:
            verdict = fineweb.filter(doc)
            reason = None if verdict is True else verdict[1]
        if reason is None and "gopher_quality" in chosen:
            reason = gopher_quality(doc.text, words, limits, segmented(language))
        return True if reason is None else (False, reason)

    def _of(self, language: str) -> tuple[Limits, FineWebQualityFilter]:
        if language not in self._languages:
            limits = limits_of(self.settings, language)
            names = ("line_punct_thr", "short_line_thr", "short_line_length", "char_duplicates_ratio", "new_line_ratio")
            fineweb = FineWebQualityFilter(language=WORDS, **{name: getattr(limits, name) for name in names})
            self._languages[language] = limits, fineweb
        return self._languages[language]


def gopher_repetition(text: str, words: Sequence[str], limits: Limits) -> str | None:
    """Why GopherRepetitionFilter would drop a text, by its names of reasons; None where it keeps it.

    Of lines and paragraphs the share that repeats an earlier one, by number and by characters; of n-grams the
    characters of the most frequent one, or of all that repeat, against the text's (Rae et al. 2021, table A1).
    """
    if not text:
        return "empty"
    if limits.dup_para_frac or limits.dup_para_char_frac:
        paragraphs = _PARAGRAPH_ENDS.split(text.strip())
        if repeated := _repeated(paragraphs, len(text), limits.dup_para_frac, limits.dup_para_char_frac):
            return f"dup_para_{repeated}"
    if repeated := _repeated(_LINE_ENDS.split(text), len(text), limits.dup_line_frac, limits.dup_line_char_frac):
        return f"dup_line_{repeated}"
    frequent = _too_frequent(words, len(text), limits.top_n_grams)
    if frequent:
        return f"top_{frequent}_gram"
    repeating = _too_repetitive(words, len(text), limits.dup_n_grams)
    return f"duplicated_{repeating}_n_grams" if repeating else None


def _repeated(parts: list[str], characters: int, max_share: float, max_character_share: float) -> str | None:
    number, repeated = find_duplicates(parts)
    if max_share and number / len(parts) > max_share:
        return "frac"
    return "char_frac" if max_character_share and repeated / characters > max_character_share else None


def _too_frequent(words: Sequence[str], characters: int, limits: Iterable[tuple[int, float]]) -> int | None:
    """The first n whose most frequent n-gram, the earliest of equals, makes up more of the text than allowed."""
    text = " ".join(words)
    ends = list(accumulate(len(word) + 1 for word in words))
    starts = [0, *ends]
    longest = max(map(len, words), default=0)
    size, frequency = 0, len(words)
    for n, limit in limits:
        if n > len(words):
            continue
        # An n-gram is at most as frequent as the shorter ones in it, and so bounded by their most frequent one.
        if n > size and frequency * (n * (longest + 1) - 1) / characters <= limit:
            continue
        counts = Counter([text[start : end - 1] for start, end in zip(starts, ends[n - 1 :], strict=False)])
        size, frequency = n, max(counts.values())
        top = next(gram for gram, count in counts.items() if count == frequency)
        if len(top) * frequency / characters > limit:
            return n
    return None


def _too_repetitive(words: Sequence[str], characters: int, limits: Sequence[tuple[int, float]]) -> int | None:
    """The first n whose repeating n-grams make up more of the text than allowed; n-grams that count don't overlap."""
    limits = [(n, limit) for n, limit in limits if n <= len(words)]
    if not limits:
        return None
    text = "".join(words)
    ends = list(accumulate(map(len, words)))
    starts = [0, *ends]
    shortest_n = min(n for n, _ in limits)
    # Every n-gram has this many characters, so two that are equal agree in them; most starts need no closer look.
    prefix = min(end - start for start, end in zip(starts, ends[shortest_n - 1 :], strict=False))
    heads = [text[start : start + prefix] for start in starts[: len(words) - shortest_n + 1]]
    counts = Counter(heads)
    if len(counts) == len(heads):
        return None
    candidates = [index for index, head in enumerate(heads) if counts[head] > 1]
    for n, limit in limits:
        seen: set[str] = set()
        repeated = free = 0
        for index in candidates:
            if index < free or index + n > len(words):
                continue
            gram = text[starts[index] : starts[index + n]]
            if gram in seen:
                repeated += len(gram)
                free = index + n
            else:
                seen.add(gram)
        if repeated / characters > limit:
            return n
    return None


def gopher_quality(text: str, words: Sequence[str], limits: Limits, unspaced: bool) -> str | None:
    """Why GopherQualityFilter would drop a text, by its names of reasons; None where it keeps it.

    With `unspaced`, where words are pieces of a set length, stop words are looked for anywhere in the text.
    """
    return (
        _unusual_length(words, limits)
        or _symbols(text, len(words), limits)
        or _lists(text.splitlines(), limits)
        or _few_letters(words, limits)
        or _few_stop_words(text, words, limits, unspaced)
    )


def _unusual_length(words: Sequence[str], limits: Limits) -> str | None:
    lengths = [len(word) for word in words if word[0] not in PUNCTUATION_SET or not PUNCTUATION_SET.issuperset(word)]
    if len(lengths) < limits.min_doc_words:
        return "gopher_short_doc"
    if limits.max_doc_words and len(lengths) > limits.max_doc_words:
        return "gopher_long_doc"
    if not lengths:
        return None
    average = sum(lengths) / len(lengths)
    if average < limits.min_avg_word_length:
        return "gopher_below_avg_threshold"
    return "gopher_above_avg_threshold" if limits.max_avg_word_length and average > limits.max_avg_word_length else None


def _symbols(text: str, words: int, limits: Limits) -> str | None:
    limit = limits.max_symbol_word_ratio
    if limit and text.count("#") / words > limit:
        return "gopher_too_many_hashes"
    return "gopher_too_many_ellipsis" if limit and (text.count("...") + text.count("…")) / words > limit else None


def _lists(lines: Sequence[str], limits: Limits) -> str | None:
    bullets = sum(line.lstrip().startswith(("•", "-")) for line in lines) / len(lines)
    if limits.max_bullet_lines_ratio and bullets > limits.max_bullet_lines_ratio:
        return "gopher_too_many_bullets"
    ellipses = sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines)
    too_many = limits.max_ellipsis_lines_ratio and ellipses > limits.max_ellipsis_lines_ratio
    return "gopher_too_many_end_ellipsis" if too_many else None


def _few_letters(words: Sequence[str], limits: Limits) -> str | None:
    alphabetic = sum([word[0].isalpha() or any(map(str.isalpha, word)) for word in words])
    return "gopher_below_alpha_threshold" if alphabetic / len(words) < limits.max_non_alpha_words_ratio else None


def _few_stop_words(text: str, words: Sequence[str], limits: Limits, unspaced: bool) -> str | None:
    stop_words = set(limits.stop_words)
    found = sum(word in text for word in stop_words) if unspaced else len(stop_words.intersection(words))
    return "gopher_enough_stop_words" if found < limits.min_stop_words else None
