"""The lineage of a run as a drawing: artifacts in levels, each below all that it was made from."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from mmbert.evaluation.report_data import LineageNode

WIDTH, HEIGHT = 190, 52
_GAP_X, _GAP_Y = 24, 44
_BORDER = 8
_SWEEPS = 6


@dataclass(frozen=True)
class Box:
    """A node's place in pixels and its name in the drawing, with the names of all that it was made from."""

    node: LineageNode
    x: int
    y: int
    name: str
    ancestors: tuple[str, ...]


@dataclass(frozen=True)
class Edge:
    """A curve from an input to what was made from it, by their names, as the `d` of an SVG path."""

    source: str
    target: str
    path: str


@dataclass(frozen=True)
class Drawing:
    boxes: tuple[Box, ...]
    edges: tuple[Edge, ...]
    width: int
    height: int


def draw(nodes: Sequence[LineageNode]) -> Drawing:
    """Place the nodes: the level is the longest path to the node; within levels, near its neighbours.

    Inputs that are not among the nodes are left out of the drawing, and so is a node that is given twice.
    """
    by_uri = {node.uri: node for node in nodes}
    inputs = {
        uri: tuple(dict.fromkeys(i for i in node.inputs if i in by_uri and i != uri)) for uri, node in by_uri.items()
    }
    rows = _ordered(inputs, _levels(inputs))
    widest = max((len(row) for row in rows), default=0)
    width = widest * (WIDTH + _GAP_X) - _GAP_X + 2 * _BORDER
    height = len(rows) * (HEIGHT + _GAP_Y) - _GAP_Y + 2 * _BORDER
    places: dict[str, tuple[int, int]] = {}
    for level, row in enumerate(rows):
        left = (width - len(row) * (WIDTH + _GAP_X) + _GAP_X) // 2
        for index, uri in enumerate(row):
            places[uri] = (left + index * (WIDTH + _GAP_X), _BORDER + level * (HEIGHT + _GAP_Y))
    names = {uri: f"n{number}" for number, uri in enumerate(places)}
    boxes = tuple(
        Box(by_uri[u], *places[u], names[u], tuple(sorted(names[a] for a in _ancestors(u, inputs)))) for u in places
    )
    edges = tuple(Edge(names[s], names[u], _curve(places[s], places[u])) for u in places for s in inputs[u])
    return Drawing(boxes, edges, width, height)


def _levels(inputs: dict[str, tuple[str, ...]]) -> dict[str, int]:
    levels: dict[str, int] = {}

    def level(uri: str) -> int:
        if uri not in levels:
            levels[uri] = 0  # ends the walk should two artifacts name each other
            levels[uri] = max((level(i) + 1 for i in inputs[uri]), default=0)
        return levels[uri]

    for uri in inputs:
        level(uri)
    return levels


def _ordered(inputs: dict[str, tuple[str, ...]], levels: dict[str, int]) -> list[list[str]]:
    """URIs by level, ordered by the mean place of their neighbours, swept to and fro until few edges cross."""
    rows: list[list[str]] = [[] for _ in range(max(levels.values(), default=-1) + 1)]
    for uri, level in levels.items():
        rows[level].append(uri)
    outputs: dict[str, list[str]] = {uri: [] for uri in inputs}
    for uri, sources in inputs.items():
        for source in sources:
            outputs[source].append(uri)
    for sweep in range(_SWEEPS):
        forward = sweep % 2 == 0
        for row in rows if forward else reversed(rows):
            place = {d: (i + 0.5) / len(r) for r in rows for i, d in enumerate(r)}
            key = {
                d: statistics.fmean(place[n] for n in found)
                if (found := inputs[d] if forward else outputs[d])
                else place[d]
                for d in row
            }
            row.sort(key=key.__getitem__)
    return rows


def _ancestors(uri: str, inputs: dict[str, tuple[str, ...]]) -> set[str]:
    found: set[str] = set()
    waiting = list(inputs[uri])
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            waiting += inputs[current]
    return found


def _curve(source: tuple[int, int], target: tuple[int, int]) -> str:
    x0, y0 = source[0] + WIDTH // 2, source[1] + HEIGHT
    x1, y1 = target[0] + WIDTH // 2, target[1]
    bend = max(_GAP_Y // 2, (y1 - y0) // 2)
    return f"M{x0} {y0} C{x0} {y0 + bend} {x1} {y1 - bend} {x1} {y1}"
