"""Seconds of the suite `demo` on a model of the tiny recipe's shape, imports not counted.

What `mmbert evaluate MODEL --suite demo` does after its imports: the model is read, all four tasks are run on the text
that the tiny recipe holds out, with the settings of that recipe and 1,000 bootstrap samples, and scores.json is
written. The weights are random, which changes no time; the tokenizer is trained on the held-out text. Making that text
and the model is not counted (a user's second evaluation finds the text made). The goal holds for two cores.

    .venv/bin/python benchmarks/bench_evaluate.py [--threads 2]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import sklearn.linear_model
import torch

from mmbert.data.documents import document_files, read_documents, write_documents
from mmbert.data.tokenizer import train_bpe
from mmbert.evaluation.suites import demo
from mmbert.evaluation.suites.data import DataAccess
from mmbert.evaluation.suites.demo_suite import HELD_OUT_TEXT, SUITE
from mmbert.evaluation.suites.demo_text import packaged_text
from mmbert.evaluation.suites.models import open_model
from mmbert.evaluation.suites.runner import Options, evaluate
from mmbert.model.config import config_from_recipe
from mmbert.model.initialization import new_model
from mmbert.places import cache_folder
from mmbert.recipe import load_recipe
from mmbert.release.hugging_face import export

GOAL = 20
_IMPORTED = (demo, sklearn.linear_model)  # so that no task's time holds an import


def make_model(held_out: Path, folder: Path) -> Path:
    recipe = load_recipe("tiny")
    text, words = folder / "text", folder / "tokenizer"
    for file in document_files([held_out.parent], held_out.name):
        place = text / "train" / file.source / file.language / file.path.name
        write_documents(place, list(read_documents(file.path)))
    train_bpe([text], recipe.model, 30_000, words)
    model = new_model(config_from_recipe(recipe.model, recipe.phases.decay.rope_theta), recipe.seed)
    out = folder / "model"
    export(model.weights(), model.config, words, recipe.phases.decay.max_seq_len, out, card="")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cache = cache_folder()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begin = time.perf_counter()
        held_out = packaged_text(cache)
        model = make_model(held_out, folder)
        print(
            f"held-out text and model in {time.perf_counter() - begin:.1f} s, {arguments.threads} threads", flush=True
        )
        begin = time.perf_counter()
        opened = open_model(str(model), folder / "scratch", cache)
        scores = evaluate(
            opened.model,
            SUITE,
            folder / "out",
            kind=opened.kind,
            data=DataAccess(folders={HELD_OUT_TEXT.repo: held_out}),
            cache=folder / "cache",
            options=Options(seeds=(17,), device="cpu"),
        )
        seconds = time.perf_counter() - begin
    assert {score.task for score in scores} == {task.name for task in SUITE.tasks}
    print(f"figure: evaluate_demo_seconds {seconds:.1f} s (goal <= {GOAL})", flush=True)


if __name__ == "__main__":
    main()
