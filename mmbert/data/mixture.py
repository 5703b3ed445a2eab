"""Mixtures: how many tokens of each source and language a phase draws. Plain arithmetic, no heavy imports.

Within a source p(language) ~ size^temperature over the languages allowed; a temperature of 1 is proportional to size, a
smaller one is flatter. Fixed language shares and source shares are honoured, and no text repeats more than `max_epochs`
times: what a cap takes away goes to the others in proportion. docs/mixture.md derives it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from mmbert.errors import UserError
from mmbert.recipe.languages import LANGUAGE_SETS, published_set
from mmbert.recipe.schema import LanguageList, Mixture
from mmbert.tables import counted

MIXTURE_FILE, WARNINGS_FILE = "mixture.json", "warnings.json"
"""Of a mixture's artifact."""

Key = tuple[str, str]
"""Source and language."""

_TOLERANCE = 1e-9
_CONVERGED = 1e-13
_MAX_ROUNDS = 1_000
_ROUNDED = 0.01
"""How far, relatively, a fixed language share may be missed: published shares are rounded. English has 34.5% of phase 1
and its sources alone 34.7%."""
_GOOD_EPOCHS = 4
"""Up to four epochs of the same text are nearly as good as new text (Muennighoff et al. 2023, arXiv 2305.16264)."""

FIXED_SHARE, MAX_EPOCHS = "fixed_share", "max_epochs"
"""What can hold a language away from size^temperature."""


@dataclass(frozen=True)
class MixtureRow:
    """What is drawn of one language of one source. `epochs` = `tokens` / the tokens that it holds."""

    source: str
    language: str
    share: float
    tokens: int
    epochs: float
    capped: bool


@dataclass(frozen=True)
class LanguageShare:
    """What is drawn of one language over all sources. `size`: the tokens that these hold; `epochs` = `tokens` / `size`.

    `caps`: FIXED_SHARE, where its share was given; MAX_EPOCHS, where all or some of its text reached the limit.
    """

    share: float
    tokens: int
    epochs: float
    size: int
    caps: tuple[str, ...]


@dataclass(frozen=True)
class MixturePlan:
    """Rows sorted by source and language; shares sum to 1. `warnings` are for the person who wrote the recipe.

    `sizes`: tokens that the sources hold of each row; `fixed`: languages whose share was given.
    """

    rows: tuple[MixtureRow, ...]
    warnings: tuple[str, ...]
    sizes: Mapping[Key, int]
    fixed: frozenset[str]

    def languages(self) -> dict[str, LanguageShare]:
        """Each language over all sources, the largest share first."""
        rows: dict[str, list[MixtureRow]] = {}
        for row in self.rows:
            rows.setdefault(row.language, []).append(row)
        found = {language: self._language(language, of) for language, of in rows.items()}
        return dict(sorted(found.items(), key=lambda item: (-item[1].share, item[0])))

    def _language(self, language: str, rows: Sequence[MixtureRow]) -> LanguageShare:
        tokens, size = sum(row.tokens for row in rows), sum(self.sizes[row.source, language] for row in rows)
        held = {FIXED_SHARE: language in self.fixed, MAX_EPOCHS: any(row.capped for row in rows)}
        caps = tuple(cap for cap, binds in held.items() if binds)
        return LanguageShare(math.fsum(row.share for row in rows), tokens, tokens / size, size, caps)

    def to_json(self) -> list[dict[str, Any]]:
        """The rows."""
        return [asdict(row) for row in self.rows]


def resolve_languages(
    spec: LanguageList, language_sets: Mapping[str, Sequence[str]], available: Iterable[str]
) -> list[str]:
    """The languages that a recipe's `languages` stands for, sorted: a list, a set of the recipe, or a known set.

    `all` is every language that the sources hold (`available`). Raises UserError for a set that does not exist.
    """
    if not isinstance(spec, str):
        return sorted(set(spec))
    if spec in language_sets:
        return sorted(set(language_sets[spec]))
    if spec == "all":
        return sorted(set(available))
    if spec in LANGUAGE_SETS:
        return list(published_set(spec))
    raise UserError(f"languages: no language set '{spec}'; there are {', '.join([*LANGUAGE_SETS, *language_sets])}")


def plan_mixture(sizes: Mapping[Key, int], mixture: Mixture, languages: Sequence[str], tokens: int) -> MixturePlan:
    """Shares of a phase of `tokens` tokens, from the tokens that each source holds of each language.

    Without `source_shares` a language's sources share by size. Raises UserError for a source that has a share but no
    text in these languages, a fixed share of a language without text, no text at all, shares that contradict each
    other, and a `max_epochs` that leaves too little text.
    """
    allowed = set(languages)
    held = {key: size for key, size in sorted(sizes.items()) if size > 0 and key[1] in allowed}
    if mixture.source_shares:
        held = {key: size for key, size in held.items() if mixture.source_shares.get(key[0], 0) > 0}
    if not held:
        raise UserError(f"no text of {counted(len(allowed), 'language')} asked for; check languages and sources")
    _check_present(held, mixture)
    limit = math.inf if mixture.max_epochs is None else mixture.max_epochs / tokens
    parts = [
        _Part(name, share, keys, _weights(keys, held, mixture.temperature), {key: limit * held[key] for key in keys})
        for name, share, keys in _parts(held, mixture)
    ]
    _check_enough(parts, tokens)
    shares = _fixed(parts, mixture, tokens)
    for part in parts:
        free = [key for key in part.keys if key[1] not in mixture.language_shares]
        rest = part.share - sum(shares.get(key, 0.0) for key in part.keys)
        shares |= _fill({key: part.weights[key] for key in free}, part.limits, max(rest, 0.0), part.name, tokens)
    _check_reached(shares, mixture, tokens)
    shares = {key: share for key, share in shares.items() if share > 0}
    counts = _whole_tokens(shares, tokens)
    rows = tuple(
        MixtureRow(*key, share, counts[key], counts[key] / held[key], share >= limit * held[key] * (1 - _TOLERANCE))
        for key, share in sorted(shares.items())
    )
    plan = MixturePlan(rows, (), {key: held[key] for key in shares}, frozenset(mixture.language_shares))
    missing = sorted(allowed - {language for _, language in held})
    return replace(plan, warnings=tuple(_warnings(plan, missing, parts, mixture)))


def _warnings(plan: MixturePlan, missing: Sequence[str], parts: Sequence[_Part], mixture: Mixture) -> Iterator[str]:
    languages = plan.languages()
    if missing:
        yield f"no text of {counted(len(missing), 'language')} asked for: {', '.join(missing)}"
    zero = {language for language, share in mixture.language_shares.items() if share == 0}
    nothing = sorted({key[1] for part in parts for key in part.keys} - languages.keys() - zero)
    if nothing:
        yield f"the fixed shares leave nothing for {counted(len(nothing), 'language')}: {', '.join(nothing)}"
    for language, wanted in sorted(mixture.language_shares.items()):
        if wanted and abs(languages[language].share - wanted) > _TOLERANCE:
            yield (
                f"language_shares.{language} = {wanted}: with the source shares it becomes "
                f"{languages[language].share:.4f}"
            )
    often = {name: found.epochs for name, found in languages.items() if found.epochs > _GOOD_EPOCHS}
    if often and mixture.max_epochs is None:
        most = max(often, key=lambda name: often[name])
        yield (
            f"the text of {counted(len(often), 'language')} repeats more than {_GOOD_EPOCHS} times, {most} most: "
            f"{often[most]:,.1f} epochs; "
            "max_epochs caps it"
        )


@dataclass(frozen=True)
class _Part:
    """What has one fixed sum: a source with its share, or everything where sources have none. Limits: `max_epochs`."""

    name: str
    share: float
    keys: list[Key]
    weights: dict[Key, float]
    limits: dict[Key, float]


def _parts(held: Mapping[Key, int], mixture: Mixture) -> list[tuple[str, float, list[Key]]]:
    if not mixture.source_shares:
        return [("all sources", 1.0, list(held))]
    # Published shares are rounded and add up to 1 within half a per cent.
    total = sum(mixture.source_shares.values())
    given = [(source, share / total) for source, share in sorted(mixture.source_shares.items()) if share > 0]
    return [(f"source {source}", share, [key for key in held if key[0] == source]) for source, share in given]


def _weights(keys: Sequence[Key], held: Mapping[Key, int], temperature: float) -> dict[Key, float]:
    """size^temperature of each language, divided over its sources by size; adds up to 1."""
    sizes: dict[str, int] = {}
    for key in keys:
        sizes[key[1]] = sizes.get(key[1], 0) + held[key]
    weights = {key: sizes[key[1]] ** temperature * (held[key] / sizes[key[1]]) for key in keys}
    total = sum(weights.values())
    return {key: weight / total for key, weight in weights.items()}


def _fixed(parts: Sequence[_Part], mixture: Mixture, tokens: int) -> dict[Key, float]:
    """Shares of the languages with a fixed share, by source.

    Scaled in turns so that each language has its share and each source neither more than its own nor, where its other
    languages cannot fill it up, less (iterative proportional fitting).
    """
    fixed = {language: share for language, share in mixture.language_shares.items() if share > 0}
    limits = {key: limit for part in parts for key, limit in part.limits.items()}
    shares = {
        key: min(part.share * part.weights[key], limits[key]) for part in parts for key in part.keys if key[1] in fixed
    }
    for _ in range(_MAX_ROUNDS if shares else 0):
        before = dict(shares)
        for language, share in fixed.items():
            shares |= _fill(
                {key: x for key, x in shares.items() if key[1] == language}, limits, share, language, tokens
            )
        for part in parts:
            own = {key: shares[key] for key in part.keys if key in shares}
            others = sum(part.limits[key] for key in part.keys if key[1] not in mixture.language_shares)
            least = max(0.0, part.share - others)
            bounded = min(max(sum(own.values()), least), part.share)
            shares |= _fill(own, limits, bounded, part.name, tokens) if own else {}
        if max(abs(shares[key] - before[key]) for key in shares) < _CONVERGED:
            break
    return shares


def _fill(
    weights: Mapping[Key, float], limits: Mapping[Key, float], total: float, name: str, tokens: int
) -> dict[Key, float]:
    """min(limit, a * weight), with the `a` that makes them add up to `total`.

    Raises UserError where the limits add up to less.
    """
    room = sum(limits[key] for key in weights)
    if room < total * (1 - _TOLERANCE) - _CONVERGED:
        raise _too_little(name, total, room, tokens)
    keys = sorted(weights, key=lambda key: (limits[key] / weights[key] if weights[key] else math.inf, key))
    weights_left = list(itertools.accumulate(weights[key] for key in reversed(keys)))[::-1]
    filled: dict[Key, float] = {}
    left = total
    for key, weight_left in zip(keys, weights_left, strict=True):
        scale = left / weight_left if weight_left else 0.0
        if limits[key] >= scale * weights[key]:
            # Nor do any of those that follow reach their limits.
            return filled | {later: scale * weights[later] for later in keys[len(filled) :]}
        filled[key] = limits[key]
        left = max(0.0, left - limits[key])
    return filled


def _too_little(name: str, share: float, room: float, tokens: int) -> UserError:
    return UserError(
        f"max_epochs: {name} has a share of {share:.4g} = {share * tokens:,.0f} tokens, but its text, so often "
        f"repeated, is enough for {room:.4g} only: {(share - room) * tokens:,.0f} tokens are missing; raise "
        "max_epochs, train for fewer tokens, or change the shares"
    )


def _check_enough(parts: Sequence[_Part], tokens: int) -> None:
    for part in parts:
        room = sum(part.limits.values())
        if room < part.share * (1 - _TOLERANCE):
            raise _too_little(part.name, part.share, room, tokens)


def _check_present(held: Mapping[Key, int], mixture: Mixture) -> None:
    sources, languages = {source for source, _ in held}, {language for _, language in held}
    for source, share in mixture.source_shares.items():
        if share and source not in sources:
            raise UserError(
                f"source_shares.{source} = {share}: the source holds no text in this mixture's languages; "
                "give the mixture languages that it has, or take the share out"
            )
    for language, share in mixture.language_shares.items():
        if share and language not in languages:
            raise UserError(
                f"language_shares.{language} = {share}: no source holds text of it among the mixture's languages; "
                "add it to languages, or take the share out"
            )


def _check_reached(shares: Mapping[Key, float], mixture: Mixture, tokens: int) -> None:
    causes = "the other shares, and the languages that each source holds,"
    if mixture.max_epochs is not None:
        causes = "the other shares, the languages that each source holds, and max_epochs"
    for language, wanted in mixture.language_shares.items():
        reached = sum(share for key, share in shares.items() if key[1] == language)
        if abs(reached - wanted) > _ROUNDED * wanted:
            off = f"{abs(reached - wanted) * tokens:,.0f} tokens {'more' if reached > wanted else 'less'}"
            raise UserError(
                f"language_shares.{language} = {wanted}: {causes} make it {reached:.4f}, {off}; "
                "change the shares or add languages"
            )


def _whole_tokens(shares: Mapping[Key, float], tokens: int) -> dict[Key, int]:
    """Whole numbers that add up to `tokens`: the largest remainders are rounded up."""
    total = sum(shares.values())
    exact = {key: share / total * tokens for key, share in shares.items()}
    counts = {key: int(value) for key, value in exact.items()}
    by_remainder = sorted(exact, key=lambda key: (counts[key] - exact[key], key))
    for key in by_remainder[: tokens - sum(counts.values())]:
        counts[key] += 1
    return counts
