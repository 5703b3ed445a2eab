"""The report's plots of data and training."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from mmbert.evaluation.report_data import HistoryRow, ModelReport, PhaseReport, ReportData
from mmbert.evaluation.suites.names import BITS_PER_BYTE
from mmbert.pages.plots import Figure, axis_of, layout_of, log_axis

_VARIANT_COLOURS = ("@violet", "@rose", "@teal", "@muted")
SEEN_COLOURS = ("@blue", "@teal", "@orange")
"""Colours of languages by the phase that first had them."""


def variant_colours(data: ReportData) -> dict[str, str]:
    """The colour of each decay variant, by label; the one with the most languages has that of new languages."""
    others = [v.label for v in data.variants if v is not data.widest_variant]
    colours = {label: _VARIANT_COLOURS[i % len(_VARIANT_COLOURS)] for i, label in enumerate(others)}
    return colours if data.widest_variant is None else {**colours, data.widest_variant.label: SEEN_COLOURS[-1]}


def share_figures(data: ReportData) -> dict[str, Figure]:
    """One panel a phase: each language's share of the tokens, largest first, on a common logarithmic axis.

    The decay's panel shows the variant with the most languages as points and the others as lines.
    """
    panels = [*data.trunk, *([data.widest_variant] if data.widest_variant else [])]
    shares = [share for panel in panels for share in panel.language_shares().values() if share > 0]
    if not shares:
        return {}
    bottom, top = math.floor(math.log10(min(shares)) * 2) / 2, math.ceil(math.log10(max(shares)) * 2) / 2
    first_seen: dict[str, int] = {}
    figures = {}
    for index, panel in enumerate(panels):
        for language in panel.language_shares():
            first_seen.setdefault(language, index)
        lines = [v for v in data.variants if v is not panel] if panel.variant else []
        figure = _share_panel(data, panel, first_seen, [p.label for p in panels], lines)
        figure["layout"]["yaxis"] |= {**log_axis(shares), "tickformat": "~%", "range": [bottom, top + 0.1]}
        figures[f"shares-{index + 1}"] = figure
    return figures


def _share_panel(
    data: ReportData,
    phase: PhaseReport,
    first_seen: dict[str, int],
    labels: Sequence[str],
    other_variants: Sequence[PhaseReport],
) -> Figure:
    shares, tokens = phase.language_shares(), phase.language_tokens()
    ranked = [(rank, code, share) for rank, (code, share) in enumerate(shares.items(), start=1) if share > 0]
    traces: list[dict[str, Any]] = []
    for variant in other_variants:
        values = [share for share in variant.language_shares().values() if share > 0]
        line = {"color": variant_colours(data)[variant.label], "width": 2}
        ranks = list(range(1, len(values) + 1))
        traces.append(
            {"x": ranks, "y": values, "mode": "lines", "name": variant.label, "line": line, "hoverinfo": "skip"}
        )
    for index, colour in enumerate(SEEN_COLOURS):
        points = [(rank, code, share) for rank, code, share in ranked if first_seen[code] == index]
        if points:
            traces.append(
                {
                    "x": [rank for rank, _, _ in points],
                    "y": [share for _, _, share in points],
                    "text": [f"<b>{data.name_of(code)}</b> ({code})" for _, code, _ in points],
                    "customdata": [tokens[code] for _, code, _ in points],
                    "hovertemplate": "%{text}<br>%{y:.3%} of the phase, %{customdata:,} tokens<extra></extra>",
                    "mode": "markers",
                    "name": f"since {labels[index]}",
                    "marker": {"color": colour, "size": 6, "opacity": 0.85},
                }
            )
    layout = layout_of("language, by share", "share of tokens")
    layout["xaxis"] |= {"rangemode": "tozero"}
    layout["showlegend"] = False
    layout["margin"] |= {"t": 12}
    if ranked:
        (first, largest, top), (last, smallest, bottom) = ranked[0], ranked[-1]
        layout["annotations"] = [
            _point_label(data.name_of(largest), first, top, xanchor="left", xshift=7),
            _point_label(data.name_of(smallest), last, bottom, xanchor="right", yshift=-13),
        ]
    return {"data": traces, "layout": layout}


def _point_label(text: str, rank: int, share: float, **place: Any) -> dict[str, Any]:
    where = {"x": rank, "y": math.log10(share), "showarrow": False}
    return {**where, **place, "text": text, "font": {"size": 11, "color": "@muted"}}


def training_figure(data: ReportData) -> Figure:
    """Loss and learning rate over the tokens of all phases; the decay's variants branch from the last common phase."""
    traces: list[dict[str, Any]] = []
    shapes, annotations = [], []
    start = 0
    ends = []
    for index, phase in enumerate(data.trunk):
        traces += _history_traces(
            phase.history, start, phase.label, "@blue", legend=index == 0, group="before the decay"
        )
        ends.append((phase.label, start, start + phase.tokens))
        start += phase.tokens
    for variant in data.variants:
        colour = variant_colours(data)[variant.label]
        traces += _history_traces(variant.history, start, variant.label, colour, legend=True, group=variant.label)
    if data.variants:
        name = data.variants[0].name if len(data.variants) > 1 else data.variants[0].label
        ends.append((name, start, start + max(v.tokens for v in data.variants)))
    for index, (label, left, right) in enumerate(ends):
        band = {"type": "rect", "xref": "x", "yref": "paper", "x0": left, "x1": right, "y0": 0, "y1": 1}
        shapes.append(
            {**band, "fillcolor": "@band" if index % 2 == 0 else "@clear", "line": {"width": 0}, "layer": "below"}
        )
        place = {"x": (left + right) / 2, "y": 1.0, "xref": "x", "yref": "paper", "yanchor": "bottom"}
        place["yshift"] = 14 * (index % 2)  # neighbours' names are wider than short phases
        annotations.append(
            {**place, "text": f"<b>{label.replace(' ', '<br>')}</b>", "showarrow": False, "font": {"color": "@muted"}}
        )
    layout = layout_of("", "loss (nats a masked token)")
    layout["legend"] |= {"y": 1.14}
    layout["margin"] |= {"t": 84, "l": 72}
    layout |= {"shapes": shapes, "annotations": annotations, "hovermode": "closest"}
    layout["yaxis"] |= {"domain": [0.42, 1.0]}
    layout["yaxis2"] = axis_of("learning rate") | {"domain": [0.0, 0.34], "rangemode": "tozero", "tickformat": "~e"}
    layout["xaxis"] = axis_of("tokens trained on") | {"anchor": "y2", "rangemode": "tozero"}
    return {"data": traces, "layout": layout}


def _history_traces(
    history: Sequence[HistoryRow], start: int, label: str, colour: str, *, legend: bool, group: str
) -> list[dict[str, Any]]:
    x = [start + row.tokens_seen for row in history]
    details = [
        f"masking {row.mask_probability:.0%}, batch {row.global_batch_size:,} rows<br>"
        f"{row.tokens_per_second:,.0f} tokens/s, {row.padding_share:.1%} padding"
        for row in history
    ]
    common = {"x": x, "mode": "lines", "legendgroup": group, "name": group, "line": {"color": colour, "width": 2}}
    loss = {
        **common,
        "y": [row.loss for row in history],
        "text": details,
        "showlegend": legend,
        "hovertemplate": f"<b>{label}</b><br>%{{x:.4s}} tokens, loss %{{y:.3f}}<br>%{{text}}<extra></extra>",
    }
    rate = {
        **common,
        "y": [row.learning_rate for row in history],
        "yaxis": "y2",
        "showlegend": False,
        "hovertemplate": f"<b>{label}</b><br>%{{x:.4s}} tokens, rate %{{y:.2e}}<extra></extra>",
    }
    return [loss, rate]


def trend_figure(data: ReportData) -> Figure | None:
    """Held-out bits per byte from phase to phase: means over the languages that a phase brought in, with 95% intervals.

    The line goes through the common phases, the variant with the most languages and the released model; the other
    variants are points of their own. The interval is of the mean over languages (1.96 standard errors).
    """
    stages = _stages(data)
    if len(stages) < 2:
        return None
    brought: dict[str, int] = {}
    panels = [*data.trunk, *([data.widest_variant] if data.widest_variant else [])]
    for index, phase in enumerate(panels):
        for code in phase.language_shares():
            brought.setdefault(code, index)
    traces: list[dict[str, Any]] = []
    for index, (phase, colour) in enumerate(zip(panels, SEEN_COLOURS, strict=False)):
        codes = [code for code, first in brought.items() if first == index]
        for on_line in (True, False):
            points = [
                (label, found) for label, bits, line in stages if line == on_line if (found := _mean(bits, codes))
            ]
            if points:
                traces.append(_stage_trace(f"{phase.label}: {len(codes)} languages", colour, points, on_line))
    layout = layout_of("", "bits per byte")
    layout["xaxis"] |= {
        "type": "category",
        "automargin": True,
        "categoryorder": "array",
        "categoryarray": [label for label, _, _ in stages],
    }
    return {"data": traces, "layout": layout} if traces else None


def _stages(data: ReportData) -> list[tuple[str, Mapping[str, float], bool]]:
    """Label, bits per byte by language, and whether the line goes through it."""
    found: list[tuple[str, Mapping[str, float], bool]] = []
    if data.untrained:
        found.append((data.untrained.label, _bits_of(data.untrained), True))
    found += [(phase.label, phase.bits_per_byte, True) for phase in data.trunk]
    found += [(v.label, v.bits_per_byte, v is data.widest_variant) for v in data.variants]
    if data.release:
        found.append((data.release.label, _bits_of(data.release), True))
    return [stage for stage in found if stage[1]]


def _bits_of(model: ModelReport) -> dict[str, float]:
    return {code: score.value for code, score in model.by_language(BITS_PER_BYTE).items()}


def _mean(bits: Mapping[str, float], codes: Sequence[str]) -> tuple[float, float] | None:
    """Mean over the languages and half of its 95% interval; None below two languages."""
    values = [bits[code] for code in codes if code in bits]
    if len(values) < 2:
        return None
    return statistics.fmean(values), 1.96 * statistics.stdev(values) / math.sqrt(len(values))


def _stage_trace(
    name: str, colour: str, points: Sequence[tuple[str, tuple[float, float]]], on_line: bool
) -> dict[str, Any]:
    return {
        "x": [label for label, _ in points],
        "y": [mean for _, (mean, _) in points],
        "error_y": {"type": "data", "array": [half for _, (_, half) in points], "color": colour, "thickness": 1.5},
        "mode": "lines+markers" if on_line else "markers",
        "name": name,
        "legendgroup": name,
        "showlegend": on_line,
        "line": {"color": colour, "width": 2},
        "marker": {"color": colour, "size": 8, "symbol": "circle" if on_line else "circle-open"},
        "hovertemplate": "<b>%{x}</b><br>%{y:.3f} bits per byte<extra>" + name + "</extra>",
    }


def bits_figures(data: ReportData) -> dict[str, Figure]:
    """One panel a decay variant: bits per byte by language before the decay (x) and after it (y), on common axes."""
    if not data.trunk or not data.variants:
        return {}
    before = data.trunk[-1].bits_per_byte
    panels = {v.label: v.bits_per_byte for v in data.variants}
    values = [*before.values(), *(value for panel in panels.values() for value in panel.values())]
    if not values:
        return {}
    bounds = [max(0.0, math.floor(min(values) * 2) / 2 - 0.2), math.ceil(max(values) * 2) / 2 + 0.2]
    figures = {}
    for index, (label, after) in enumerate(panels.items(), start=1):
        line = {"color": "@muted", "width": 1, "dash": "dot"}
        traces: list[dict[str, Any]] = [
            {"x": bounds, "y": bounds, "mode": "lines", "line": line, "hoverinfo": "skip", "showlegend": False}
        ]
        shared = sorted(set(before) & set(after))
        for name, colour, symbol, new in (
            ("seen before", "@blue", "circle", False),
            ("new to the decay", "@orange", "diamond", True),
        ):
            codes = [code for code in shared if (code in data.new_languages) == new]
            if codes:
                traces.append(
                    {
                        "x": [before[code] for code in codes],
                        "y": [after[code] for code in codes],
                        "text": [f"<b>{data.name_of(code)}</b> ({code})" for code in codes],
                        "hovertemplate": "%{text}<br>before %{x:.2f}, after %{y:.2f}<extra>" + label + "</extra>",
                        "mode": "markers",
                        "name": name,
                        "marker": {"color": colour, "size": 6.5, "symbol": symbol, "opacity": 0.75},
                    }
                )
        layout = layout_of("bits per byte before the decay", "after")
        layout["xaxis"] |= {"range": bounds}
        layout["yaxis"] |= {"range": bounds}
        layout["showlegend"] = False
        layout["margin"] |= {"t": 12}
        figures[f"bits-{index}"] = {"data": traces, "layout": layout}
    return figures
