"""What happens around each batch: learning rate, seeds, resume checkpoints, snapshots."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from composer import Callback, Logger, State
from composer.utils import dist

from mmbert.loader.batch import Batch
from mmbert.loader.state import LoaderState
from mmbert.training import canonical
from mmbert.training.composer_model import seed_everything_for
from mmbert.training.history import History


class LearningRate(Callback):
    """Sets each batch's learning rate from the tokens seen before it, and its random state from its number."""

    def __init__(self, peak: float, multiplier: Callable[[int], float], seed: int) -> None:
        self.peak, self.multiplier, self.seed = peak, multiplier, seed

    def batch_start(self, state: State, logger: Logger) -> None:
        rate = self.peak * self.multiplier(int(state.timestamp.token.value))
        for group in state.optimizers[0].param_groups:
            group["lr"] = rate
        seed_everything_for(int(state.timestamp.batch.value), self.seed, dist.get_global_rank())


class Resume(Callback):
    """Writes a resume checkpoint every `every` tokens: Composer's, with the loader's state of what was consumed."""

    def __init__(
        self, every: int, scratch: Path, history: History, save: Callable[[int, int, dict[str, Path]], None]
    ) -> None:
        self.every, self.scratch, self.history, self.save = every, scratch, history, save
        self.trainer: Any = None
        self._next = every

    def fit_start(self, state: State, logger: Logger) -> None:
        self._next = (int(state.timestamp.token.value) // self.every + 1) * self.every

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        tokens = int(state.timestamp.token.value)
        if tokens < self._next:
            return
        self._next = (tokens // self.every + 1) * self.every
        loader = gathered_state(state.batch["whole"])
        composer_file = Path(self.trainer.save_checkpoint(str(self.scratch / "resume.pt")))
        if dist.get_global_rank() != 0:
            return
        files = {"composer.pt": composer_file, "loader.bin": self.scratch / "loader.bin"}
        files["loader.bin"].write_bytes(loader.to_bytes())
        files["history.json"] = self.scratch / "history.json"
        files["history.json"].write_text(json.dumps([asdict(p) for p in self.history.points]), "utf-8")
        files.update({p.name: p for p in self.scratch.glob("snapshot-*.safetensors")})
        self.save(int(state.timestamp.batch.value), tokens, files)


class Snapshots(Callback):
    """Keeps the weights at evenly spaced points of the phase, for an average of checkpoints; its end comes last."""

    def __init__(self, count: int, tokens: int, scratch: Path) -> None:
        self.marks = [tokens * (i + 1) // count for i in range(count - 1)]
        self.scratch = scratch

    def batch_end(self, state: State, logger: Logger) -> None:
        tokens = int(state.timestamp.token.value)
        for index, mark in enumerate(self.marks):
            path = self.scratch / f"snapshot-{index:03d}.safetensors"
            if tokens >= mark and not path.exists() and dist.get_global_rank() == 0:
                canonical.save_weights(path, state.model.model)


def gathered_state(batch: Batch) -> LoaderState:
    """The loader's state after a batch, of the lanes of all ranks."""
    return LoaderState.merge(dist.all_gather_object(batch.state))
