"""What a training run says of its speed when it ends, and what planning reads of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from mmbert.planning.gpus import find_device
from mmbert.planning.throughput import Cluster
from mmbert.planning.utilization import Measured

HARDWARE, PROCESSES, THREADS = "mmbert.hardware", "mmbert.processes", "mmbert.threads"
"""Tags: the device's own name (`cpu` for one), how many processes, and of a CPU the threads of each."""
ACTUAL, EXPECTED, RATIO = (
    "plan/actual_tokens_per_second",
    "plan/expected_tokens_per_second",
    "plan/actual_over_expected",
)
SHARE, LOW, HIGH = "plan/actual_utilization", "plan/lowest_tokens_per_second", "plan/highest_tokens_per_second"


class Run(Protocol):
    """A finished run in MLflow."""

    @property
    def run_id(self) -> str: ...
    @property
    def metrics(self) -> Mapping[str, float]: ...
    @property
    def params(self) -> Mapping[str, str]: ...
    @property
    def tags(self) -> Mapping[str, str]: ...


class Point(Protocol):
    """A point of the training history."""

    @property
    def tokens(self) -> int: ...
    @property
    def tokens_per_second(self) -> float: ...
    @property
    def tflops_per_second(self) -> float: ...


def cluster_of(device_name: str, processes: int, nodes: int, threads: int) -> Cluster | None:
    """What a training ran on; None where its devices are not known."""
    device = find_device(device_name)
    if device is None:
        return None
    return Cluster(device, processes * threads if device.is_cpu else processes, processes if device.is_cpu else nodes)


def summary(points: Sequence[Point], cluster: Cluster) -> dict[str, float]:
    """Tokens a second and utilisation over the whole of a history, as metrics; empty where it says nothing.

    Without the first point, if there are others: it has the loader's start and compilation.
    """
    begin = points[0].tokens if len(points) > 1 else 0
    tokens, seconds, work = 0, 0.0, 0.0
    for point in points:
        taken = (point.tokens - begin) / point.tokens_per_second
        tokens, seconds, begin = tokens + point.tokens - begin, seconds + taken, point.tokens
        work += taken * point.tflops_per_second * 1e12
    if not tokens:
        return {}
    return {ACTUAL: tokens / seconds, SHARE: work / seconds / cluster.peak_a_process}


def measured(runs: Sequence[Run]) -> list[Measured]:
    """Of finished training runs those that say how fast they were, on devices that are known."""
    found = [_measured(run) for run in runs]
    return [one for one in found if one is not None]


def _measured(run: Run) -> Measured | None:
    device = find_device(run.tags.get(HARDWARE, ""))
    try:
        phase = run.params["phase"]
        if device is None or not run.metrics[SHARE] > 0:
            return None
        return Measured(
            run_id=run.run_id,
            device=device.name,
            hidden_size=int(run.params["recipe.model.hidden_size"]),
            num_hidden_layers=int(run.params["recipe.model.num_hidden_layers"]),
            vocab_size=int(run.params["recipe.model.vocab_size"]),
            max_seq_len=int(run.params[f"recipe.phases.{phase}.max_seq_len"]),
            processes=int(run.tags[PROCESSES]),
            share=run.metrics[SHARE],
            tokens_per_second=run.metrics[ACTUAL],
            planned_tokens_per_second=run.metrics.get(EXPECTED),
        )
    except (KeyError, ValueError):
        return None
