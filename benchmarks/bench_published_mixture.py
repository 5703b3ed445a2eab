"""The planner against mmBERT's published token counts: later phases' shares from phase 1's counts (docs/mixture.md).

.venv/bin/python benchmarks/bench_published_mixture.py
"""

from __future__ import annotations

from mmbert.data.published_mixture import CLOSE, LATER, Comparison, compare_with_published, scripts_by_code
from mmbert.recipe.languages import language_name, language_table


def main() -> None:
    found = {column: compare_with_published(column, temperature) for column, temperature in LATER.items()}
    print(f"{'phase':10} {'T':>4} {'languages':>9} {'within 10%':>10} {'median ratio':>12} {'median error':>12}")
    for column, comparison in found.items():
        print(
            f"{column:10} {comparison.temperature:4} {len(comparison.ratios):9} {comparison.close:10} "
            f"{comparison.median_ratio:12.3f} {comparison.median_error:12.1%}"
        )
    far = sorted({code for comparison in found.values() for code in comparison.outliers()})
    print(f"\npublished over planned share, of languages off by more than {CLOSE - 1:.0%} somewhere")
    print(
        f"{'':9} {'':24} {'ext':>6} {'d-eng':>6} {'d-mid':>6} {'d-all':>6} {'d-all / d-mid':>14}  scripts in FineWeb2"
    )
    for code in sorted(far, key=lambda code: -found["decay-all"].ratios[code]):
        print(line(code, found))


def line(code: str, found: dict[str, Comparison]) -> str:
    tokens = language_table()[code].tokens
    ratios = " ".join(f"{comparison.ratios[code]:6.3f}" for comparison in found.values())
    scripts = " ".join(scripts_by_code()[code.split("_", maxsplit=1)[0]])
    return (
        f"{code:9} {language_name(code)[:24]:24} {ratios} {tokens['decay-all'] / tokens['decay-mid']:14.3f}  {scripts}"
    )


if __name__ == "__main__":
    main()
