"""The report's tables, as plain rows."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from mmbert.evaluation.metrics import is_share, lower_is_better
from mmbert.evaluation.published import PublishedTable
from mmbert.evaluation.report_data import ReportData
from mmbert.evaluation.suites.names import BITS_PER_BYTE, BITS_PER_BYTE_NEW, DEMO, INTENTS, LANGUAGE_ID, RETRIEVAL
from mmbert.evaluation.suites.registry import get_suite, suite_names, unverified_tasks
from mmbert.pages.page import Cell


@dataclass(frozen=True)
class Task:
    """A task and one of its metrics, as people read them."""

    task: str
    metric: str
    title: str
    note: str
    suite: str = DEMO


_KNOWN = (
    Task(BITS_PER_BYTE, "bits_per_byte", "Masked bits per byte", "all languages; lower is better"),
    Task(
        BITS_PER_BYTE_NEW,
        "bits_per_byte",
        "Masked bits per byte, new languages",
        "languages that only the decay brings in; lower is better",
    ),
    Task(RETRIEVAL, "accuracy", "Retrieval between languages", "find the same article among ten; accuracy"),
    Task(LANGUAGE_ID, "accuracy", "Language identification", "linear probe on sentences; accuracy"),
    Task(INTENTS, "accuracy", "Intent classification", "linear probe, split by template; accuracy"),
    Task(INTENTS, "macro_f1", "Intent classification, macro-F1", "linear probe, split by template"),
)


def tasks_of(data: ReportData) -> list[Task]:
    """The tasks and metrics that any model has a score of over all languages, suite by suite; `demo` goes first."""
    measured = {(s.suite, s.task, s.metric) for model in data.models for s in model.scores if s.language is None}
    known = [task for task in _KNOWN if (DEMO, task.task, task.metric) in measured]
    others = sorted(measured - {(DEMO, task.task, task.metric) for task in _KNOWN})
    return [_with_unseen(data, task) for task in known + [_described(*names) for names in others]]


def _with_unseen(data: ReportData, task: Task) -> Task:
    """Notes how many of the languages that a task was measured in are in no phase."""
    trained = {row.language for phase in data.phases for row in phase.mixture}
    measured = {
        s.language for model in data.models for s in model.scores if (s.suite, s.task) == (task.suite, task.task)
    }
    unseen = measured - trained - {None}
    if not trained or not unseen:
        return task
    return replace(
        task, note=f"{task.note}; no phase trained on {len(unseen)} of its {len(measured - {None})} languages"
    )


def unverified(suite: str, measured: Collection[str]) -> list[str]:
    """The measured tasks of a suite that never ran on their real data; the demo's text is its own."""
    known = unverified_tasks(get_suite(suite)) if suite in suite_names() and suite != DEMO else ()
    return [task for task in known if task in measured]


def _described(suite: str, task: str, metric: str) -> Task:
    title = f"{task.replace('_', ' ')}, {metric.replace('_', ' ')}"
    note = [f"suite {suite}", *(["lower is better"] if lower_is_better(metric) else [])]
    return Task(task, metric, title, "; ".join(note), suite)


def score_rows(data: ReportData) -> list[tuple[Task, list[Cell]]]:
    """A row a task: each model's value with its interval; the best is marked."""
    rows = []
    for task in tasks_of(data):
        found = [model.score(task.task, task.metric, suite=task.suite) for model in data.models]
        values = [s.value for s in found if s is not None]
        best = min(values) if lower_is_better(task.metric) else max(values)
        number = ".1%" if is_share(task.metric) else ".3f"
        cells = [
            Cell("–")
            if s is None
            else Cell(
                f"{s.value:{number}} ({s.low:{number}}–{s.high:{number}})", s.value, "best" if s.value == best else ""
            )
            for s in found
        ]
        rows.append((task, cells))
    return rows


def bits_rows(data: ReportData) -> tuple[list[str], list[list[Cell]]]:
    """Bits per byte by language: before the decay, after each variant, and the change under the widest variant."""
    before = data.trunk[-1].bits_per_byte if data.trunk else {}
    widest = data.widest_variant
    columns = ["Language", "Code", "New", "Before", *(v.label for v in data.variants), "Change"]
    languages = sorted({*before, *(code for v in data.variants for code in v.bits_per_byte)}, key=data.name_of)
    rows = []
    for code in languages:
        new = code in data.new_languages
        row = [
            Cell(data.name_of(code), data.name_of(code).lower()),
            Cell(code, code),
            Cell("new" if new else "", int(new)),
        ]
        row += [_number(values.get(code)) for values in (before, *(v.bits_per_byte for v in data.variants))]
        after = widest.bits_per_byte.get(code) if widest else None
        change = after - before[code] if after is not None and code in before else None
        row.append(Cell("–") if change is None else Cell(f"{change:+.3f}", change, "good" if change < 0 else "bad"))
        rows.append(row)
    return columns, rows


def mixture_rows(data: ReportData) -> tuple[list[str], list[list[Cell]]]:
    """A row a phase and source: languages, tokens, share, and how often the most repeated language was seen."""
    columns = ["Phase", "Source", "Languages", "Tokens", "Share", "Most epochs", "Capped languages"]
    rows = []
    for phase in data.phases:
        for source in sorted({row.source for row in phase.mixture}):
            of = [row for row in phase.mixture if row.source == source]
            tokens, share = sum(r.tokens for r in of), sum(r.share for r in of)
            epochs, capped = max(r.epochs for r in of), sum(r.capped for r in of)
            values: list[Any] = [len(of), tokens, share, epochs, capped]
            texts = [f"{len(of):,}", f"{tokens:,}", f"{share:.1%}", f"{epochs:.2f}", f"{capped:,}"]
            numbers = [Cell(t, v) for t, v in zip(texts, values, strict=True)]
            rows.append([Cell(phase.label, phase.label), Cell(source, source), *numbers])
    return columns, rows


def published_rows(table: PublishedTable) -> list[tuple[str, bool, list[Cell]]]:
    """Model, whether it is an mmBERT, and its cells; the best of each column is marked."""
    columns = [[value for value in column if value is not None] for column in zip(*table.rows.values(), strict=True)]
    best = [max(column, default=None) for column in columns]
    return [
        (
            model,
            "mmBERT" in model,
            [
                Cell("–") if value is None else Cell(f"{value:.1f}", value, "best" if value == top else "")
                for value, top in zip(values, best, strict=True)
            ],
        )
        for model, values in table.rows.items()
    ]


def _number(value: float | None) -> Cell:
    return Cell("–") if value is None else Cell(f"{value:.3f}", value)
