"""What happens around each batch besides saving and signals: learning rate and random state."""

from __future__ import annotations

from collections.abc import Callable

from composer import Callback, Logger, State
from composer.utils import dist

from mmbert.training.composer_model import seed_everything_for


class LearningRate(Callback):
    """Sets each batch's learning rate from the tokens seen before it, and its random state from its number."""

    def __init__(self, peak: float, multiplier: Callable[[int], float], seed: int) -> None:
        self.peak, self.multiplier, self.seed = peak, multiplier, seed

    def batch_start(self, state: State, logger: Logger) -> None:
        rate = self.peak * self.multiplier(int(state.timestamp.token.value))
        for group in state.optimizers[0].param_groups:
            group["lr"] = rate
        seed_everything_for(int(state.timestamp.batch.value), self.seed, dist.get_global_rank())
