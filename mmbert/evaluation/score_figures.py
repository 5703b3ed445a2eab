"""The report's plots of scores and times, as plotly.js figures in plain dictionaries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmbert.evaluation.metrics import is_share
from mmbert.evaluation.report_data import RELEASE, UNTRAINED, ComponentTime, ModelReport, ReportData
from mmbert.evaluation.scores import Score
from mmbert.evaluation.suites.names import RETRIEVAL
from mmbert.pages.plots import MARGIN, Figure, layout_of


def score_figure(models: Sequence[ModelReport], task: str, metric: str, suite: str | None = None) -> Figure | None:
    """A task's score for each model with its 95% interval, and chance as a dashed line. None where nobody has it."""
    rows = [(model, score) for model in models if (score := model.score(task, metric, suite=suite)) is not None]
    if not rows:
        return None
    percent = is_share(metric)
    number = ".1%" if percent else ".3f"
    traces = []
    for model, score in rows:
        colour = {RELEASE: "@blue", UNTRAINED: "@muted"}.get(model.kind, "@violet")
        traces.append(
            {
                "x": [score.value],
                "y": [model.label],
                "error_x": _error_bar(score, colour),
                "mode": "markers+text",
                "text": [f"{score.value:{number}}"],
                "textposition": "top center",
                "textfont": {"size": 11},
                "marker": {"color": colour, "size": 10},
                "cliponaxis": False,
                "hovertemplate": f"<b>{model.label}</b><br>{score.value:{number}}, 95% interval {score.low:{number}} "
                f"to {score.high:{number}}<br>n = {score.n:,}<extra></extra>",
            }
        )
    layout = layout_of("", "")
    edges = [bound for _, score in rows for bound in (score.low, score.high)]
    chance = next((score.chance for _, score in rows if score.chance is not None), None)
    if chance is not None:
        edges.append(chance)
        line = {"type": "line", "x0": chance, "x1": chance, "y0": 0, "y1": 1, "yref": "paper"}
        layout["shapes"] = [{**line, "line": {"color": "@rose", "width": 1.5, "dash": "dash"}}]
        place = {"x": chance, "y": 1, "yref": "paper", "yanchor": "bottom", "showarrow": False}
        layout["annotations"] = [{**place, "text": f"chance {chance:.1%}", "font": {"size": 11, "color": "@rose"}}]
    room = 0.12 * (max(edges) - min(edges) or 1)
    layout["xaxis"] |= {"tickformat": "~%" if percent else "~g", "range": [min(edges) - room, max(edges) + room]}
    layout["yaxis"] |= {"autorange": "reversed", "type": "category", "showgrid": False, "automargin": True}
    layout["showlegend"] = False
    layout["height"] = 90 + 46 * len(rows)
    layout["margin"] = MARGIN | {"b": 34, "l": 16}
    return {"data": traces, "layout": layout}


def retrieval_figure(data: ReportData) -> Figure | None:
    """Retrieval accuracy by language of the released and the untrained model, best language first, with chance."""
    if not data.release or not data.untrained:
        return None
    ours, theirs = data.release.by_language(RETRIEVAL), data.untrained.by_language(RETRIEVAL)
    order = sorted(set(ours) & set(theirs), key=lambda code: (-ours[code].value, code))
    if not order:
        return None
    ticks = list(range(len(order)))
    names = [data.name_of(code) for code in order]
    traces = []
    for model, scores, colour in ((data.untrained, theirs, "@muted"), (data.release, ours, "@blue")):
        traces.append(
            {
                "x": ticks,
                "text": names,
                "y": [scores[code].value for code in order],
                "mode": "markers",
                "name": model.label,
                "marker": {"color": colour, "size": 8},
                "error_y": _error_bars([scores[code] for code in order], colour),
                "hovertemplate": "<b>%{text}</b>, %{y:.1%}<extra>" + model.label + "</extra>",
            }
        )
    layout = layout_of("", "accuracy")
    layout["yaxis"] |= {"tickformat": "~%", "rangemode": "tozero"}
    layout["xaxis"] |= {
        "tickangle": -60,
        "tickfont": {"size": 10},
        "tickvals": ticks,
        "ticktext": names,
        "automargin": True,
    }
    layout["xaxis"] |= {"showgrid": False, "range": [-0.7, len(order) - 0.3]}
    chance = ours[order[0]].chance
    if chance is not None:
        line = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": chance, "y1": chance}
        layout["shapes"] = [{**line, "line": {"color": "@rose", "width": 1.5, "dash": "dash"}}]
    return {"data": traces, "layout": layout}


def time_figure(times: Sequence[ComponentTime]) -> Figure | None:
    """Seconds by component, in the order given; what was found done is drawn pale."""
    if not times:
        return None
    # Components of one name are bars of their own, so places are numbers and labels only their ticks.
    places = {id(t): index for index, t in enumerate(times)}
    traces = []
    for name, reused, colour in (("ran in this run", False, "@blue"), ("found done, not run again", True, "@pale")):
        rows = [t for t in times if t.reused == reused]
        if rows:
            traces.append(
                {
                    "type": "bar",
                    "orientation": "h",
                    "x": [t.seconds for t in rows],
                    "y": [places[id(t)] for t in rows],
                    "customdata": [t.label for t in rows],
                    "name": name,
                    "marker": {"color": colour},
                    "text": [duration(t.seconds) for t in rows],
                    "textposition": "outside",
                    "cliponaxis": False,
                    "hovertemplate": "<b>%{customdata}</b>, %{x:.1f} s<extra>" + name + "</extra>",
                }
            )
    layout = layout_of("seconds", "")
    layout["yaxis"] |= {"tickvals": list(places.values()), "ticktext": [t.label for t in times]}
    layout["yaxis"] |= {"autorange": "reversed", "automargin": True, "showgrid": False}
    layout["xaxis"] |= {"range": [0, 1.15 * max(t.seconds for t in times) or 1]}
    layout["height"] = 110 + 26 * len(times)
    layout["margin"] = MARGIN | {"l": 16}
    layout["barmode"] = "overlay"
    return {"data": traces, "layout": layout}


def duration(seconds: float) -> str:
    """`1 h 05 min`, `2 min 05 s` or `3.1 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"


def _error_bar(score: Score, colour: str) -> dict[str, Any]:
    return _error_bars([score], colour) | {"thickness": 2.5, "width": 6}


def _error_bars(scores: Sequence[Score], colour: str) -> dict[str, Any]:
    # A percentile interval may lie to one side of its value; a bar of negative length would point the wrong way.
    above = [max(0.0, s.high - s.value) for s in scores]
    below = [max(0.0, s.value - s.low) for s in scores]
    bars = {"type": "data", "symmetric": False, "array": above, "arrayminus": below}
    return {**bars, "color": colour, "thickness": 1.2, "width": 0}
