"""The cost table of docs/infrastructure.md, computed from infra/terraform/prices.csv.

`python -m infra.checks.costs` writes it.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from infra.checks.check import ROOT, Check, check

PRICES = ROOT / "infra" / "terraform" / "prices.csv"
DOCUMENT = ROOT / "docs" / "infrastructure.md"
_BEGIN, _END = "<!-- costs: begin -->\n", "<!-- costs: end -->\n"
HOURS = 730
"""AWS counts a month so."""


def table(prices: Path = PRICES) -> str:
    """Markdown: what each part costs an hour, and a month where it runs all the time."""
    with prices.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    lines = ["| part | unit price (US$) | of | an hour | a month | price seen |", "|---|---|---|---|---|---|"]
    total = 0.0
    for row in rows:
        price, quantity = float(row["price"]), float(row["quantity"])
        month = price * quantity * (HOURS if row["per"] == "hour" else 1)
        total += month if row["always"] == "yes" else 0
        hour = f"{price * quantity:,.3f}" if row["per"] == "hour" else ""
        what = f"{quantity:g} x {row['unit']}"
        month_text = f"{month:,.0f}" + ("" if row["always"] == "yes" else " *")
        lines.append(f"| {row['part']} | {price:g} / {row['per']} | {what} | {hour} | {month_text} | {row['seen']} |")
    lines.append(f"| **always on** | | | | **{total:,.0f}** | |")
    return "\n".join(lines) + "\n"


def document_check(document: Path = DOCUMENT, prices: Path = PRICES) -> Check:
    return check("costs", document.name, _drift(document, prices))


def _drift(document: Path, prices: Path) -> Iterator[str]:
    text = document.read_text("utf-8") if document.exists() else ""
    if table(prices) not in text:
        yield f"{document.name}: its cost table is not that of {prices.name}; run python -m infra.checks.costs"


def main() -> None:
    before, _, rest = DOCUMENT.read_text("utf-8").partition(_BEGIN)
    after = rest.partition(_END)[2]
    DOCUMENT.write_text(f"{before}{_BEGIN}{table()}{_END}{after}", "utf-8")


if __name__ == "__main__":
    main()
