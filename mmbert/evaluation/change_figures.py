"""Plots and rows of changes by language, for the reports of a run and of a re-evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mmbert.evaluation.metrics import is_share
from mmbert.evaluation.results.compare import Difference
from mmbert.evaluation.trend import gain_interval, number, signed, title_of
from mmbert.pages.page import Cell
from mmbert.pages.plots import MARGIN, Figure, layout_of

_ENDS = 20
"""How many languages a plot shows at each end: with hundreds of them the middle is near nothing."""

OVERALL_COLUMNS = ("Task", "Before", "After", "Gain", "95% interval of the gain", "Method")
COLUMNS = ("Task", "Language", "Code", "Before", "After", "Gain", "95% interval of the gain")


def by_gain(differences: Sequence[Difference]) -> list[Difference]:
    """Those of a language, the best first."""
    found = [difference for difference in differences if difference.after.language is not None]
    return sorted(found, key=lambda difference: (-difference.gain, str(difference.after.language)))


def change_figures(
    prefix: str, differences: Sequence[Difference], name_of: Callable[[str], str]
) -> dict[str, tuple[str, Figure]]:
    """By name (`prefix-0`): title and plot of each task that has languages."""
    by_task: dict[str, list[Difference]] = {}
    for difference in by_gain(differences):
        by_task.setdefault(title_of(difference.after), []).append(difference)
    return {f"{prefix}-{i}": (title, change_figure(found, name_of)) for i, (title, found) in enumerate(by_task.items())}


def change_figure(ranked: Sequence[Difference], name_of: Callable[[str], str]) -> Figure:
    """One task's languages in the order of their gain, with interval bars; only both ends where there are many."""
    left_out = max(0, len(ranked) - 2 * _ENDS)
    shown: list[Difference | None] = [*ranked]
    if left_out:
        # An empty row stands for those between.
        shown = [*ranked[:_ENDS], None, *ranked[_ENDS + left_out :]]
    traces = []
    for name, colour, mark in (("better", "@good", "good"), ("not clear", "@muted", ""), ("worse", "@bad", "bad")):
        rows = [(i, difference) for i, difference in enumerate(shown) if difference and _mark(difference) == mark]
        if rows:
            traces.append(_trace(name, colour, rows, name_of))
    layout = layout_of("gain: to the right is better", "")
    ticks = {i: name_of(str(difference.after.language)) for i, difference in enumerate(shown) if difference}
    layout["yaxis"] |= {
        "tickvals": list(ticks),
        "ticktext": list(ticks.values()),
        "automargin": True,
        "showgrid": False,
    }
    layout["yaxis"] |= {"range": [len(shown) - 0.4, -0.6], "tickfont": {"size": 11}}
    layout["xaxis"] |= {"tickformat": "+.1~%" if is_share(ranked[0].after.metric) else "+.2~f"}
    layout["xaxis"] |= {"zeroline": True, "zerolinecolor": "@muted"}
    if left_out:
        place = {"x": 0.5, "xref": "paper", "xanchor": "center", "y": _ENDS, "showarrow": False}
        text = f"{left_out:,} languages between"
        layout["annotations"] = [{**place, "text": text, "font": {"color": "@muted", "size": 11}}]
    layout["height"] = 118 + 19 * len(shown)
    layout["margin"] = MARGIN | {"l": 16}
    return {"data": traces, "layout": layout}


def overall_rows(differences: Sequence[Difference]) -> list[list[Cell]]:
    """A row a task over all languages, in the order of `OVERALL_COLUMNS`."""
    rows = []
    for difference in differences:
        if difference.after.language is None:
            method = f"not tested: {'; '.join(difference.unlike)}" if difference.unlike else difference.method
            title = Cell(title_of(difference.after), title_of(difference.after))
            rows.append([title, *_values(difference), Cell(method, method)])
    return rows


def language_rows(differences: Sequence[Difference], name_of: Callable[[str], str]) -> list[list[Cell]]:
    """A row a task and language, in the order of `COLUMNS`; the best gain first."""
    rows = []
    for difference in by_gain(differences):
        code, title = str(difference.after.language), title_of(difference.after)
        name = name_of(code)
        rows.append([Cell(title, title), Cell(name, name.lower()), Cell(code, code), *_values(difference)])
    return rows


def _values(difference: Difference) -> list[Cell]:
    before, after = difference.before, difference.after
    low, high = gain_interval(difference)
    return [
        Cell(number(before, before.value), before.value),
        Cell(number(after, after.value), after.value),
        Cell(signed(after, difference.gain), difference.gain, _mark(difference)),
        Cell(f"{signed(after, low)} to {signed(after, high)}", low),
    ]


def _mark(difference: Difference) -> str:
    low, high = gain_interval(difference)
    return "good" if low > 0 else "bad" if high < 0 else ""


def _trace(
    name: str, colour: str, rows: Sequence[tuple[int, Difference]], name_of: Callable[[str], str]
) -> dict[str, Any]:
    gains = [difference.gain for _, difference in rows]
    bounds = [gain_interval(difference) for _, difference in rows]
    bars = {
        "type": "data",
        "symmetric": False,
        "array": [max(0.0, high - gain) for gain, (_, high) in zip(gains, bounds, strict=True)],
        "arrayminus": [max(0.0, gain - low) for gain, (low, _) in zip(gains, bounds, strict=True)],
    }
    return {
        "x": gains,
        "y": [place for place, _ in rows],
        "text": [
            f"<b>{name_of(str(d.after.language))}</b><br>{number(d.before, d.before.value)} to "
            f"{number(d.after, d.after.value)}"
            for _, d in rows
        ],
        "hovertemplate": "%{text}<extra>" + name + "</extra>",
        "mode": "markers",
        "name": name,
        "marker": {"color": colour, "size": 7},
        "error_x": {**bars, "color": colour, "thickness": 1.2, "width": 0},
    }
