"""What curation found in the text: counts by source, language and split, and samples for a person to read."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

SAMPLES = 3
_SAMPLE_CHARACTERS = 400
_LABELS = 5


@dataclass
class Kept:
    """Documents that a split holds of a language. `bytes` are of UTF-8 text; `lengths` counts them by the bits of their
    number of characters: length n stands under n.bit_length()."""

    documents: int = 0
    bytes: int = 0
    characters: int = 0
    lengths: Counter[int] = field(default_factory=Counter)

    def add(self, text: str) -> None:
        self.documents += 1
        self.bytes += len(text.encode())
        self.characters += len(text)
        self.lengths[len(text).bit_length()] += 1

    def to_json(self) -> dict[str, Any]:
        lengths = {str(bits): n for bits, n in sorted(self.lengths.items())}
        return {"documents": self.documents, "bytes": self.bytes, "characters": self.characters, "lengths": lengths}


class Samples:
    """A few texts of each group, those whose ids hash smallest: the same ones in whatever order they come."""

    def __init__(self) -> None:
        self._heaps: dict[tuple[str, str], list[tuple[int, str, str]]] = defaultdict(list)

    def add(self, language: str, group: str, ident: str, text: str) -> None:
        rank = -int.from_bytes(hashlib.blake2b(ident.encode(), digest_size=8).digest(), "big")
        heap = self._heaps[language, group]
        if len(heap) < SAMPLES:
            heapq.heappush(heap, (rank, ident, text[:_SAMPLE_CHARACTERS]))
        elif rank > heap[0][0]:
            heapq.heapreplace(heap, (rank, ident, text[:_SAMPLE_CHARACTERS]))

    def to_json(self) -> dict[str, Any]:
        """{language: {group: [[id, text], ...]}}."""
        found: dict[str, Any] = {}
        for (language, group), heap in sorted(self._heaps.items()):
            found.setdefault(language, {})[group] = [[ident, text] for _, ident, text in sorted(heap, reverse=True)]
        return found

    def merge(self, found: Mapping[str, Any]) -> None:
        for language, groups in found.items():
            for group, texts in groups.items():
                for ident, text in texts:
                    self.add(language, group, ident, text)


class Tally:
    """Numbers by language and one more key: reasons of drops by split, labels that identification gave."""

    def __init__(self) -> None:
        self.counts: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))

    def add(self, language: str, key: str, value: str, n: int = 1) -> None:
        self.counts[language][key][value] += n

    def merge(self, found: Mapping[str, Mapping[str, Mapping[str, int]]]) -> None:
        for language, keys in found.items():
            for key, values in keys.items():
                self.counts[language][key].update(values)

    def to_json(self) -> dict[str, Any]:
        return {
            language: {key: dict(sorted(values.items())) for key, values in sorted(keys.items())}
            for language, keys in sorted(self.counts.items())
        }


def merge_counts(units: Iterable[tuple[str, Mapping[str, Any], Mapping[str, Any]]]) -> dict[str, Any]:
    """`{source: {language: {split: {documents, bytes, characters, lengths, dropped}}}}` of all units together.

    Each unit is its source, `{language: {split: Kept.to_json()}}` and `{language: {split: {reason: documents}}}`.
    """
    kept: dict[tuple[str, str, str], Kept] = defaultdict(Kept)
    dropped: dict[tuple[str, str, str], Counter[str]] = defaultdict(Counter)
    for source, unit_kept, unit_dropped in units:
        for language, splits in unit_kept.items():
            for split, found in splits.items():
                total = kept[source, language, split]
                total.documents += found["documents"]
                total.bytes += found["bytes"]
                total.characters += found["characters"]
                total.lengths.update({int(bits): n for bits, n in found["lengths"].items()})
        for language, reasons in unit_dropped.items():
            for split, numbers in reasons.items():
                dropped[source, language, split].update(numbers)
    counts: dict[str, Any] = {}
    for key in sorted({*kept, *dropped}):
        source, language, split = key
        entry = kept[key].to_json() | {"dropped": dict(sorted(dropped[key].items()))}
        counts.setdefault(source, {}).setdefault(language, {})[split] = entry
    return counts


def most_common(labels: Mapping[str, int]) -> dict[str, int]:
    """The most frequent labels, ties by name; the others together as `other`."""
    ranked = sorted(labels.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(n for _, n in ranked[_LABELS:])
    return dict(ranked[:_LABELS]) | ({"other": rest} if rest else {})
