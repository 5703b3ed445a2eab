"""A phase's speed against the plan for it, told to MLflow when it ends, so that later plans can learn from it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

import torch

from mmbert.model.config import EncoderConfig
from mmbert.planning import calibration
from mmbert.planning.plan import planned_speed
from mmbert.ranks import Alone
from mmbert.recipe.schema import PhaseTraining
from mmbert.tracking import ComponentRun
from mmbert.training.execution import Execution
from mmbert.training.history import HistoryPoint


def log_plan_against_actual(
    config: EncoderConfig,
    settings: PhaseTraining,
    lanes: int,
    execution: Execution,
    points: Sequence[HistoryPoint],
    ranks: Alone,
    run: ComponentRun,
) -> None:
    """Metrics `plan/...` and tags of the hardware; docs/planning.md names them. A trained phase never fails for it."""
    with _only_warned():
        name = torch.cuda.get_device_name() if execution.device == "gpu" else "cpu"
        threads = torch.get_num_threads()
        run.set_tags(
            {calibration.HARDWARE: name, calibration.PROCESSES: ranks.size, calibration.THREADS: threads}
        )  # fmt: skip
        a_node = int(os.environ.get("LOCAL_WORLD_SIZE", ranks.size))
        cluster = calibration.cluster_of(name, ranks.size, max(1, ranks.size // a_node), threads)
        if cluster is None:
            return
        found = calibration.summary(points, cluster)
        if not found:
            return
        run.log_metrics(found)
        planned, actual = planned_speed(config, settings, lanes, cluster), found[calibration.ACTUAL]
        run.log_metrics(
            {
                calibration.EXPECTED: planned.expected,
                calibration.LOW: planned.low,
                calibration.HIGH: planned.high,
                calibration.RATIO: actual / planned.expected,
            }
        )
        print(
            f"{actual:,.0f} tokens/s; the plan for such hardware is {planned.expected:,.0f} ({planned.low:,.0f} to "
            f"{planned.high:,.0f})",
            flush=True,
        )


@contextlib.contextmanager
def _only_warned() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever it is, the weights are there
        print(f"warning: the plan was not compared with this run: {type(error).__name__}: {error}", flush=True)
