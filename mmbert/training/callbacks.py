"""What happens around each batch: learning rate, seeds, the history."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from composer import Callback, Logger, State
from composer.utils import dist

from mmbert.errors import UserError
from mmbert.loader.batch import Batch
from mmbert.tracking import ComponentRun
from mmbert.training.composer_model import seed_everything_for


@dataclass(frozen=True)
class HistoryPoint:
    """Means over the batches since the point before. `tokens` are real tokens since the phase's start."""

    tokens: int
    batch: int
    loss: float
    """Mean -ln p of the masked tokens."""
    learning_rate: float
    mask_probability: float
    global_batch_size: int
    tokens_per_second: float
    padding_share: float


class LearningRate(Callback):
    """Sets each batch's learning rate from the tokens seen before it, and its random state from its number."""

    def __init__(self, peak: float, multiplier: Callable[[int], float], seed: int) -> None:
        self.peak, self.multiplier, self.seed = peak, multiplier, seed

    def batch_start(self, state: State, logger: Logger) -> None:
        rate = self.peak * self.multiplier(int(state.timestamp.token.value))
        for group in state.optimizers[0].param_groups:
            group["lr"] = rate
        seed_everything_for(int(state.timestamp.batch.value), self.seed, dist.get_global_rank())


class History(Callback):
    """Collects the training history and sends it to MLflow. A loss that is no number stops the phase."""

    def __init__(self, run: ComponentRun, every: int, mask_probability: float, points: list[HistoryPoint]) -> None:
        self.run, self.every, self.mask_probability, self.points = run, every, mask_probability, points
        self.language_tokens: dict[str, int] = {}
        self._window: list[tuple[float, int, int, int]] = []
        self._since = time.monotonic()

    def fit_start(self, state: State, logger: Logger) -> None:
        self._since = time.monotonic()

    def batch_end(self, state: State, logger: Logger) -> None:
        batch: Batch = state.batch["whole"]
        loss = float(state.total_loss_dict["loss/train/total"])
        number = int(state.timestamp.batch.value)
        if not math.isfinite(loss):
            raise UserError(
                f"batch {number}: the loss is {loss}; lower the phase's learning_rate or lengthen its warm-up"
            )
        self._window.append((loss, batch.tokens, batch.padded_tokens, batch.rows))
        if number % self.every == 0:
            self._flush(state)

    def fit_end(self, state: State, logger: Logger) -> None:
        if self._window:
            self._flush(state)

    def _flush(self, state: State) -> None:
        losses, tokens, padded, rows = zip(*self._window, strict=True)
        now = time.monotonic()
        world = dist.get_world_size()
        point = HistoryPoint(
            tokens=int(state.timestamp.token.value),
            batch=int(state.timestamp.batch.value),
            loss=sum(losses) / len(losses),
            learning_rate=float(state.optimizers[0].param_groups[0]["lr"]),
            mask_probability=self.mask_probability,
            global_batch_size=rows[-1] * world,
            tokens_per_second=sum(tokens) * world / max(now - self._since, 1e-9),
            padding_share=sum(padded) / (sum(padded) + sum(tokens)),
        )
        self.points.append(point)
        self._window, self._since = [], now
        if dist.get_global_rank() == 0:
            values = {k: float(v) for k, v in asdict(point).items() if k not in ("tokens", "batch")}
            self.run.log_metrics({**values, "tokens_seen": float(point.tokens)}, step=point.tokens)
