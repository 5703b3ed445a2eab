"""The trend page's plots: a task's scores over time, with intervals and release marks."""

from __future__ import annotations

import datetime
from typing import Any

from mmbert.evaluation.metrics import is_share
from mmbert.evaluation.results.scorecard import Scorecard
from mmbert.evaluation.scores import Score
from mmbert.evaluation.selection import Release
from mmbert.evaluation.trend import Trend, number
from mmbert.pages.plots import MARGIN, Figure, layout_of
from mmbert.tracking.registry import CHAMPION

_COLOURS = ("@violet", "@teal", "@orange", "@rose")


def overall_scores(trend: Trend) -> dict[str, Score]:
    """By name, one score over all languages of each task and metric, as the history has them."""
    return {score.name: score for card in trend.history for score in card.scores if score.language is None}


def colours(trend: Trend) -> dict[str, str]:
    """By model digest: the champion is blue."""
    champion = next((r.digest for r in trend.releases if CHAMPION in r.aliases), "")
    others = [d for d in dict.fromkeys(card.model_digest for card in trend.history) if d != champion]
    found = {digest: _COLOURS[i % len(_COLOURS)] for i, digest in enumerate(others)}
    return {**found, champion: "@blue"}


def time_line(trend: Trend, name: str) -> Figure:
    """One task: each model's scores by the time of the evaluation, with 95% intervals, and the versions' marks."""
    rows = [(card, score) for card in trend.history for score in card.scores if score.name == name and card.when]
    colour_of = colours(trend)
    traces = []
    for digest in dict.fromkeys(card.model_digest for card, _ in rows):
        found = [(card, score) for card, score in rows if card.model_digest == digest]
        traces.append(_trace(trend.label_of(digest), colour_of[digest], found))
    layout = layout_of("", "")
    layout["xaxis"] |= {"type": "date", "range": _range(trend)}
    if is_share(name):
        layout["yaxis"] |= {"tickformat": "~%"}
    marked = [release for release in trend.releases if release.created]
    layout["shapes"] = [_mark(release) for release in marked]
    layout["annotations"] = [_mark_label(release) for release in marked]
    layout["margin"] = MARGIN | {"t": 66}
    layout["legend"] |= {"y": -0.16, "yanchor": "top"}
    layout["height"] = 330
    return {"data": traces, "layout": layout}


def when_of(release: Release) -> str:
    return _time(datetime.datetime.fromtimestamp(release.created, datetime.UTC))


def _trace(name: str, colour: str, rows: list[tuple[Scorecard, Score]]) -> dict[str, Any]:
    bars = {
        "type": "data",
        "symmetric": False,
        # A percentile interval may lie to one side of its value; a bar of negative length would point the wrong way.
        "array": [max(0.0, score.high - score.value) for _, score in rows],
        "arrayminus": [max(0.0, score.value - score.low) for _, score in rows],
        "color": colour,
        "thickness": 1.5,
        "width": 5,
    }
    return {
        "x": [_time(_moment(card)) for card, _ in rows],
        "y": [score.value for _, score in rows],
        "text": [
            f"{number(score, score.value)}, 95% interval {number(score, score.low)} to {number(score, score.high)}<br>"
            f"{_moment(card):%Y-%m-%d %H:%M}"
            + (f"<br>data {score.data_revision[:10]}" if score.data_revision else "")
            + (f"<br>code {card.commit[:10]}" if card.commit else "")
            for card, score in rows
        ],
        "hovertemplate": "%{text}<extra>" + name + "</extra>",
        "mode": "lines+markers",
        "name": name,
        "line": {"color": colour, "width": 1.5},
        "marker": {"color": colour, "size": 8},
        "error_y": bars,
    }


def _mark(release: Release) -> dict[str, Any]:
    champion = CHAMPION in release.aliases
    line = {"color": "@blue" if champion else "@pale", "width": 1.5 if champion else 1, "dash": "dot"}
    place = {"x0": when_of(release), "x1": when_of(release), "y0": 0, "y1": 1, "yref": "paper"}
    return {"type": "line", **place, "line": line, "layer": "below"}


def _mark_label(release: Release) -> dict[str, Any]:
    text = " · ".join([f"v{release.version}", *release.aliases])
    place = {"x": when_of(release), "y": 1, "yref": "paper", "yanchor": "bottom", "xanchor": "left", "textangle": -28}
    return {**place, "text": text, "showarrow": False, "font": {"size": 11, "color": "@muted"}}


def _range(trend: Trend) -> list[str]:
    """The same time axis for all plots, with room at both ends."""
    marks = [datetime.datetime.fromtimestamp(r.created, datetime.UTC) for r in trend.releases if r.created]
    times = [*(_moment(card) for card in trend.history if card.when), *marks, trend.when]
    room = max(datetime.timedelta(hours=1), 0.06 * (max(times) - min(times)))
    return [_time(min(times) - room), _time(max(times) + room)]


def _moment(card: Scorecard) -> datetime.datetime:
    return datetime.datetime.fromisoformat(card.when)


def _time(when: datetime.datetime) -> str:
    return when.astimezone(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
