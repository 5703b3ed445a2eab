"""Make `thresholds.csv` from FineWeb2's configurations by language.

    python -m mmbert.recipe.make_thresholds CONFIGS_FOLDER [OUT.csv]

Input: the folder `configs` of https://github.com/huggingface/fineweb-2 (Apache-2.0), one YAML file a language. The
committed table was made from commit d0defb24f193bb9a5a11b8b14524a03c4858e1b6.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import yaml

from mmbert.recipe.thresholds import COLUMNS, LIST_SEPARATOR


def row_of(language: str, config: dict[str, Any]) -> dict[str, str]:
    """One row; n-gram limits in order of n, which is 2 to 4 for `top_n_grams` and 5 to 10 for `dup_n_grams`."""
    row = {"language": language} | {column: str(config[column]) for column in COLUMNS if column in config}
    for name, sizes in (("top_n_grams", range(2, 5)), ("dup_n_grams", range(5, 11))):
        if [n for n, _ in config[name]] != list(sizes):
            raise ValueError(f"{language}: {name} has other sizes than {list(sizes)}")
        row[name] = LIST_SEPARATOR.join(str(limit) for _, limit in config[name])
    return row | {"stop_words": LIST_SEPARATOR.join(config["stopwords"])}


def main(configs: str, out: str = "") -> None:
    target = Path(out) if out else Path(__file__).with_name("thresholds.csv")
    with target.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for path in sorted(Path(configs).glob("*.yml")):
            writer.writerow(row_of(path.stem, yaml.safe_load(path.read_text("utf-8"))))


if __name__ == "__main__":
    main(*sys.argv[1:])
