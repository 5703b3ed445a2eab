"""The training history: what a phase logs every few batches, kept in its artifact and sent to MLflow."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from composer import Callback, Logger, State
from composer.utils import dist

from mmbert.loader.batch import Batch
from mmbert.model.config import EncoderConfig
from mmbert.planning.flops import step_flops
from mmbert.planning.gpus import peak_bf16_flops
from mmbert.tracking import ComponentRun
from mmbert.training.guard import Guard
from mmbert.training.meter import BatchSignals


@dataclass(frozen=True)
class HistoryPoint:
    """Over the batches since the point before, of all processes. `tokens` are real tokens since the phase's start.

    Losses and gradient norms leave skipped batches out. docs/signals.md describes each.
    """

    tokens: int
    batch: int
    loss: float
    """Mean -ln p of the masked tokens, of the batches' means."""
    learning_rate: float
    mask_probability: float
    global_batch_size: int
    tokens_per_second: float
    padding_share: float
    loader_wait_share: float
    """Share of the time that the processes waited for a batch."""
    checkpoint_seconds: float
    """In which training stood still to save."""
    skipped_batches: int
    """Since the phase's start."""
    tflops_per_second: float
    """Model FLOPs (10^12) a second and process."""
    mfu: float | None
    """Share of the GPU's bf16 peak; None where that is not known."""
    gradient_norm: float
    gradient_norms: dict[str, float]
    """By group of parameters."""
    losses: dict[str, float]
    """Mean -ln p of the masked tokens, by group of languages."""

    def metrics(self) -> dict[str, float]:
        """The point as flat metrics; `tokens_seen` stands for `tokens`, which is their step."""
        values = asdict(self)
        del values["tokens"], values["batch"]
        by_group = {"loss": values.pop("losses"), "gradient_norm": values.pop("gradient_norms")}
        flat = {name: float(value) for name, value in values.items() if value is not None}
        flat.update({f"{name}.{g}": value for name, parts in by_group.items() for g, value in parts.items()})
        return {**flat, "tokens_seen": float(self.tokens)}


@dataclass
class _Window:
    """Sums since the last point. `padded`, `flops` and `waited` are of this process; what was shared of them before, of
    all processes, is in `shared`."""

    since: float
    tokens_before: int
    padded: int = 0
    flops: int = 0
    waited: float = 0.0
    shared: tuple[float, float, float] = (0.0, 0.0, 0.0)
    saving: float = 0.0
    seconds_before: float = 0.0
    """Before a resume."""

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.since


class History(Callback):
    """Collects the history and sends it to MLflow. Stands behind the meter and the guard that it reads.

    What stands since the last point is part of resume checkpoints, so that a point covers the same batches in a run
    that was killed between two points. Process 0's state is saved for all: `share` makes it hold the sums of all.
    """

    def __init__(
        self,
        run: ComponentRun,
        every: int,
        mask_probability: float,
        points: list[HistoryPoint],
        guard: Guard,
        config: EncoderConfig,
    ) -> None:
        """`points` of before a resume come first."""
        self.run, self.every, self.mask_probability, self.points = run, every, mask_probability, points
        self.guard, self.config = guard, config
        self._batches: list[BatchSignals] = []
        self._window = _Window(time.monotonic(), 0)
        self._goes_on = False
        self._peak: float | None = None
        self._loader_asked = self._batch_ended = 0.0
        self._global_batch_size = 0

    def share(self, state: State) -> None:
        """Add this process's sums to those of the others. All processes call it."""
        window = self._window
        mine = torch.tensor([window.padded, window.flops, window.waited], dtype=torch.float64)
        sums = state.device.tensor_to_device(mine)
        dist.all_reduce(sums, reduce_operation="SUM")
        padded, flops, waited = (torch.tensor(window.shared, dtype=torch.float64) + sums.cpu()).tolist()
        window.shared = (padded, flops, waited)
        window.padded = window.flops = 0
        window.waited = 0.0

    def state_dict(self) -> dict[str, Any]:
        window = self._window
        return {
            "batches": [asdict(batch) for batch in self._batches],
            "tokens_before": window.tokens_before,
            "shared": window.shared,
            "saving": window.saving,
            "seconds": window.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._batches = [BatchSignals(**batch) for batch in state["batches"]]
        self._window = _Window(
            time.monotonic(),
            state["tokens_before"],
            shared=state["shared"],
            saving=state["saving"],
            seconds_before=state["seconds"],
        )
        self._goes_on = True

    def fit_start(self, state: State, logger: Logger) -> None:
        if self._goes_on:
            self._window.since = time.monotonic()
        else:
            self._window = _Window(time.monotonic(), int(state.timestamp.token.value))
        self._batch_ended = 0.0
        if state.device.name == "gpu":
            name = torch.cuda.get_device_name()
            self._peak = peak_bf16_flops(name)
            if self._peak is None and dist.get_global_rank() == 0:
                print(f"no MFU is logged: the peak of '{name}' is not known (mmbert/planning/gpus.py)", flush=True)

    def before_dataloader(self, state: State, logger: Logger) -> None:
        self._loader_asked = time.monotonic()
        if self._batch_ended:
            self._window.saving += self._loader_asked - self._batch_ended

    def after_dataloader(self, state: State, logger: Logger) -> None:
        self._window.waited += time.monotonic() - self._loader_asked

    def before_forward(self, state: State, logger: Logger) -> None:
        # Of each microbatch, since rows that fill up the last one are computed too.
        self._window.padded += state.batch["whole"].padded_tokens

    def batch_end(self, state: State, logger: Logger) -> None:
        batch: Batch = state.batch["whole"]
        lengths = batch.cu_seqlens.diff().numpy()
        self._window.flops += step_flops(self.config, batch.tokens, len(batch.targets), lengths).total
        self._global_batch_size = batch.rows * dist.get_world_size()
        if not self.guard.skipped_this_batch:
            self._batches.append(self.guard.meter.batch)
        if int(state.timestamp.batch.value) % self.every == 0:
            self._flush(state)
        self._batch_ended = time.monotonic()

    def fit_end(self, state: State, logger: Logger) -> None:
        if int(state.timestamp.token.value) > self._window.tokens_before:
            self._flush(state)

    def _flush(self, state: State) -> None:
        """A point of the batches since the last; where all of them were skipped, the next point has them too."""
        if not self._batches:
            return
        self.share(state)
        window, batches = self._window, self._batches
        padded, flops, waited = window.shared
        seconds, world = max(window.seconds, 1e-9), dist.get_world_size()
        flops_per_second = flops / seconds / world
        total = int(state.timestamp.token.value)
        tokens = total - window.tokens_before
        point = HistoryPoint(
            tokens=total,
            batch=int(state.timestamp.batch.value),
            loss=sum(b.loss for b in batches) / len(batches),
            learning_rate=float(state.optimizers[0].param_groups[0]["lr"]),
            mask_probability=self.mask_probability,
            global_batch_size=self._global_batch_size,
            tokens_per_second=tokens / seconds,
            padding_share=padded / (padded + tokens),
            loader_wait_share=waited / world / seconds,
            checkpoint_seconds=window.saving,
            skipped_batches=self.guard.skipped,
            tflops_per_second=flops_per_second / 1e12,
            mfu=flops_per_second / self._peak if self._peak else None,
            gradient_norm=sum(b.gradient_norm for b in batches) / len(batches),
            gradient_norms={
                group: sum(b.squared_norms[group] ** 0.5 for b in batches) / len(batches)
                for group in sorted(batches[0].squared_norms)
            },
            losses=_ratios([b.loss_sums for b in batches], [b.masked for b in batches]),
        )
        self.points.append(point)
        self._batches, self._window = [], _Window(time.monotonic(), total)
        if dist.get_global_rank() == 0:
            self.run.log_metrics(point.metrics(), step=point.tokens)


def _ratios(sums: list[Mapping[str, float]], counts: list[Mapping[str, float]]) -> dict[str, float]:
    """Sum over count of each group that counts anything."""
    totals = {g: (sum(s[g] for s in sums), sum(c[g] for c in counts)) for g in sums[0]}
    return {group: total / count for group, (total, count) in totals.items() if count}
