"""A comparison as one HTML page that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmbert.evaluation.metrics import is_share
from mmbert.evaluation.results.compare import Comparison, Difference
from mmbert.evaluation.results.scorecard import Scorecard
from mmbert.evaluation.results.text import change_text, notes, number, value_text, verdict_text
from mmbert.pages.page import Card, Cell, render
from mmbert.pages.plots import MARGIN, Figure, layout_of

_MOST_LANGUAGES = 80


def comparison_page(found: Comparison, baseline: Scorecard | None, level: float) -> str:
    """The page as HTML: cards, changes by suite and task, languages by change, tables, and what was not compared."""
    from mmbert.recipe.languages import language_table

    names = {code: language.name for code, language in language_table().items()}
    plots = _plots(found, baseline, level, names)
    return render(
        "mmbert.evaluation.results",
        "compare.html",
        title=f"{found.before.model} and {found.after.model}",
        eyebrow="Comparison",
        lead=f"What changed from {found.before.model} to {found.after.model}, with 95% intervals. "
        f"Significant means p below {level:g}, two-sided; over a task's languages by Holm's correction.",
        facts=_facts(found, baseline),
        plots=plots,
        cards=_cards(found, level),
        baseline=f"{baseline.model} (published)" if baseline else "",
        before=found.before.model,
        after=found.after.model,
        overall=_rows(found.overall, baseline, level, names, codes=False),
        languages=_rows(found.by_language, None, level, names, codes=True),
        suites=[name for name in plots if name.startswith("suite-")],
        language_plots=[(name, plots[name]["task"]) for name in plots if name.startswith("languages-")],
        notes=notes(found),
    )


def _facts(found: Comparison, baseline: Scorecard | None) -> dict[str, str]:
    facts = {}
    for side, card in (("From", found.before), ("To", found.after)):
        facts[side] = " · ".join(part for part in (card.model, card.model_digest[:12], card.when[:16]) if part)
    return {**facts, "Baseline": baseline.model} if baseline else facts


def _cards(found: Comparison, level: float) -> list[Card]:
    cards = [
        Card(
            f"{s.suite}, mean of {s.tasks}",
            f"{100 * s.change:+.1f}",
            f"from {100 * s.before:.1f} to {100 * s.after:.1f}",
        )
        for s in found.suites()
    ]
    for title, rows in (("Tasks", found.overall), ("Scores of languages", found.by_language)):
        fell, rose = (sum(d.significant(level) and sign * d.gain > 0 for d in rows) for sign in (-1, 1))
        if rows:
            cards.append(Card(title, f"{rose} up, {fell} down", f"significantly, of {len(rows)}"))
    return cards


def _rows(
    differences: Sequence[Difference], baseline: Scorecard | None, level: float, names: dict[str, str], *, codes: bool
) -> list[list[Cell]]:
    published = {score.name: score for score in baseline.scores} if baseline else {}
    rows = []
    for d in differences:
        code = d.after.language or ""
        task = f"{d.after.suite}/{d.after.task}"
        row = [Cell(names.get(code, code), names.get(code, code)), Cell(code, code)] if codes else []
        row += [Cell(task, task), Cell(d.after.metric, d.after.metric)]
        row += [Cell(value_text(s), s.value) for s in (d.before, d.after)]
        if baseline:
            known = published.get(d.after.name)
            row.append(Cell(number(known.value, known.metric), known.value) if known else Cell("–"))
        mark = "" if not d.significant(level) else "good" if d.gain > 0 else "bad"
        verdict = verdict_text(d, level)
        rows.append([*row, Cell(change_text(d, d.after.metric), d.gain, mark), Cell(verdict, verdict, mark)])
    return rows


def _plots(found: Comparison, baseline: Scorecard | None, level: float, names: dict[str, str]) -> dict[str, Figure]:
    plots: dict[str, Figure] = {}
    suites = dict.fromkeys(d.after.suite for d in found.overall)
    for suite in suites:
        rows = [d for d in found.overall if d.after.suite == suite and is_share(d.after.metric)]
        if rows:
            plots[f"suite-{suite}"] = _tasks_figure(found, rows, baseline)
    tasks = dict.fromkeys((d.after.suite, d.after.task, d.after.metric) for d in found.by_language)
    for index, (suite, task, metric) in enumerate(tasks):
        rows = [d for d in found.by_language if (d.after.suite, d.after.task, d.after.metric) == (suite, task, metric)]
        # The page names each plot by its task.
        plots[f"languages-{index}"] = {**_languages_figure(rows, level, names), "task": f"{suite}/{task}, {metric}"}
    return plots


def _tasks_figure(found: Comparison, rows: Sequence[Difference], baseline: Scorecard | None) -> Figure:
    """Each task's value in both models with its interval, and the baseline's as a diamond."""
    labels = [f"{d.after.task}, {d.after.metric}" for d in rows]
    sides: list[tuple[str, list[Any], str]] = [
        (found.before.model, [d.before for d in rows], "@muted"),
        (found.after.model, [d.after for d in rows], "@blue"),
    ]
    traces = []
    for place, (name, scores, colour) in enumerate(sides):
        traces.append(
            {
                "x": [s.value for s in scores],
                "y": [index + 0.14 * (2 * place - 1) for index in range(len(scores))],
                "error_x": _bars([(s.value, s.low, s.high) for s in scores], colour),
                "mode": "markers",
                "name": name,
                "text": labels,
                "marker": {"color": colour, "size": 9},
                "hovertemplate": "<b>%{text}</b>, %{x:.1%}<extra>" + name + "</extra>",
            }
        )
    published = {s.name: s.value for s in baseline.scores} if baseline else {}
    known = [(index, published[d.after.name]) for index, d in enumerate(rows) if d.after.name in published]
    if baseline and known:
        traces.append(
            {
                "x": [value for _, value in known],
                "y": [index for index, _ in known],
                "mode": "markers",
                "name": f"{baseline.model} (published)",
                "marker": {"color": "@orange", "size": 9, "symbol": "diamond"},
                "hovertemplate": "%{x:.1%}<extra>" + baseline.model + "</extra>",
            }
        )
    layout = _rows_layout(labels)
    layout["xaxis"] |= {"tickformat": "~%"}
    return {"data": traces, "layout": layout}


def _languages_figure(rows: Sequence[Difference], level: float, names: dict[str, str]) -> Figure:
    """Each language's change with its interval, the worst first; those significant in colour."""
    shown = rows if len(rows) <= _MOST_LANGUAGES else [*rows[: _MOST_LANGUAGES // 2], *rows[-_MOST_LANGUAGES // 2 :]]
    labels = [names.get(d.after.language or "", d.after.language or "") for d in shown]
    scale = 100 if is_share(rows[0].after.metric) else 1
    kinds = (
        ("fell significantly", "@rose", lambda d: d.significant(level) and d.gain < 0),
        ("within chance", "@muted", lambda d: not d.significant(level)),
        ("rose significantly", "@teal", lambda d: d.significant(level) and d.gain > 0),
    )
    traces = []
    for name, colour, chosen in kinds:
        places = [index for index, d in enumerate(shown) if chosen(d)]
        if not places:
            continue
        of = [shown[i] for i in places]
        bounds = [(d.change, d.change if d.low is None else d.low, d.change if d.high is None else d.high) for d in of]
        traces.append(
            {
                "x": [scale * d.change for d in of],
                "y": places,
                "error_x": _bars([(scale * a, scale * b, scale * c) for a, b, c in bounds], colour),
                "mode": "markers",
                "name": name,
                "text": [labels[i] for i in places],
                "marker": {"color": colour, "size": 7},
                "hovertemplate": "<b>%{text}</b>, %{x:+.3~g}<extra>" + name + "</extra>",
            }
        )
    layout = _rows_layout(labels)
    line = {"type": "line", "x0": 0, "x1": 0, "y0": 0, "y1": 1, "yref": "paper"}
    layout["shapes"] = [{**line, "line": {"color": "@muted", "width": 1, "dash": "dot"}}]
    layout["xaxis"]["title"]["text"] = "change in points" if scale == 100 else f"change of {rows[0].after.metric}"
    return {"data": traces, "layout": layout}


def _rows_layout(labels: Sequence[str]) -> Figure:
    layout = layout_of("", "")
    layout["yaxis"] |= {"tickvals": list(range(len(labels))), "ticktext": list(labels), "automargin": True}
    layout["yaxis"] |= {"range": [len(labels) - 0.4, -0.6], "showgrid": False, "tickfont": {"size": 11}}
    layout["height"] = 110 + (34 if len(labels) < 20 else 19) * len(labels)
    layout["margin"] = MARGIN | {"l": 16}
    return layout


def _bars(values: Sequence[tuple[float, float, float]], colour: str) -> dict[str, Any]:
    # A percentile interval may lie to one side of its value; a bar of negative length would point the wrong way.
    above = [max(0.0, high - value) for value, _, high in values]
    below = [max(0.0, value - low) for value, low, _ in values]
    bars = {"type": "data", "symmetric": False, "array": above, "arrayminus": below}
    return {**bars, "color": colour, "thickness": 1.4, "width": 0}
