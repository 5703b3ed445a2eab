"""The report of a run: one HTML page that needs nothing besides itself."""

from __future__ import annotations

from collections.abc import Mapping

from mmbert.evaluation import change_figures, figures, lineage, score_figures, tables
from mmbert.evaluation.claims import claims, english_variant
from mmbert.evaluation.published import published_tables
from mmbert.evaluation.report_data import ReportData
from mmbert.evaluation.results.compare import Comparison, compare
from mmbert.evaluation.suites.names import BITS_PER_BYTE, LANGUAGE_ID, RETRIEVAL
from mmbert.pages.page import Card, render, short_number
from mmbert.pages.plots import Figure


def build_report(data: ReportData, links: Mapping[str, str] | None = None) -> str:
    """The page as HTML. Parts without data are left out; `links` lead to where else the run is shown."""
    from markdown_it import MarkdownIt

    plots = _figures(data)
    changes = []
    for index, (title, comparison) in enumerate(_comparisons(data)):
        drawn = change_figures.change_figures(f"change-{index}", comparison.differences, data.name_of)
        plots |= {name: figure for name, (_, figure) in drawn.items()}
        rows = change_figures.language_rows(comparison.differences, data.name_of)
        changes.append((title, [(name, task) for name, (task, _) in drawn.items()], f"change-table-{index}", rows))
    panels = [*data.trunk, *([data.widest_variant] if data.widest_variant else [])]
    bits_columns, bits = tables.bits_rows(data)
    mixture_columns, mixture = tables.mixture_rows(data)
    return render(
        "mmbert.evaluation",
        "report.html",
        title=data.recipe_name,
        eyebrow="Run report",
        lead=data.description,
        facts=data.run,
        links=links,
        plots=plots,
        data=data,
        cards=_cards(data),
        claims=claims(data),
        share_labels=[p.label for p in panels],
        share_colours=[colour.removeprefix("@") for colour in figures.SEEN_COLOURS],
        other_variants={
            label: colour.removeprefix("@")
            for label, colour in figures.variant_colours(data).items()
            if data.widest_variant is not None and label != data.widest_variant.label
        },
        score_suites=_suites(data),
        score_rows=tables.score_rows(data),
        changes=changes,
        change_columns=change_figures.COLUMNS,
        bits_columns=bits_columns,
        bits_rows=bits,
        mixture_columns=mixture_columns,
        mixture_rows=mixture,
        published=[(table, tables.published_rows(table)) for table in published_tables().values()],
        lineage=lineage.draw(data.lineage),
        box=(lineage.WIDTH, lineage.HEIGHT),
        data_card=MarkdownIt("commonmark", {"html": False}).enable("table").render(data.data_card),
    )


def _figures(data: ReportData) -> dict[str, Figure]:
    found: dict[str, Figure | None] = {**figures.share_figures(data)}
    if any(phase.history for phase in data.phases):
        found["training"] = figures.training_figure(data)
    found |= figures.bits_figures(data)
    found["trend"] = figures.trend_figure(data)
    for index, task in enumerate(tables.tasks_of(data)):
        found[f"score-{index}"] = score_figures.score_figure(data.models, task.task, task.metric, task.suite)
    found["retrieval"] = score_figures.retrieval_figure(data)
    found["time"] = score_figures.time_figure(data.times)
    return {name: figure for name, figure in found.items() if figure is not None}


def _suites(data: ReportData) -> dict[str, tuple[list[str], list[tuple[str, tables.Task]]]]:
    """By suite: its tasks that never ran on real data, and its plots."""
    plots: dict[str, list[tuple[str, tables.Task]]] = {}
    for index, task in enumerate(tables.tasks_of(data)):
        plots.setdefault(task.suite, []).append((f"score-{index}", task))
    return {
        suite: (tables.unverified(suite, {task.task for _, task in tasks}), tasks) for suite, tasks in plots.items()
    }


def _comparisons(data: ReportData) -> list[tuple[str, Comparison]]:
    """The models whose languages stand beside each other: two decay variants, and the release with where it began."""
    models = {model.name: model for model in data.models}
    wide, english = data.widest_variant, english_variant(data)
    pairs = [(models.get(english.variant or ""), models.get(wide.variant or ""))] if wide and english else []
    pairs.append((data.untrained, data.release))
    cards = [
        (f"{after.label}, against {before.label}", compare(before.scorecard(), after.scorecard()))
        for before, after in pairs
        if before and after
    ]
    return [(title, found) for title, found in cards if found.by_language]


def _cards(data: ReportData) -> list[Card]:
    trained = sum(p.tokens for p in data.phases)
    languages = {row.language for phase in data.phases for row in phase.mixture}
    cards = [
        Card("Tokens trained on", short_number(trained), f"in {len(data.phases)} training runs"),
        Card("Languages", f"{len(languages):,}", f"{len(data.new_languages):,} of them new to the decay"),
    ]
    release, untrained = data.release, data.untrained
    for task, label, number, instead in (
        (BITS_PER_BYTE, "Bits per byte, over all bytes", ".2f", "untrained"),
        (RETRIEVAL, "Retrieval accuracy", ".1%", "untrained"),
        (LANGUAGE_ID, "Language identification", ".1%", "untrained"),
    ):
        score = release.score(task) if release else None
        base = untrained.score(task) if untrained else None
        if score is not None:
            parts = [f"{instead} {base.value:{number}}"] if base else []
            parts += [f"chance {score.chance:.1%}"] if score.chance is not None else []
            cards.append(Card(label, f"{score.value:{number}}", ", ".join(parts)))
    return cards
