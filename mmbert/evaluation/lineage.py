"""The lineage of a run as a drawing: artifacts in columns, each to the right of all that it was made from."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from mmbert.evaluation.report_data import LineageNode

WIDTH, HEIGHT = 190, 52
_GAP_X, _GAP_Y = 64, 16
_SWEEPS = 6


@dataclass(frozen=True)
class Box:
    """A node's place in pixels, and the digests of all that it was made from, directly or not."""

    node: LineageNode
    x: int
    y: int
    ancestors: tuple[str, ...]


@dataclass(frozen=True)
class Edge:
    """A curve from an input to what was made from it, as the `d` of an SVG path."""

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
    """Place the nodes: the column is the longest path to the node; within columns, near its neighbours.

    Inputs that are not among the nodes are left out of the drawing, and so is a node that is given twice.
    """
    by_digest = {node.digest: node for node in nodes}
    inputs = {
        d: tuple(dict.fromkeys(i for i in node.inputs if i in by_digest and i != d)) for d, node in by_digest.items()
    }
    columns = _columns(inputs)
    rows = _ordered(inputs, columns)
    tallest = max((len(column) for column in rows), default=0)
    height = tallest * (HEIGHT + _GAP_Y) + _GAP_Y
    places: dict[str, tuple[int, int]] = {}
    for index, column in enumerate(rows):
        top = (height - len(column) * (HEIGHT + _GAP_Y) + _GAP_Y) // 2
        for row, digest in enumerate(column):
            places[digest] = (_GAP_Y + index * (WIDTH + _GAP_X), top + row * (HEIGHT + _GAP_Y))
    boxes = tuple(Box(by_digest[d], *places[d], tuple(sorted(_ancestors(d, inputs)))) for d in places)
    edges = tuple(Edge(s, d, _curve(places[s], places[d])) for d in places for s in inputs[d])
    return Drawing(boxes, edges, len(rows) * (WIDTH + _GAP_X) - _GAP_X + 2 * _GAP_Y, height)


def _columns(inputs: dict[str, tuple[str, ...]]) -> dict[str, int]:
    columns: dict[str, int] = {}

    def column(digest: str) -> int:
        if digest not in columns:
            columns[digest] = 0  # ends the walk should two artifacts name each other
            columns[digest] = max((column(i) + 1 for i in inputs[digest]), default=0)
        return columns[digest]

    for digest in inputs:
        column(digest)
    return columns


def _ordered(inputs: dict[str, tuple[str, ...]], columns: dict[str, int]) -> list[list[str]]:
    """Digests by column, ordered by the mean row of their neighbours, swept to and fro until few edges cross."""
    rows: list[list[str]] = [[] for _ in range(max(columns.values(), default=-1) + 1)]
    for digest, column in columns.items():
        rows[column].append(digest)
    outputs: dict[str, list[str]] = {digest: [] for digest in inputs}
    for digest, sources in inputs.items():
        for source in sources:
            outputs[source].append(digest)
    for sweep in range(_SWEEPS):
        forward = sweep % 2 == 0
        for column in rows if forward else reversed(rows):
            place = {d: (i + 0.5) / len(r) for r in rows for i, d in enumerate(r)}
            key = {
                d: statistics.fmean(place[n] for n in found)
                if (found := inputs[d] if forward else outputs[d])
                else place[d]
                for d in column
            }
            column.sort(key=key.__getitem__)
    return rows


def _ancestors(digest: str, inputs: dict[str, tuple[str, ...]]) -> set[str]:
    found: set[str] = set()
    waiting = list(inputs[digest])
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            waiting += inputs[current]
    return found


def _curve(source: tuple[int, int], target: tuple[int, int]) -> str:
    x0, y0 = source[0] + WIDTH, source[1] + HEIGHT // 2
    x1, y1 = target[0], target[1] + HEIGHT // 2
    bend = max(24, min(_GAP_X, (x1 - x0) // 2))
    return f"M{x0} {y0} C{x0 + bend} {y0} {x1 - bend} {y1} {x1} {y1}"
