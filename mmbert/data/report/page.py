"""The data report's page."""

from __future__ import annotations

import base64
import gzip
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mmbert.data.report.figures import data_figures
from mmbert.data.report.statistics import DataStatistics, Samples, TextStatistics, total
from mmbert.data.report.warnings import KINDS, LanguageWarning, find_warnings, label_name, main_reason, reason_name
from mmbert.pages.page import Card, Cell, plain_json, render, script_json, short_number
from mmbert.recipe.languages import language_name

KEPT = "kept"
SAMPLE_BYTES = 8 * 10**6
"""Samples of all languages together, in UTF-8, so that a page of 1,833 languages stays below 15 MB."""
LANGUAGE_SAMPLE_BYTES = 32_000
_SAMPLES_FIT = 12
_PACKED_TOGETHER = 40
_LISTED = 5


def build_data_report(
    data: DataStatistics, *, title: str, lead: str, facts: Mapping[str, str], links: Mapping[str, str] | None = None
) -> str:
    """The page as HTML. Parts without data are left out; `links` lead to where else the run is shown."""
    warnings = find_warnings(data)
    languages = data.languages
    by_language: dict[str, list[LanguageWarning]] = {}
    for warning in warnings:
        by_language.setdefault(warning.language, []).append(warning)
    return render(
        "mmbert.data.report",
        "page.html",
        title=title,
        eyebrow="Data report",
        lead=lead,
        facts=facts,
        links=links,
        plots=data_figures(data),
        cards=_cards(data, languages, by_language),
        warning_groups=_groups(warnings),
        listed=_LISTED,
        planner_warnings=[(phase.label, text) for phase in data.phases for text in phase.warnings],
        source_columns=_source_columns(data),
        source_rows=_source_rows(data),
        reason_rows=_reason_rows(languages),
        language_count=len(languages),
        table_json=script_json(_table(data, languages, by_language)),
        details=_packed(_details(data, languages, by_language)),
        packed_together=_PACKED_TOGETHER,
    )


def summary(data: DataStatistics) -> dict[str, Any]:
    """The report's main figures and all of its warnings, as plain values."""
    languages = data.languages
    return {
        "languages": len(languages),
        "totals": _summary_of(total(languages.values())),
        "sources": {name: _summary_of(text) for name, text in data.sources.items()},
        "phases": {phase.label: len(phase.languages) for phase in data.phases},
        "warnings": [{"kind": w.kind, "language": w.language, "figure": w.figure} for w in find_warnings(data)],
    }


def _summary_of(text: TextStatistics) -> dict[str, Any]:
    return {
        "documents": text.documents,
        "bytes": text.size,
        "held_out_documents": text.held_out,
        "dropped_documents": dict(sorted(text.dropped.items())),
        "tokens": text.tokens,
    }


def _cards(
    data: DataStatistics, languages: Mapping[str, TextStatistics], warned: Mapping[str, Sequence[LanguageWarning]]
) -> list[Card]:
    everything = total(languages.values())
    drawn = {code for phase in data.phases for code in phase.languages}
    cards = [
        Card("Languages", f"{len(languages):,}", f"{len(drawn):,} of them in a mixture"),
        Card("Training text", _bytes(everything.size), f"{everything.documents:,} documents"),
    ]
    if everything.seen:
        main = f", most as {reason_name(main_reason(everything)[0])}" if everything.dropped.total() else ""
        note = f"of {everything.seen:,} documents{main}"
        cards.append(Card("Dropped", _percent(everything.dropped_share), note))
        cards.append(Card("Duplicates", _percent(everything.duplicate_share), "of what passed the filters"))
    if everything.tokens:
        note = f"{everything.bytes_per_token:.2f} bytes a token"
        if everything.fallback_share is not None:
            note += f", {everything.fallback_share:.1%} single bytes"
        cards.append(Card("Tokens", short_number(everything.tokens), note))
    count = sum(len(found) for found in warned.values())
    cards.append(
        Card(
            "Warnings",
            f"{count:,}",
            f"about {len(warned):,} language{'s' if len(warned) > 1 else ''}" if count else "nothing found",
        )
    )
    return cards


def _groups(warnings: Iterable[LanguageWarning]) -> list[tuple[Any, list[tuple[LanguageWarning, str]]]]:
    found: dict[str, list[tuple[LanguageWarning, str]]] = {}
    for warning in warnings:
        found.setdefault(warning.kind, []).append((warning, language_name(warning.language)))
    return [(kind, found[kind.name]) for kind in KINDS if kind.name in found]


def _source_columns(data: DataStatistics) -> list[str]:
    counted = ["Languages", "Documents", "Text", "Held out", "Dropped", "Main reason", "Duplicates", "Median length"]
    return ["Source", *counted, "Tokens", "Bytes a token", *(phase.label for phase in data.phases)]


def _source_rows(data: DataStatistics) -> list[list[Cell]]:
    rows = []
    for name, text in data.sources.items():
        reason = reason_name(main_reason(text)[0]) if text.dropped.total() else "–"
        row = [
            Cell(name, name),
            _number(sum(name in sources for sources in data.parts.values())),
            _number(text.documents),
            Cell(_bytes(text.size), text.size),
            _number(text.held_out),
            _share_cell(text.dropped_share),
            Cell(reason, reason),
            _share_cell(text.duplicate_share),
            Cell("–") if text.median_length is None else Cell(f"{text.median_length:,.0f}", text.median_length),
            Cell(short_number(text.tokens), text.tokens) if text.tokens else Cell("–"),
            Cell("–") if text.bytes_per_token is None else Cell(f"{text.bytes_per_token:.2f}", text.bytes_per_token),
        ]
        row += [_share_cell(phase.sources[name].share if name in phase.sources else None) for phase in data.phases]
        rows.append(row)
    return rows


def _reason_rows(languages: Mapping[str, TextStatistics]) -> list[list[Cell]]:
    """A row a reason: documents, share of all that was read, languages, and where it takes the largest share."""
    everything = total(languages.values())
    rows = []
    for reason, n in sorted(everything.dropped.items(), key=lambda item: (-item[1], item[0])):
        hit = {code: text.dropped[reason] / text.seen for code, text in languages.items() if text.dropped[reason]}
        worst = sorted(hit, key=lambda code: (-hit[code], code))[:3]
        named = ", ".join(f"{language_name(code)} {hit[code]:.0%}" for code in worst)
        cells = [_number(n), _share_cell(n / everything.seen), _number(len(hit)), Cell(named, named, "left")]
        rows.append([Cell(reason_name(reason), reason), *cells])
    return rows


def _bytes(value: int) -> str:
    """`4.8MB`, `2.3GB`."""
    return short_number(value).replace("B", "G") + "B"


def _number(value: int) -> Cell:
    return Cell(f"{value:,}", value)


def _share_cell(value: float | None) -> Cell:
    return Cell("–") if value is None else Cell(_percent(value), value)


def _percent(value: float | None) -> str:
    if value is None:
        return "–"
    if value == 0:
        return "0%"
    return "<0.1%" if value < 0.0005 else f"{value:.1%}"


def _table(
    data: DataStatistics, languages: Mapping[str, TextStatistics], warned: Mapping[str, Sequence[LanguageWarning]]
) -> dict[str, Any]:
    """What the table of languages shows, for the page's script: a row a language, in the order of its columns."""
    sources = sorted({source for parts in data.parts.values() for source in parts})
    reasons = sorted({main_reason(text)[0] for text in languages.values() if text.dropped.total()})
    places = {kind.name: number for number, kind in enumerate(KINDS)}
    rows = []
    for code, text in languages.items():
        drawn = [phase.languages.get(code) for phase in data.phases]
        rows.append(
            [
                code,
                language_name(code),
                [sources.index(source) for source in sorted(data.parts[code])],
                sorted({places[w.kind] for w in warned.get(code, ())}),
                text.documents,
                text.size,
                _short(text.dropped_share),
                reasons.index(main_reason(text)[0]) if text.dropped.total() else None,
                _short(text.duplicate_share),
                _short(text.median_length),
                text.tokens,
                _short(text.bytes_per_token),
                _short(text.fallback_share),
                [_short(part.share) if part else None for part in drawn],
                [part.tokens if part else None for part in drawn],
                [_short(part.epochs) if part else None for part in drawn],
            ]
        )
    return {
        "sources": sources,
        "reasons": [reason_name(reason) for reason in reasons],
        "kinds": [[kind.name, kind.title] for kind in KINDS],
        "phases": [phase.label for phase in data.phases],
        "rows": rows,
    }


def _short(value: float | None) -> float | None:
    """Four significant digits."""
    return None if value is None else float(f"{value:.4g}")


def _details(
    data: DataStatistics, languages: Mapping[str, TextStatistics], warned: Mapping[str, Sequence[LanguageWarning]]
) -> dict[str, Any]:
    """What the view of one language shows besides its row, by language."""
    budget = min(LANGUAGE_SAMPLE_BYTES, SAMPLE_BYTES // max(1, len(languages)))
    return {
        code: {
            "sources": {name: _source_detail(part) for name, part in sorted(data.parts[code].items())},
            "lengths": {str(bits): n for bits, n in sorted(text.lengths.items())},
            "dropped": _ranked(text.dropped),
            "identified": [[label_name(label), n] for label, n in _ranked(text.identified)],
            "scripts": _ranked(text.scripts),
            "held_out": text.held_out,
            "warnings": [[w.kind, w.figure] for w in warned.get(code, ())],
            "samples": [list(sample) for sample in pick_samples(data.samples.get(code, {}), text.dropped, budget)],
        }
        for code, text in languages.items()
    }


def _source_detail(text: TextStatistics) -> list[Any]:
    return [text.documents, text.size, text.dropped.total(), text.tokens, _short(text.bytes_per_token)]


def _ranked(counts: Counter[str]) -> list[tuple[str, int]]:
    """Largest first, the rest (`other`) last."""
    return sorted(counts.items(), key=lambda item: (item[0] == "other", -item[1], item[0]))


def pick_samples(
    samples: Mapping[str, Samples], dropped: Mapping[str, int], budget: int
) -> list[tuple[str, str, str, str]]:
    """Samples of a language as (`kept` or reason, source, id, text), with at most `budget` bytes of UTF-8 text.

    `samples` are by source. They are taken in turns, one of each group before a second one of any, kept text first and
    then reasons by how much they dropped. Long texts are cut so that a dozen fit. Sorted by group.
    """
    groups = sorted({group for found in samples.values() for group in found})
    groups.sort(key=lambda group: (group != KEPT, -dropped.get(group, 0)))
    picked: list[tuple[str, str, str, str]] = []
    left = budget
    for group, source, ident, text in _in_turns(samples, groups):
        encoded = text.encode()
        if len(encoded) > budget // _SAMPLES_FIT:
            encoded = f"{encoded[: budget // _SAMPLES_FIT - 3].decode(errors='ignore')}…".encode()
        if len(encoded) > left:
            break
        left -= len(encoded)
        picked.append((group, source, ident, encoded.decode()))
    return sorted(picked, key=lambda sample: groups.index(sample[0]))


def _in_turns(samples: Mapping[str, Samples], groups: Sequence[str]) -> Iterator[tuple[str, str, str, str]]:
    """One sample of each group, then a second one of each; within a group one of each source before a second."""
    queues = []
    for group in groups:
        ranked = [
            (turn, source, ident, text)
            for source, found in sorted(samples.items())
            for turn, (ident, text) in enumerate(found.get(group, ()))
        ]
        ranked.sort(key=lambda item: item[0])
        queues.append([(group, source, ident, text) for _, source, ident, text in ranked])
    for turn in itertools.zip_longest(*queues):
        yield from (sample for sample in turn if sample is not None)


def _packed(details: Mapping[str, Any]) -> list[str]:
    """JSON of some languages each, as base64 of gzip: small, and costs a browser nothing before it is looked at."""
    codes = list(details)
    parts = [codes[start : start + _PACKED_TOGETHER] for start in range(0, len(codes), _PACKED_TOGETHER)]
    packed = [gzip.compress(plain_json({code: details[code] for code in part}).encode(), mtime=0) for part in parts]
    return [base64.b64encode(part).decode("ascii") for part in packed]
