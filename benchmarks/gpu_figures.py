"""Figure lines from the newest committed results of gpu_train.py, with chip, date and commit, or none.

A committed result is a JSON file that gpu_train.py wrote, in benchmarks/gpu_results/.

    .venv/bin/python benchmarks/gpu_figures.py
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
GOALS = {"base_1k": 300_000, "small_1k": 500_000, "base_8k": 230_000}


def committed() -> list[dict[str, Any]]:
    """The results that git knows, newest first."""
    listed = subprocess.check_output(["git", "-C", str(ROOT), "ls-files", "benchmarks/gpu_results/*.json"], text=True)
    found = [json.loads((ROOT / name).read_text("utf-8")) for name in listed.splitlines()]
    return sorted(found, key=lambda result: str(result["date"]), reverse=True)


def main() -> None:
    results = committed()
    for size, goal in GOALS.items():
        for result in results:
            rows = [row for row in result["results"] if row["size"] == size and "error" not in row]
            if rows:
                best = max(rows, key=lambda row: float(row["tokens_per_second"]))
                print(
                    f"figure: gpu_{size} {best['tokens_per_second']:.0f} tokens/s (goal >= {goal}) {best['name']} on "
                    f"{result['chip']}, {result['date']}, commit {result['commit']}"
                )
                break
        else:
            print(f"gpu_{size}: not measured; benchmarks/gpu_train.py does it on a machine with a GPU")


if __name__ == "__main__":
    main()
