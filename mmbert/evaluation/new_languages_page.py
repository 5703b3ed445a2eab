"""The page about languages that were added to a model, as one HTML file that needs nothing besides itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmbert.data.new_languages import HOPELESS_SHARE
from mmbert.evaluation import change_figures
from mmbert.evaluation.new_languages import LARGEST_LOSS, Outcome, verdict
from mmbert.evaluation.results.compare import Difference
from mmbert.evaluation.suites.names import BITS_PER_BYTE
from mmbert.pages.page import Card, Cell, render, short_number
from mmbert.recipe.languages import language_name
from mmbert.tables import counted

MODEL_COLUMNS = ("Model", "New: before", "New: after", "Change", "Old: before", "Old: after", "Change")
TOKEN_COLUMNS = ("Language", "Code", "Bytes of text", "Tokens", "Bytes a token", "Beside the others", "Single bytes")


def build_page(
    outcomes: Sequence[Outcome],
    costs: Mapping[str, Mapping[str, Any]],
    title: str,
    facts: Mapping[str, str],
    links: Mapping[str, str] | None = None,
) -> str:
    """`outcomes`: the released model's first, then the variants'. `costs`: by language, as `TokenCost.to_json`.

    `facts` of the run stand in the page's head; `links` lead to where else it is shown.
    """
    released = outcomes[0]
    by_language = [d for d in released.comparison.differences if d.after.language is not None]
    with_text = {d.after.language for d in by_language if d.after.task == BITS_PER_BYTE}
    groups = {
        "The new ones": [d for d in by_language if d.after.language in costs],
        "The old ones": [d for d in by_language if d.after.language in with_text - costs.keys()],
        "Others, without held-out text in this run": [
            d for d in by_language if d.after.language not in with_text | costs.keys()
        ],
    }
    figures = {
        group: change_figures.change_figures(f"change-{number}", differences, language_name)
        for number, (group, differences) in enumerate(groups.items())
        if differences
    }
    return render(
        "mmbert.evaluation",
        "new_languages.html",
        title=title,
        eyebrow="New languages",
        lead=verdict(released),
        facts={"Languages added": ", ".join(language_name(code) for code in costs), **facts},
        links=links,
        plots={name: figure for drawn in figures.values() for name, (_, figure) in drawn.items()},
        cards=_cards(released, costs),
        figures={group: [(name, heading) for name, (heading, _) in drawn.items()] for group, drawn in figures.items()},
        model_columns=MODEL_COLUMNS,
        models=[_model_row(found) for found in outcomes],
        overall_columns=change_figures.OVERALL_COLUMNS,
        overall=change_figures.overall_rows(released.comparison.differences),
        language_columns=change_figures.COLUMNS,
        languages=change_figures.language_rows(released.comparison.differences, language_name),
        token_columns=TOKEN_COLUMNS,
        tokens=[_token_row(code, cost) for code, cost in costs.items()],
    )


def _cards(found: Outcome, costs: Mapping[str, Mapping[str, Any]]) -> list[Card]:
    loss = "not measured" if found.loss is None else f"{found.loss:+.1%}"
    kept = (
        ""
        if found.loss is None
        else f"bits per byte; {'within' if found.loss <= LARGEST_LOSS else 'above'} {LARGEST_LOSS:.0%}"
    )
    single = sum((costs[code]["byte_fallback_share"] or 0) > HOPELESS_SHARE for code in found.gains if code in costs)
    over = f"bits per byte, over all bytes of {counted(len(found.gains), 'language')}"
    return [
        Card("New languages", f"{-found.gain:+.1%}", f"{over}, {single} of them as single bytes" if single else over),
        Card("Their median", f"{-found.median_gain:+.1%}", "bits per byte, each language counted once"),
        Card("Old languages", loss, kept),
    ]


def _model_row(found: Outcome) -> list[Cell]:
    mark = "bad" if (found.loss or 0) > LARGEST_LOSS else ""
    loss = Cell("-") if found.loss is None else Cell(f"{found.loss:+.1%}", found.loss, mark)
    change = Cell(f"{-found.gain:+.1%}", -found.gain, "good" if found.gain > 0 else "bad")
    return [Cell(found.model, found.model), *_values(found.new), change, *_values(found.old), loss]


def _values(difference: Difference | None) -> list[Cell]:
    if difference is None:
        return [Cell("-"), Cell("-")]
    return [Cell(f"{side.value:.3f}", side.value) for side in (difference.before, difference.after)]


def _token_row(code: str, cost: Mapping[str, Any]) -> list[Cell]:
    single, beside = cost["byte_fallback_share"], cost["beside_others"]
    return [
        Cell(language_name(code), language_name(code).lower()),
        Cell(code, code),
        Cell(short_number(cost["bytes"]), cost["bytes"]),
        Cell(short_number(cost["tokens"]), cost["tokens"]),
        Cell(f"{cost['bytes_per_token']:.2f}", cost["bytes_per_token"]),
        Cell("-" if beside is None else f"{beside:.2f} x", beside or 0.0),
        Cell("-" if single is None else f"{single:.0%}", single or 0.0),
    ]
