"""The data report's plots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from mmbert.data.report.statistics import DataStatistics, TextStatistics, length_class
from mmbert.data.report.warnings import FALLBACK_SHARE, reason_name
from mmbert.pages.page import short_number
from mmbert.pages.plots import Figure, layout_of, log_axis
from mmbert.recipe.languages import language_name

_BARS = 25
_REASON_COLOURS = ("@orange", "@violet", "@rose", "@blue", "@teal", "@bad", "@good", "@muted")
_PHASE_COLOURS = ("@blue", "@teal", "@violet", "@rose", "@orange")


def data_figures(data: DataStatistics) -> dict[str, Figure]:
    """`drops`, `lengths`, `shares` and `tokens`; those without data are left out."""
    languages = data.languages
    found = {
        "drops": drops_figure(languages),
        "lengths": lengths_figure(languages.values()),
        "shares": shares_figure(data, languages),
        "tokens": tokens_figure(languages),
    }
    return {name: figure for name, figure in found.items() if figure is not None}


def drops_figure(languages: Mapping[str, TextStatistics]) -> Figure | None:
    """Kept and dropped shares of the languages that lost most documents, as stacked bars."""
    lost = {code: n for code, text in languages.items() if (n := text.dropped.total())}
    if not lost:
        return None
    shown = sorted(lost, key=lambda code: (-lost[code], code))[:_BARS][::-1]
    reasons: Counter[str] = Counter()
    for code in shown:
        reasons.update(languages[code].dropped)
    ranked = [reason for reason, n in sorted(reasons.items(), key=lambda item: (-item[1], item[0])) if n]
    named = ranked if len(ranked) <= len(_REASON_COLOURS) else ranked[: len(_REASON_COLOURS) - 1]
    parts = [("kept", "@pale", [languages[code].kept for code in shown])]
    for reason, colour in zip(named, _REASON_COLOURS, strict=False):
        parts.append((reason_name(reason), colour, [languages[code].dropped[reason] for code in shown]))
    if rest := ranked[len(named) :]:
        dropped = [sum(languages[code].dropped[reason] for reason in rest) for code in shown]
        parts.append(("other reasons", _REASON_COLOURS[-1], dropped))
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": name,
            "y": shown,
            "x": [n / languages[code].seen for n, code in zip(numbers, shown, strict=True)],
            "text": [
                f"<b>{_named(code)}</b><br>{name}: {n:,} of {languages[code].seen:,} documents"
                for n, code in zip(numbers, shown, strict=True)
            ],
            "textposition": "none",
            "marker": {"color": colour},
            "hovertemplate": "%{text}, %{x:.1%}<extra></extra>",
        }
        for name, colour, numbers in parts
    ]
    layout = layout_of("share of the documents", "")
    layout |= {"barmode": "stack", "bargap": 0.28, "height": 110 + 21 * len(shown)}
    layout["xaxis"] |= {"tickformat": ".0%", "range": [0, 1]}
    names = [language_name(code) for code in shown]
    layout["yaxis"] |= {"automargin": True, "tickvals": shown, "ticktext": names, "ticklabelstandoff": 6}
    layout["margin"] |= {"l": 16}
    layout["legend"] |= {"traceorder": "normal"}
    return {"data": traces, "layout": layout}


def lengths_figure(texts: Iterable[TextStatistics]) -> Figure | None:
    """How many kept documents are how long, over all languages; each class is twice as wide as the one before."""
    lengths: Counter[int] = Counter()
    for text in texts:
        lengths.update(text.lengths)
    if not lengths.total():
        return None
    classes = range(min(lengths), max(lengths) + 1)
    labels = [_class_label(bits) for bits in classes]
    trace = {
        "type": "bar",
        "x": labels,
        "y": [lengths[bits] / lengths.total() for bits in classes],
        "text": [f"{lengths[bits]:,}" for bits in classes],
        "textposition": "none",
        "marker": {"color": "@blue"},
        "hovertemplate": "%{x} characters<br>%{y:.1%}, %{text} documents<extra></extra>",
    }
    layout = layout_of("characters", "share of the documents")
    layout["yaxis"] |= {"tickformat": ".0%"}
    layout["xaxis"] |= {"type": "category"}
    layout["margin"] |= {"t": 12}
    layout |= {"bargap": 0.12, "showlegend": False}
    return {"data": [trace], "layout": layout}


def _class_label(bits: int) -> str:
    low, high = length_class(bits)
    return f"{_power(low)}–{_power(high + 1)}" if low >= 1024 else f"{low}–{high}"


def _power(number: int) -> str:
    """`4k`, `2M`: powers of two as people say them."""
    return f"{number >> 20}M" if number >= 1 << 20 else f"{number >> 10}k"


def shares_figure(data: DataStatistics, languages: Mapping[str, TextStatistics]) -> Figure | None:
    """Share of each phase against the tokens that there are, both logarithmic: a temperature is the slope."""
    held = {code: text.tokens for code, text in languages.items() if text.tokens}
    everything = sum(held.values())
    traces: list[dict[str, Any]] = []
    for number, phase in enumerate(data.phases):
        points = [(code, part) for code, part in phase.languages.items() if part.share > 0 and code in held]
        if points:
            traces.append(
                {
                    "x": [held[code] for code, _ in points],
                    "y": [part.share for _, part in points],
                    "text": [_named(code) for code, _ in points],
                    "customdata": [
                        [short_number(held[code]), short_number(part.tokens), f"{part.epochs:.2g}"]
                        for code, part in points
                    ],
                    "hovertemplate": "<b>%{text}</b><br>%{customdata[0]} tokens held, %{y:.3%} of "
                    + phase.label
                    + "<br>%{customdata[1]} tokens drawn, at most %{customdata[2]} epochs<extra></extra>",
                    "mode": "markers",
                    "name": phase.label,
                    "marker": {"color": _PHASE_COLOURS[number % len(_PHASE_COLOURS)], "size": 5.5, "opacity": 0.65},
                }
            )
    if not traces:
        return None
    ends = [min(held.values()), max(held.values())]
    line = {"color": "@muted", "width": 1, "dash": "dot"}
    proportional = {"x": ends, "y": [x / everything for x in ends], "mode": "lines", "line": line, "hoverinfo": "skip"}
    layout = layout_of("tokens held", "share of the phase")
    layout["xaxis"] |= {**log_axis(held.values()), "exponentformat": "B"}
    layout["yaxis"] |= {**log_axis(y for trace in [proportional, *traces] for y in trace["y"]), "tickformat": "~%"}
    layout["margin"] |= {"l": 64}
    return {"data": [{**proportional, "name": "in proportion to size"}, *traces], "layout": layout}


def tokens_figure(languages: Mapping[str, TextStatistics]) -> Figure | None:
    """Bytes a token of each language against its tokens; languages with much byte fallback are marked."""
    traces: list[dict[str, Any]] = []
    for name, colour, symbol, wanted in (
        ("words of the vocabulary", "@teal", "circle", False),
        (f"over {FALLBACK_SHARE:.0%} single bytes", "@orange", "diamond", True),
    ):
        points = [
            (code, text)
            for code, text in languages.items()
            if text.tokens and ((text.fallback_share or 0) > FALLBACK_SHARE) == wanted
        ]
        if points:
            traces.append(
                {
                    "x": [text.tokens for _, text in points],
                    "y": [round(text.bytes_per_token or 0, 3) for _, text in points],
                    "text": [_named(code) for code, _ in points],
                    "customdata": [
                        [
                            short_number(text.tokens),
                            "not known" if text.fallback_share is None else f"{text.fallback_share:.1%}",
                        ]
                        for _, text in points
                    ],
                    "hovertemplate": "<b>%{text}</b><br>%{y:.2f} bytes a token, %{customdata[0]} tokens"
                    "<br>byte fallback %{customdata[1]}<extra></extra>",
                    "mode": "markers",
                    "name": name,
                    "marker": {"color": colour, "symbol": symbol, "size": 6, "opacity": 0.7},
                }
            )
    if not traces:
        return None
    layout = layout_of("tokens held", "bytes a token")
    layout["xaxis"] |= {**log_axis(x for trace in traces for x in trace["x"]), "exponentformat": "B"}
    layout["yaxis"] |= {"rangemode": "tozero"}
    layout["showlegend"] = len(traces) > 1
    return {"data": traces, "layout": layout}


def _named(code: str) -> str:
    return f"{language_name(code)} ({code})"
