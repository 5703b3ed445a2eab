"""A planned mixture for people: a table as text, and an interactive plot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmbert.data.mixture import FIXED_SHARE, MAX_EPOCHS, LanguageShare, MixturePlan

_CAP_NAMES = {FIXED_SHARE: "fixed share", MAX_EPOCHS: "max epochs"}
_COLOURS = {"free": "#3b6fb6", "fixed share": "#c77d11", "max epochs": "#b3365b", "fixed share, max epochs": "#6b4fa0"}


def mixture_table(plan: MixturePlan, most_rows: int) -> str:
    """A line a language, the largest share first; those beyond `most_rows` are one line together."""
    languages = list(plan.languages().items())
    shown, rest = languages[:most_rows], languages[most_rows:]
    lines = [("language", "share", "tokens", "epochs", "held", "caps")]
    lines += [_line(name, language, _caps(language)) for name, language in shown]
    if rest:
        share, tokens = sum(found.share for _, found in rest), sum(found.tokens for _, found in rest)
        size = sum(found.size for _, found in rest)
        capped = sum(bool(found.caps) for _, found in rest)
        together = LanguageShare(share, tokens, tokens / size, size, ())
        lines.append(_line(f"{len(rest)} more", together, f"{capped} capped" if capped else ""))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if column in {0, 5} else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _line(name: str, found: LanguageShare, caps: str) -> tuple[str, str, str, str, str, str]:
    return name, f"{found.share:.4%}", f"{found.tokens:,}", f"{found.epochs:,.2f}", f"{found.size:,}", caps


def _caps(language: LanguageShare) -> str:
    return ", ".join(_CAP_NAMES[cap] for cap in language.caps)


def mixture_plot(plan: MixturePlan, title: str) -> str:
    """One HTML page, plotly.js inside (about 5 MB): each language's share of the mixture and its epochs, against the
    tokens that it holds. The same plan gives the same bytes."""
    from plotly.io import to_html

    page: str = to_html(_figure(plan, title), div_id="mixture", config={"displaylogo": False})
    return page


def _figure(plan: MixturePlan, title: str) -> dict[str, Any]:
    groups: dict[str, dict[str, LanguageShare]] = {}
    for name, language in plan.languages().items():
        groups.setdefault(_caps(language) or "free", {})[name] = language
    traces = [
        trace for group, languages in sorted(groups.items()) for trace in _points(group, languages, _COLOURS[group])
    ]
    axis = {"type": "log", "title": {"text": "tokens held"}}
    return {
        "data": traces,
        "layout": {
            "title": {"text": title},
            "grid": {"rows": 1, "columns": 2, "pattern": "independent"},
            "xaxis": axis,
            "xaxis2": axis,
            "yaxis": {"type": "log", "title": {"text": "share of the mixture"}, "exponentformat": "power"},
            "yaxis2": {"type": "log", "title": {"text": "epochs"}},
            "hovermode": "closest",
        },
    }


def _points(group: str, languages: Mapping[str, LanguageShare], colour: str) -> list[dict[str, Any]]:
    found = list(languages.values())
    common = {
        "type": "scatter",
        "mode": "markers",
        "name": group,
        "legendgroup": group,
        "marker": {"color": colour, "size": 6, "opacity": 0.8},
        "x": [language.size for language in found],
        "text": list(languages),
    }
    shares = {"y": [language.share for language in found], "hovertemplate": "%{text}: %{y:.3g} of the tokens"}
    epochs = {"y": [language.epochs for language in found], "hovertemplate": "%{text}: %{y:.2f} epochs"}
    return [common | shares, common | epochs | {"xaxis": "x2", "yaxis": "y2", "showlegend": False}]
