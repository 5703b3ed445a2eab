"""Published thresholds of the web filters, by language.

`thresholds.csv` holds those of FineWeb2 (Penedo et al. 2025), made by `mmbert/recipe/make_thresholds.py`. English has
FineWeb's (Penedo et al. 2024), which are the defaults of datatrove's filters. Languages in neither get Gopher's limits
on repetition (Rae et al. 2021, table A1) and no check that needs to know the language.
"""

from __future__ import annotations

import csv
import functools
from importlib import resources
from typing import Any

LIST_SEPARATOR = "|"
COLUMNS = (
    "language",
    "language_score",
    "dup_line_frac",
    "top_n_grams",
    "dup_n_grams",
    "min_avg_word_length",
    "max_avg_word_length",
    "max_non_alpha_words_ratio",
    "line_punct_thr",
    "new_line_ratio",
    "stop_words",
)
_GOPHER_TOP = ((2, 0.20), (3, 0.18), (4, 0.16))
_GOPHER_DUP = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))

# What FineWeb2's pipeline sets for all languages; paragraphs are off because extraction mostly loses them.
_FINEWEB2 = {
    "dup_para_frac": 0.0,
    "dup_para_char_frac": 0.0,
    "dup_line_char_frac": 0.0,
    "min_doc_words": 50,
    "max_doc_words": 100_000,
    "max_symbol_word_ratio": 0.1,
    "max_bullet_lines_ratio": 0.9,
    "max_ellipsis_lines_ratio": 0.3,
    "min_stop_words": 2,
    "short_line_thr": 999.0,
    "short_line_length": 30,
    "char_duplicates_ratio": 0.1,
}
_FINEWEB_ENGLISH = _FINEWEB2 | {
    "language_score": 0.65,
    "dup_line_frac": 0.3,
    "dup_para_frac": 0.3,
    "dup_para_char_frac": 0.2,
    "dup_line_char_frac": 0.2,
    "top_n_grams": _GOPHER_TOP,
    "dup_n_grams": _GOPHER_DUP,
    "min_avg_word_length": 3,
    "max_avg_word_length": 10,
    "max_non_alpha_words_ratio": 0.8,
    "line_punct_thr": 0.12,
    "short_line_thr": 0.67,
    "char_duplicates_ratio": 0.01,
    "new_line_ratio": 0.3,
    "stop_words": ("and", "be", "have", "of", "that", "the", "to", "with"),
}
_UNPUBLISHED = _FINEWEB2 | {
    # FineWeb2's lowest, which it gives to more than half of its languages.
    "language_score": 0.3,
    "dup_line_frac": 0.3,
    "top_n_grams": _GOPHER_TOP,
    "dup_n_grams": _GOPHER_DUP,
    "min_avg_word_length": 0,
    "max_avg_word_length": 0,
    # The lower quartile of FineWeb2's languages.
    "max_non_alpha_words_ratio": 0.75,
    "line_punct_thr": 0.0,
    "new_line_ratio": 0.3,
    "min_stop_words": 0,
    "stop_words": (),
}


def published_thresholds(language: str) -> dict[str, Any]:
    """Every threshold of a language, by the names of datatrove's arguments, `language_score` and `stop_words`."""
    if language == "eng_Latn":
        return dict(_FINEWEB_ENGLISH)
    row = _table().get(language)
    return dict(_UNPUBLISHED) if row is None else _FINEWEB2 | _parsed(row)


@functools.cache
def _table() -> dict[str, dict[str, str]]:
    text = resources.files("mmbert.recipe").joinpath("thresholds.csv").read_text("utf-8")
    # Not splitlines: some stop words are characters that it takes for line ends.
    return {row["language"]: row for row in csv.DictReader(text.split("\n"))}


def _parsed(row: dict[str, str]) -> dict[str, Any]:
    lists = {name: row[name].split(LIST_SEPARATOR) for name in ("top_n_grams", "dup_n_grams", "stop_words")}
    return {
        **{name: float(row[name]) for name in COLUMNS[1:] if name not in lists},
        "top_n_grams": tuple((n, float(limit)) for n, limit in enumerate(lists["top_n_grams"], 2)),
        "dup_n_grams": tuple((n, float(limit)) for n, limit in enumerate(lists["dup_n_grams"], 5)),
        "stop_words": tuple(lists["stop_words"]),
    }
