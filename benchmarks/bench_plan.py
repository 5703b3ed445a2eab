"""The planner's forecast against training: tokens/s of the tiny preset on this machine, calibrated by runs of its own.

Two phases of the tiny preset (128 and 512 tokens), shortened, are trained in turn, with other seeds each round. After a
round that counts nothing, rounds go by fours: the planner learns from the first and the last, as it would from MLflow,
and is judged by the two between, so that a machine that becomes slower or faster is so for both. The error is the
forecast's distance from the median of the runs it is judged by, the larger one of the two phases. Printed besides: what
it says without having learnt, and of the one phase having learnt from the other alone. The demo's text is curated and
tokenized first, lightly.

    .venv/bin/python benchmarks/bench_plan.py [--rounds 8] [--threads 2]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmbert.planning.throughput import Cluster
    from mmbert.planning.utilization import Measured
    from mmbert.recipe import Recipe

PHASES = ("pretrain", "extend")
TOKENS = "40k"
OVERRIDES = (
    *(f"phases.{phase}.tokens={TOKENS}" for phase in PHASES),
    "phases.pretrain.batch={global_batch_size: 16, microbatch_size: 16}",
    "phases.pretrain.schedule={}",
    "training.log_every=2",
    # How well the text is cleaned makes no training faster.
    "curation={groups: 1}",
    # Held-out scores are no part of a training's speed.
    "evaluation.bits_per_byte_bytes_per_language=1",
    "release.gate={}",
    "name=bench-plan",
)


@dataclass(frozen=True)
class Data:
    documents: list[str]
    tokenizer: str
    shards: list[str]
    mixtures: dict[str, str]


class Bench:
    def __init__(self, folder: Path, threads: int) -> None:
        self.root, self.threads = str(folder / "root"), threads
        self.recipe = self._recipe(17)

    def _run(self, component: str, **arguments: Any) -> str:
        from components.contract import get_component
        from components.runtime import run_component

        return run_component(get_component(component), arguments, self.root).uri

    def _recipe(self, seed: int) -> str:
        return self._run("recipe", preset="tiny", overrides=[*OVERRIDES, f"seed={seed}"])

    def data(self) -> Data:
        documents = [self._run("curate", recipe=self.recipe, group="0")]
        tokenizer = self._run("tokenizer", recipe=self.recipe, documents=documents)
        shards = [self._run("tokenize", recipe=self.recipe, documents=documents[0], tokenizer=tokenizer)]
        mixtures = {p: self._run("mixture", recipe=self.recipe, shards=shards, phase=p) for p in PHASES}
        return Data(documents, tokenizer, shards, mixtures)

    def train(self, data: Data, phase: str, seed: int, cluster: Cluster) -> Measured:
        from mmbert import artifacts
        from mmbert.planning import calibration
        from mmbert.tracking.finished import FinishedRun
        from mmbert.training.finish import HISTORY
        from mmbert.training.history import HistoryPoint

        uri = self._run(
            "train", recipe=self._recipe(seed), phase=phase, mixture=data.mixtures[phase], shards=data.shards,
            tokenizer=data.tokenizer, documents=data.documents,
        )  # fmt: skip
        points = [HistoryPoint(**point) for point in artifacts.open_artifact(uri).read_json(HISTORY)]
        recipe = self.read()
        params = {"phase": phase, f"recipe.phases.{phase}.max_seq_len": str(getattr(recipe.phases, phase).max_seq_len)}
        params |= {f"recipe.model.{key}": str(value) for key, value in recipe.model.model_dump().items()}
        tags = {calibration.HARDWARE: "cpu", calibration.PROCESSES: "1", calibration.THREADS: str(self.threads)}
        finished = FinishedRun(f"{phase} {seed}", calibration.summary(points, cluster), params, tags)
        (measured,) = calibration.measured([finished])
        return measured

    def read(self) -> Recipe:
        from components.planning import read_recipe

        return read_recipe(self.recipe)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8, choices=range(4, 41, 4))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    # As training runs here; read when torch is imported.
    os.environ |= {"OMP_NUM_THREADS": str(options.threads), "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    with tempfile.TemporaryDirectory(prefix="bench-plan-") as name:
        os.environ["MMBERT_CACHE"] = str(Path(name) / "cache")
        judge(Bench(Path(name), options.threads), options.rounds)


def judge(bench: Bench, rounds: int) -> None:
    from mmbert.model.config import config_from_recipe
    from mmbert.planning.calibration import cluster_of
    from mmbert.planning.plan import planned_speed

    cluster = cluster_of("cpu", 1, 1, bench.threads)
    assert cluster is not None
    data = bench.data()
    runs: dict[str, list[Measured]] = {phase: [] for phase in PHASES}
    for number in range(1 + rounds):
        for phase in PHASES:
            runs[phase].append(bench.train(data, phase, 100 + number, cluster))
    learning = {phase: [run for n, run in enumerate(runs[phase][1:]) if n % 4 in {0, 3}] for phase in PHASES}
    judging = {phase: [run for n, run in enumerate(runs[phase][1:]) if n % 4 in {1, 2}] for phase in PHASES}
    recipe = bench.read()
    learnt = [run for phase in PHASES for run in learning[phase]]
    errors = {}
    for phase, before in zip(PHASES, reversed(PHASES), strict=True):
        settings = getattr(recipe.phases, phase)
        config = config_from_recipe(recipe.model, settings.rope_theta)
        judged = [run.tokens_per_second for run in judging[phase]]
        middle = statistics.median(judged)
        every = ", ".join(f"{run.tokens_per_second:,.0f}" for run in runs[phase])
        print(f"{phase}: tokens/s of {1 + rounds} runs {every}; the median of those it is judged by {middle:,.0f}")
        ways = {"learnt": learnt, "learnt from the other phase alone": learning[before], "not learnt": []}
        for way, given in ways.items():
            found = planned_speed(config, settings, recipe.training.lanes, cluster, given)
            error = 100 * abs(found.expected / middle - 1)
            errors[phase, way] = error
            print(
                f"  planned, {way}: {found.expected:,.0f} ({found.low:,.0f} to {found.high:,.0f}), {error:.1f}% away; "
                f"{sum(found.low <= one <= found.high for one in judged)} of {len(judged)} runs within"
            )
    worst = max(errors[phase, "learnt"] for phase in PHASES)
    print(f"figure: plan_error {worst:.1f} % (goal <= 25)")


if __name__ == "__main__":
    main()
