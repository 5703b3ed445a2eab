"""What a trained model's tokenizer and the filters make of new languages, before a token is trained on."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mmbert.data.report.statistics import DataStatistics
from mmbert.data.report.warnings import LITTLE_TEXT_TOKENS, find_warnings, identifiable, label_name
from mmbert.errors import UserError
from mmbert.recipe.languages import language_name
from mmbert.tables import counted

TOKENS_FILE = "tokens.json"
HOPELESS_SHARE = 0.5
"""Of single bytes among the tokens: sequences get some three times as long, of pieces that say nothing."""
_MIXED = {"other_language", "wrong_script"}


@dataclass(frozen=True)
class TokenCost:
    """Of one language's training text. `beside_others`: bytes a token over the median of the other languages."""

    bytes: int
    tokens: int
    bytes_per_token: float
    byte_fallback_share: float | None
    beside_others: float | None

    @property
    def hopeless(self) -> bool:
        return (self.byte_fallback_share or 0.0) > HOPELESS_SHARE

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def token_costs(data: DataStatistics, new: Sequence[str]) -> dict[str, TokenCost]:
    """By new language, the most expensive first. Raises UserError for one of which nothing was tokenized."""
    others = [t.bytes_per_token for code, t in data.languages.items() if code not in new and t.bytes_per_token]
    middle = statistics.median(others) if others else None
    found = {}
    for code in new:
        text = data.languages.get(code)
        if text is None or not text.bytes_per_token:
            raise UserError(f"{code} ({language_name(code)}): nothing was left to train on; read the data report")
        beside = text.bytes_per_token / middle if middle else None
        found[code] = TokenCost(
            text.tokenized_bytes, text.tokens, text.bytes_per_token, text.fallback_share, beside
        )  # fmt: skip
    return dict(sorted(found.items(), key=lambda item: item[1].bytes_per_token))


def check(data: DataStatistics, costs: dict[str, TokenCost]) -> list[str]:
    """Warnings about the new languages.

    Raises UserError for text that is mostly of another language or script, and where nothing of it is held out, so that
    nobody could tell what was learned.
    """
    found = [warning for warning in find_warnings(data) if warning.language in costs]
    mixed = [f"{w.language} ({language_name(w.language)}): {w.figure}" for w in found if w.kind in _MIXED]
    if mixed:
        raise UserError(
            f"the text of a new language is mixed: {'; '.join(mixed)}; take the other text out, or correct "
            "the folder's name"
        )
    if not any(data.languages[code].held_out for code in costs):
        raise UserError(
            f"no document of {', '.join(sorted(costs))} is held out, so what is learned could not be measured; give "
            "more documents, or the source with a larger share: --set 'sources.new={kind: files, path: FOLDER, "
            "held_out_share: 0.3}'"
        )
    said = [f"{w.language} ({language_name(w.language)}): {w.kind.replace('_', ' ')}, {w.figure}" for w in found]
    return [*said, *_unchecked(data, costs), *_thin(data, costs), *(
        f"{code} ({language_name(code)}): {cost.byte_fallback_share:.0%} of its tokens are single bytes: this "
        "tokenizer does not know its script, and what is learned is mostly which bytes follow each other: fewer bits "
        "per byte say little there; take a model with another tokenizer"
        for code, cost in costs.items() if cost.hopeless
    )]  # fmt: skip


def _thin(data: DataStatistics, costs: dict[str, TokenCost]) -> Iterator[str]:
    for code in sorted(costs):
        text, named = data.languages[code], f"{code} ({language_name(code)})"
        if text.tokens < LITTLE_TEXT_TOKENS:
            yield f"{named}: {counted(text.tokens, 'token')} to train on, which will be learned by heart"
        if not text.held_out:
            yield f"{named}: no document is held out, so what is learned of it cannot be measured"


def seen_elsewhere(data: DataStatistics, new: Sequence[str], source: str) -> list[str]:
    """The new languages of which other sources than theirs have text to train on, too."""
    parts = {code: data.parts.get(code, {}) for code in new}
    return [code for code, of in parts.items() if any(text.size for name, text in of.items() if name != source)]


def _unchecked(data: DataStatistics, costs: dict[str, TokenCost]) -> list[str]:
    """Of which languages nobody has judged whether their text is theirs, and of which all is called another one."""
    unjudged, told, known = [], [], identifiable(data.languages)
    for code in sorted(costs):
        text, named = data.languages[code], f"{code} ({language_name(code)})"
        if not text.identified and not text.dropped["wrong_language"]:
            unjudged.append(named)
        elif code not in known:
            label = max(sorted(text.identified), key=text.identified.__getitem__)
            told.append(f"{named}: language identification calls none of its text so, most of it {label_name(label)}")
    if unjudged:
        told.append(
            "language identification judged none of this text (too short, of a language that it does not know, or it "
            f"is off), so whether it is theirs was not checked; look at its samples in the data report: "
            f"{', '.join(unjudged)}"
        )
    return told
