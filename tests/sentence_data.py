"""Small data sets of glue's and xtreme's sentence tasks, in the schemas of their cards on the hub.

Columns and classes: nyu-mll/glue, facebook/xnli, google-research-datasets/paws-x, cambridgeltl/xcopa,
allenai/social_i_qa, aps/super_glue (below https://huggingface.co/datasets/). The last two are scripts; their mirror
holds the hub's parquet export, <subset>/<split>/0000.parquet without a card. The label of a text is one that a small
model can learn: a word in it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features, Value

from tests.suite_data import write_data_set

WORDS = ("red", "blue", "old", "new", "stone", "river", "house", "bread", "green", "small", "large", "cold")
MARKS = ("yes", "no", "perhaps")
GLUE = {
    "cola": (("sentence",), 2, ("validation",)),
    "sst2": (("sentence",), 2, ("validation",)),
    "mrpc": (("sentence1", "sentence2"), 2, ("validation",)),
    "stsb": (("sentence1", "sentence2"), 1, ("validation",)),
    "qqp": (("question1", "question2"), 2, ("validation",)),
    "mnli": (("premise", "hypothesis"), 3, ("validation_matched", "validation_mismatched")),
    "qnli": (("question", "sentence"), 2, ("validation",)),
    "rte": (("sentence1", "sentence2"), 2, ("validation",)),
}
"""Columns with text, classes (1: a number from 0 to 5), and splits that are scored."""


def texts() -> list[str]:
    return [" ".join((*WORDS, *MARKS, "What was the cause effect"))] * 3


def classified(columns: tuple[str, ...], labels: int, count: int, seed: int, more: Mapping[str, Any] = {}) -> Dataset:
    rng = random.Random(f"{seed}{columns}")
    rows: dict[str, list[Any]] = {name: [] for name in (*columns, "label")}
    for _ in range(count):
        label = rng.randrange(max(labels, 2))
        for name in columns:
            rows[name].append(" ".join([*rng.sample(WORDS, rng.randint(2, 8)), MARKS[label]]))
        rows["label"].append(label if labels > 1 else label * 4 + rng.random())
    kind = ClassLabel(num_classes=labels) if labels > 1 else Value("float32")
    features = Features({**{name: Value("string") for name in columns}, "label": kind})
    return Dataset.from_dict(rows, features=features)


def write_glue(root: Path, tasks: tuple[str, ...] = tuple(GLUE), train: int = 48, tested: int = 24) -> None:
    subsets = {}
    for name in tasks:
        columns, labels, splits = GLUE[name]
        subsets[name] = {"train": classified(columns, labels, train, 0)}
        subsets[name] |= {split: classified(columns, labels, tested, 1 + i) for i, split in enumerate(splits)}
    write_data_set(root, "nyu-mll/glue", subsets)


def write_pairs(root: Path, repo: str, columns: tuple[str, str], labels: int, languages: tuple[str, ...]) -> None:
    """Data of xnli and paws-x: every language has all splits."""
    splits = {"train": 48, "validation": 16, "test": 20}
    write_data_set(
        root,
        repo,
        {
            code: {name: classified(columns, labels, n, len(name) + 7 * i) for name, n in splits.items()}
            for i, code in enumerate(languages)
        },
    )


def write_choices(root: Path, languages: tuple[str, ...]) -> None:
    """Data of xcopa, COPA and SIQA."""
    write_data_set(
        root,
        "cambridgeltl/xcopa",
        {code: {"validation": _copa(8, i), "test": _copa(12, i + 50)} for i, code in enumerate(languages)},
    )
    _export(root, "aps/super_glue", "copa", {"train": _copa(24, 91), "validation": _copa(10, 92)})
    rng = random.Random(5)
    rows = [
        {
            "context": " ".join(rng.sample(WORDS, 4)),
            "question": "What was the cause?",
            **{f"answer{c}": f"{rng.choice(WORDS)} {MARKS[int(i != n % 3)]}" for i, c in enumerate("ABC")},
            "label": str(1 + n % 3),
        }
        for n in range(24)
    ]
    _export(root, "allenai/social_i_qa", "default", {"train": Dataset.from_list(rows)})


def _copa(count: int, seed: int) -> Dataset:
    rng = random.Random(seed)
    rows = []
    for n in range(count):
        label = rng.randrange(2)
        choices = [" ".join([rng.choice(WORDS), MARKS[int(i != label)]]) for i in range(2)]
        question = rng.choice(("cause", "effect"))
        premise = " ".join(rng.sample(WORDS, 3))
        rows.append(
            {"premise": premise, "choice1": choices[0], "choice2": choices[1], "question": question, "idx": n,
             "label": label}
        )  # fmt: skip
    return Dataset.from_list(rows)


def _export(root: Path, repo: str, subset: str, splits: Mapping[str, Dataset]) -> None:
    for split, rows in splits.items():
        path = root / repo / subset / split / "0000.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows.to_parquet(str(path))
