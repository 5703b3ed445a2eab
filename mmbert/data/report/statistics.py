"""What the report knows of the text: counts by source and language, read from documents, shards and mixtures."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmbert.artifacts import Artifact
from mmbert.data.documents import HELD_OUT, TRAIN
from mmbert.data.mixture import MIXTURE_FILE, WARNINGS_FILE, MixtureRow

COUNTS_FILE, REPORT_FILE = "counts.json", "report.json"
DUPLICATE_REASONS = frozenset({"duplicate", "near_duplicate"})
"""Reasons of drops that mean: the text is there already."""

Samples = dict[str, list[tuple[str, str]]]
"""Texts by `kept` or by the reason for dropping: (id, its first characters)."""


@dataclass
class TextStatistics:
    """Counts of some text; of several sources or languages they add up.

    `documents`, `bytes` (of UTF-8) and `characters` are of the training split, `held_out` counts the documents of the
    other, `dropped` those of both by reason. `lengths` counts documents by the bits of their number of characters
    (`lengths[5]` is of 16 to 31). `tokens` and `tokenized_bytes` come from the shards; `fallback_tokens` stand for a
    single byte each, among `counted_tokens`, of which that is known. `identified` and `scripts` count documents by what
    language identification and the script check found.
    """

    documents: int = 0
    bytes: int = 0
    characters: int = 0
    held_out: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    tokenized_bytes: int = 0
    fallback_tokens: float = 0.0
    counted_tokens: int = 0
    identified: Counter[str] = field(default_factory=Counter)
    scripts: Counter[str] = field(default_factory=Counter)

    def add(self, other: TextStatistics) -> None:
        for name, value in vars(other).items():
            if isinstance(value, Counter):
                getattr(self, name).update(value)
            else:
                setattr(self, name, getattr(self, name) + value)

    @property
    def kept(self) -> int:
        """Documents of both splits."""
        return self.documents + self.held_out

    @property
    def seen(self) -> int:
        """Documents that curation read."""
        return self.kept + self.dropped.total()

    @property
    def size(self) -> int:
        """Bytes of training text; sources that come tokenized have no documents, and bytes in their shards only."""
        return max(self.bytes, self.tokenized_bytes)

    @property
    def dropped_share(self) -> float | None:
        return _share(self.dropped.total(), self.seen)

    @property
    def duplicate_share(self) -> float | None:
        """Duplicates among the documents that had passed all filters."""
        duplicates = sum(self.dropped[reason] for reason in DUPLICATE_REASONS)
        return _share(duplicates, self.kept + duplicates)

    @property
    def bytes_per_token(self) -> float | None:
        return _share(self.tokenized_bytes, self.tokens)

    @property
    def fallback_share(self) -> float | None:
        return _share(self.fallback_tokens, self.counted_tokens)

    @property
    def median_length(self) -> float | None:
        """Characters of the median document, interpolated within its length class; None where no lengths are known."""
        half = self.lengths.total() / 2
        below = 0
        for bits, n in sorted(self.lengths.items()):
            if below + n >= half > 0:
                low, high = length_class(bits)
                return low + (high - low) * (half - below) / n
            below += n
        return None


def length_class(bits: int) -> tuple[int, int]:
    """The smallest and the largest number of characters whose number of bits is `bits`."""
    return (1 << bits) >> 1, max(0, (1 << bits) - 1)


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


@dataclass(frozen=True)
class PhaseDraw:
    """What a phase, or a variant of the decay, draws of each language and source. `warnings` are its planner's."""

    label: str
    languages: Mapping[str, Drawn]
    sources: Mapping[str, Drawn]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Drawn:
    """A part of a phase: its share of the tokens, the tokens, and the epochs of its most repeated text."""

    share: float = 0.0
    tokens: int = 0
    epochs: float = 0.0


def _drawn(rows: Iterable[MixtureRow], key: Callable[[MixtureRow], str]) -> dict[str, Drawn]:
    found: dict[str, Drawn] = {}
    for row in rows:
        before = found.get(key(row), Drawn())
        found[key(row)] = Drawn(before.share + row.share, before.tokens + row.tokens, max(before.epochs, row.epochs))
    return found


@dataclass(frozen=True)
class DataStatistics:
    """All that the report is made from. `parts` and `samples` are by language, then source; phases in their order."""

    parts: Mapping[str, Mapping[str, TextStatistics]]
    samples: Mapping[str, Mapping[str, Samples]]
    phases: tuple[PhaseDraw, ...]

    @functools.cached_property
    def languages(self) -> dict[str, TextStatistics]:
        """By language over all sources, the one with the most text first."""
        totals = {code: total(sources.values()) for code, sources in self.parts.items()}
        return dict(sorted(totals.items(), key=lambda item: (-item[1].size, -item[1].seen, item[0])))

    @functools.cached_property
    def sources(self) -> dict[str, TextStatistics]:
        """By source over all languages, by name."""
        names = sorted({source for sources in self.parts.values() for source in sources})
        return {name: total(s[name] for s in self.parts.values() if name in s) for name in names}


def total(parts: Iterable[TextStatistics]) -> TextStatistics:
    found = TextStatistics()
    for part in parts:
        found.add(part)
    return found


def collect(documents: Sequence[Artifact], shards: Sequence[Artifact], mixtures: Sequence[Artifact]) -> DataStatistics:
    """Read the counts of the artifacts. A documents artifact without `report.json` has no samples and no labels."""
    parts: dict[str, dict[str, TextStatistics]] = {}
    samples: dict[str, dict[str, Samples]] = {}

    def part(source: str, language: str) -> TextStatistics:
        return parts.setdefault(language, {}).setdefault(source, TextStatistics())

    for artifact in documents:
        for source, language, splits in _pairs(artifact.read_json(COUNTS_FILE)):
            part(source, language).add(_curated(splits))
        if REPORT_FILE not in artifact.paths():
            continue
        for source, language, found in _pairs(artifact.read_json(REPORT_FILE)):
            identified, scripts = Counter(found.get("identified", {})), Counter(found.get("script", {}))
            part(source, language).add(TextStatistics(identified=identified, scripts=scripts))
            groups = samples.setdefault(language, {}).setdefault(source, {})
            for group, texts in found.get("samples", {}).items():
                groups.setdefault(group, []).extend((str(ident), str(text)) for ident, text in texts)
    for artifact in shards:
        for source, language, counts in _pairs(artifact.read_json(COUNTS_FILE)):
            part(source, language).add(_tokenized(counts))
    return DataStatistics(parts, samples, tuple(map(_phase, mixtures)))


def _pairs(content: Mapping[str, Mapping[str, Any]]) -> Iterable[tuple[str, str, Any]]:
    for source, languages in content.items():
        for language, value in languages.items():
            yield source, language, value


def _curated(splits: Mapping[str, Mapping[str, Any]]) -> TextStatistics:
    train, held_out = splits.get(TRAIN, {}), splits.get(HELD_OUT, {})
    dropped: Counter[str] = Counter()
    for split in splits.values():
        dropped.update(split["dropped"])
    return TextStatistics(
        documents=train.get("documents", 0),
        bytes=train.get("bytes", 0),
        characters=train.get("characters", 0),
        held_out=held_out.get("documents", 0),
        lengths=Counter({int(bits): n for bits, n in train.get("lengths", {}).items()}),
        dropped=dropped,
    )


def _tokenized(counts: Mapping[str, Any]) -> TextStatistics:
    tokens, fallback = counts["tokens"], counts.get("byte_fallback_share")
    return TextStatistics(
        tokens=tokens,
        tokenized_bytes=counts["bytes"],
        fallback_tokens=0.0 if fallback is None else fallback * tokens,
        counted_tokens=0 if fallback is None else tokens,
    )


def _phase(mixture: Artifact) -> PhaseDraw:
    plan = mixture.read_json(MIXTURE_FILE)
    rows = [MixtureRow(**row) for row in plan["rows"]]
    languages, sources = _drawn(rows, lambda row: row.language), _drawn(rows, lambda row: row.source)
    return PhaseDraw(plan["variant"] or plan["phase"], languages, sources, tuple(mixture.read_json(WARNINGS_FILE)))
