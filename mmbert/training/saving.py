"""Callbacks that save while a phase runs: resume and permanent checkpoints, and the decay's snapshots."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from composer import Callback, Logger, State, Timestamp
from composer.utils import dist

from mmbert import progress
from mmbert.loader.batch import Batch
from mmbert.loader.state import LoaderState
from mmbert.model.head import MaskedLanguageModel
from mmbert.training import canonical
from mmbert.training.history import History
from mmbert.training.resume import CheckpointStore, Saved

COMPOSER = "composer.pt"
LOADER = "loader.bin"
HISTORY = "history.json"


class Checkpoints(Callback):
    """Writes a resume checkpoint every `every` tokens and a permanent one every `permanent_every`.

    Copied to the local disk while training waits, and uploaded while it goes on: by process 0, though all take part.
    `save_state` writes the canonical state into a folder.
    """

    def __init__(
        self,
        store: CheckpointStore,
        every: int,
        permanent_every: int | None,
        scratch: Path,
        history: History,
        save_state: Callable[[Path, Timestamp], None],
    ) -> None:
        self.store, self.every, self.permanent_every = store, every, permanent_every
        self.scratch, self.history, self.save_state = scratch, history, save_state
        self.trainer: Any = None

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        before, now = int(state.previous_timestamp.token.value), int(state.timestamp.token.value)
        permanent = self.permanent_every is not None and before // self.permanent_every < now // self.permanent_every
        if not permanent and before // self.every == now // self.every:
            return
        loader = gathered_state(state.batch["whole"])
        self.history.share(state)
        folder = self.scratch / f"resume-{int(state.timestamp.batch.value)}"
        self.trainer.save_checkpoint(str(folder / COMPOSER))
        if dist.get_global_rank() == 0:
            (folder / LOADER).write_bytes(loader.to_bytes())
            (folder / HISTORY).write_text(json.dumps([asdict(p) for p in self.history.points]), "utf-8")
            batch = int(state.timestamp.batch.value)
            saved = Saved(batch, now, folder, tuple(sorted(self.scratch.glob("snapshot-*.safetensors"))))
            self.store.save(saved, self._permanent(state) if permanent else None)

    def _permanent(self, state: State) -> Saved:
        batch, tokens = int(state.timestamp.batch.value), int(state.timestamp.token.value)
        folder = self.scratch / f"permanent-{batch}"
        folder.mkdir()
        self.save_state(folder, state.timestamp)
        return Saved(batch, tokens, folder)


class Snapshots(Callback):
    """Keeps the weights at evenly spaced points of the phase, for an average of checkpoints; its end comes last.

    Points at or before `begin`, the phase's tokens before this piece of work, are left out.
    """

    def __init__(self, count: int, tokens: int, begin: int, scratch: Path, model: MaskedLanguageModel) -> None:
        marks = {i: tokens * (i + 1) // count for i in range(count - 1)}
        self.marks = {i: mark for i, mark in marks.items() if mark > begin}
        self.scratch, self.model = scratch, model
        if (missed := len(marks) - len(self.marks)) and dist.get_global_rank() == 0:
            print(
                f"{missed} of the phase's {count} snapshots (merge.snapshots) lie at or before token {begin:,}, "
                "where training begins; they are left out of the average",
                flush=True,
            )

    def batch_end(self, state: State, logger: Logger) -> None:
        tokens = int(state.timestamp.token.value)
        for index, mark in self.marks.items():
            path = self.scratch / f"snapshot-{index:03d}.safetensors"
            if tokens >= mark and not path.exists() and dist.get_global_rank() == 0:
                canonical.save_weights(path, self.model)


class Progress(Callback):
    """A line every `every` batches, for whoever watches; its rate is that since the line before."""

    def __init__(self, every: int, tokens: int) -> None:
        self.every, self.tokens = every, tokens
        self._when, self._before = 0.0, 0

    def fit_start(self, state: State, logger: Logger) -> None:
        self._when, self._before = time.monotonic(), int(state.timestamp.token.value)

    def batch_end(self, state: State, logger: Logger) -> None:
        batch = int(state.timestamp.batch.value)
        if batch % self.every == 0 and dist.get_global_rank() == 0:
            loss = state.total_loss_dict["loss/train/total"]
            tokens = int(state.timestamp.token.value)
            now = time.monotonic()
            a_second = (tokens - self._before) / max(now - self._when, 1e-9)
            self._when, self._before = now, tokens
            left = progress.duration(max(0, self.tokens - tokens) / a_second)
            print(
                f"batch {batch:,}: {tokens:,} of {self.tokens:,} tokens, loss {loss:.4f}, "
                f"{progress.rate(a_second, 'tokens')}, {left} left",
                flush=True,
            )


def gathered_state(batch: Batch) -> LoaderState:
    """The loader's state after a batch, of the lanes of all ranks."""
    return LoaderState.merge(dist.all_gather_object(batch.state))
