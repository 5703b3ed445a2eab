"""Plots of HTML pages, as plotly.js figures in plain dictionaries.

A colour like `@blue` is a name that the page replaces by its theme's colour, so that plots follow light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

Figure = dict[str, Any]

MARGIN = {"l": 56, "r": 16, "t": 34, "b": 46}


def axis_of(title: str) -> dict[str, Any]:
    """An axis with a title and no line at zero."""
    return {"title": {"text": title, "standoff": 8}, "zeroline": False}


def log_axis(values: Iterable[float]) -> dict[str, Any]:
    """What makes an axis of these values (above 0) logarithmic; below two decades it has labels at 2 and 5."""
    shown = list(values)
    return {"type": "log", "dtick": 1 if math.log10(max(shown) / min(shown)) >= 2 else "D2"}


def layout_of(x: str, y: str) -> Figure:
    """The layout that all plots share, with titles for both axes."""
    legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "xanchor": "left"}
    return {"xaxis": axis_of(x), "yaxis": axis_of(y), "margin": dict(MARGIN), "legend": legend}
