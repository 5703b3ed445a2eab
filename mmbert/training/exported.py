"""What a running phase tells Prometheus (mmbert/metrics.py), of values that training knows already."""

from __future__ import annotations

import time

from composer import Callback, Logger, State
from composer.utils import dist

from mmbert import metrics
from mmbert.training.history import History


class Exported(Callback):
    """Step, tokens, loss and times of process 0, and each process's wait for the loader. Stands behind the history."""

    def __init__(self, history: History, checkpoint_tokens: int) -> None:
        self._history, self._checkpoint_tokens = history, checkpoint_tokens
        self._leads = dist.get_global_rank() == 0
        self._rank = str(dist.get_global_rank())
        self._asked = self._ended = 0.0
        self._points = len(history.points)

    def fit_start(self, state: State, logger: Logger) -> None:
        self._ended = time.monotonic()
        if self._leads:
            metrics.set_to(metrics.CHECKPOINT_TOKENS, self._checkpoint_tokens)
            metrics.set_to(metrics.STEP, int(state.timestamp.batch.value))
            metrics.set_to(metrics.STEP_TIME, time.time())
            metrics.set_to(metrics.TRAINING, 1)

    def before_dataloader(self, state: State, logger: Logger) -> None:
        self._asked = time.monotonic()

    def after_dataloader(self, state: State, logger: Logger) -> None:
        metrics.add(metrics.LOADER_WAIT, time.monotonic() - self._asked, self._rank)

    def batch_end(self, state: State, logger: Logger) -> None:
        if not self._leads:
            return
        before, self._ended = self._ended, time.monotonic()
        metrics.observe(metrics.STEP_SECONDS, self._ended - before)
        metrics.set_to(metrics.STEP, int(state.timestamp.batch.value))
        metrics.set_to(metrics.STEP_TIME, time.time())
        metrics.add(metrics.TOKENS, int(state.timestamp.token.value) - int(state.previous_timestamp.token.value))
        metrics.set_to(metrics.LOSS, self._history.guard.meter.batch.loss)
        if len(self._history.points) > self._points:
            self._points = len(self._history.points)
            metrics.set_to(metrics.TOKENS_PER_SECOND, self._history.points[-1].tokens_per_second)

    def fit_end(self, state: State, logger: Logger) -> None:
        if self._leads:
            metrics.set_to(metrics.TRAINING, 0)
