"""The trend page: scores over time of one registered model, as one HTML page that needs nothing besides itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmbert.evaluation import change_figures
from mmbert.evaluation.trend import Evaluated, Trend, title_of
from mmbert.evaluation.trend_figures import colours, overall_scores, time_line, when_of
from mmbert.pages.page import Card, render
from mmbert.pages.plots import Figure
from mmbert.tracking.registry import CHAMPION


def build_trend(trend: Trend, links: Mapping[str, str] | None = None) -> str:
    """The page as HTML. Parts without data are left out; `links` lead to where else the run is shown."""
    plots: dict[str, Figure] = {}
    lines: dict[str, list[tuple[str, str]]] = {}
    for index, (name, score) in enumerate(overall_scores(trend).items()):
        plots[f"trend-{index}"] = time_line(trend, name)
        lines.setdefault(score.suite, []).append((f"trend-{index}", title_of(score).partition(" · ")[2]))
    changes: list[tuple[Any, ...]] = []
    for model in trend.evaluated:
        for against, comparison in model.comparisons():
            found = comparison.differences
            place = f"change-{len(changes)}"
            figures = change_figures.change_figures(place, found, trend.name_of)
            plots |= {name: figure for name, (_, figure) in figures.items()}
            titles = [(name, title) for name, (title, _) in figures.items()]
            rows = change_figures.language_rows(found, trend.name_of)
            overall = change_figures.overall_rows(found)
            changes.append((f"{model.label}, against {against}", titles, overall, f"{place}-languages", rows))
    return render(
        "mmbert.evaluation",
        "trend.html",
        title=trend.name,
        eyebrow="Scores over time",
        lead="Every evaluation of the registered versions, what changed between them, and which were released.",
        facts=_facts(trend),
        links=links,
        plots=plots,
        trend=trend,
        cards=_cards(trend),
        suites=lines,
        changes=changes,
        overall_columns=change_figures.OVERALL_COLUMNS,
        language_columns=change_figures.COLUMNS,
        versions=_versions(trend),
        version_colours={digest: colour.removeprefix("@") for digest, colour in colours(trend).items()},
    )


def _cards(trend: Trend) -> list[Card]:
    champion = next((r for r in trend.releases if CHAMPION in r.aliases), None)
    suites = dict.fromkeys(suite for card in trend.history for suite in card.suites())
    return [
        Card("Champion", f"version {champion.version}" if champion else "none", _gate(champion.gate) if champion else
             "no version has passed the gate"),
        Card("Evaluated now", str(len(trend.evaluated)), ", ".join(m.label for m in trend.evaluated)),
        Card("Evaluations so far", f"{len(trend.history):,}", f"suites: {', '.join(suites) or 'none'}"),
        Card("Got worse", str(len(trend.alerts)), "see below" if trend.alerts else "nothing"),
    ]  # fmt: skip


def _facts(trend: Trend) -> dict[str, str]:
    return {"Re-evaluated": f"{trend.when:%Y-%m-%d %H:%M} UTC", "Models": ", ".join(map(_described, trend.evaluated))}


def _described(model: Evaluated) -> str:
    return f"{model.label} {model.digest[:12]}"


def _versions(trend: Trend) -> list[tuple[str, str, str, str, str]]:
    return [
        (r.version, when_of(r) if r.created else "", ", ".join(r.aliases), _gate(r.gate), r.digest)
        for r in reversed(trend.releases)
    ]


def _gate(verdict: str) -> str:
    return f"gate {verdict}" if verdict else "gate not run"
