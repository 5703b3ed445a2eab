"""The tables of docs/planning.md and its picture, docs/planning.svg: days by GPUs and tokens.

.venv/bin/python scripts/plan_tables.py [--check]
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mmbert.planning.gpus import get_device  # noqa: E402
from mmbert.planning.plan import Plan, plan_run, rescaled  # noqa: E402
from mmbert.planning.ranges import Range  # noqa: E402
from mmbert.planning.text import count, few_digits  # noqa: E402
from mmbert.planning.throughput import GPUS_A_NODE, Cluster  # noqa: E402
from mmbert.recipe import load_recipe  # noqa: E402

DOCUMENT, PICTURE = ROOT / "docs" / "planning.md", ROOT / "docs" / "planning.svg"
BEGIN, END = "<!-- tables: begin -->\n", "<!-- tables: end -->\n"
PRESETS = ("base", "small")
DEVICE = "h100"
GPUS = tuple(2**n for n in range(3, 11))
TOKENS = tuple(int(tokens * 10**12) for tokens in (0.1, 0.3, 1, 3, 10))
DAY = 86_400

Plans = dict[tuple[int, int], Plan]


def plans(preset: str) -> Plans:
    """By GPUs and tokens in the three phases."""
    recipe, device = load_recipe(preset), get_device(DEVICE)
    recipes = {tokens: rescaled(recipe, tokens) for tokens in TOKENS}
    return {
        (gpus, tokens): plan_run(scaled, Cluster(device, gpus, gpus // GPUS_A_NODE))
        for gpus in GPUS
        for tokens, scaled in recipes.items()
    }


def days(plan: Plan) -> Range:
    return plan.seconds.through(lambda seconds: seconds / DAY)


def table(found: Plans) -> Iterator[str]:
    yield f"| GPUs | {' | '.join(count(tokens) for tokens in TOKENS)} | $ for 3T |"
    yield "|---|" + "---|" * (len(TOKENS) + 1)
    for gpus in GPUS:
        own = [found[gpus, tokens] for tokens in TOKENS]
        star = "" if own[0].processes == gpus else " *"
        cost = found[gpus, TOKENS[3]].cost
        cells = [_cell(days(plan)) for plan in own] + [_cell(cost.dollars) if cost else ""]
        yield f"| {gpus:,}{star} | {' | '.join(cells)} |"


def _cell(found: Range) -> str:
    return f"**{few_digits(found.expected)}** ({few_digits(found.low)} to {few_digits(found.high)})"


def tables(by_preset: dict[str, Plans]) -> str:
    lines = []
    for preset, found in by_preset.items():
        lines += [f"**{preset}**, days on {DEVICE}:", "", *table(found), ""]
    return "\n".join(lines)


WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM, GAP = 860, 420, 56, 34, 52, 46, 70
PANEL = (WIDTH - LEFT - RIGHT - GAP) / len(PRESETS)
COLOURS = ("#4477aa", "#228833", "#aa8800", "#cc3344", "#884499")
FEWEST_DAYS, MOST_DAYS = 0.003, 200.0


def picture(by_preset: dict[str, Plans]) -> str:
    """Lines are what is expected, bands from low to high; both axes logarithmic."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12" fill="#222">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    for number, (preset, found) in enumerate(by_preset.items()):
        parts += _panel(preset, found, LEFT + number * (PANEL + GAP))
    return "\n".join([*parts, "</svg>", ""])


def _panel(preset: str, found: Plans, left: float) -> Iterator[str]:
    bottom = HEIGHT - BOTTOM
    middle = left + PANEL / 2
    yield f'<text x="{middle:.0f}" y="20" text-anchor="middle" font-weight="bold">mmBERT {preset}, {DEVICE}</text>'
    yield f'<text x="{middle:.0f}" y="{HEIGHT - 10}" text-anchor="middle">GPUs</text>'
    yield f'<text x="{left - 42:.0f}" y="{TOP - 10}">days</text>'
    for gpus in GPUS:
        x = _x(gpus, left)
        yield f'<path d="M{x:.1f} {TOP}V{bottom}" stroke="#eee"/>'
        yield f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{gpus}</text>'
    for power in range(-2, 3):
        y = _y(10.0**power)
        yield f'<path d="M{left:.1f} {y:.1f}H{left + PANEL:.1f}" stroke="#ddd"/>'
        yield f'<text x="{left - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g}</text>'
    for tokens, colour in zip(TOKENS, COLOURS, strict=True):
        ranges = [days(found[gpus, tokens]) for gpus in GPUS]
        xs = [_x(gpus, left) for gpus in GPUS]
        around = _points(xs, [r.low for r in ranges]) + _points(xs[::-1], [r.high for r in ranges[::-1]])
        yield f'<polygon points="{" ".join(around)}" fill="{colour}" opacity="0.15"/>'
        line = " ".join(_points(xs, [r.expected for r in ranges]))
        yield f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>'
        y = _y(ranges[-1].expected) + 4
        yield f'<text x="{xs[-1] + 6:.1f}" y="{y:.1f}" fill="{colour}">{count(tokens)}</text>'


def _points(xs: Sequence[float], values: Sequence[float]) -> list[str]:
    return [f"{x:.1f},{_y(value):.1f}" for x, value in zip(xs, values, strict=True)]


def _x(gpus: int, left: float) -> float:
    return left + PANEL * math.log(gpus / GPUS[0]) / math.log(GPUS[-1] / GPUS[0])


def _y(value: float) -> float:
    share = math.log(value / FEWEST_DAYS) / math.log(MOST_DAYS / FEWEST_DAYS)
    return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where a file differs from the plan")
    options = parser.parse_args()
    by_preset = {preset: plans(preset) for preset in PRESETS}
    before, _, rest = DOCUMENT.read_text("utf-8").partition(BEGIN)
    made = {
        DOCUMENT: f"{before}{BEGIN}{tables(by_preset)}{END}{rest.partition(END)[2]}",
        PICTURE: picture(by_preset),
    }
    for path, text in made.items():
        if options.check and path.read_text("utf-8") != text:
            raise SystemExit(f"{path}: not what is planned now; run scripts/plan_tables.py")
        if not options.check:
            path.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
