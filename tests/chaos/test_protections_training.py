"""What makes a resumed phase the same to the bit: without it another batch, or another random number, comes."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mmbert.errors import InfrastructureError
from mmbert.loader.batch import Batch
from mmbert.loader.lane import StreamRows
from mmbert.loader.loader import Loader, LoaderSettings, lost_worker_explained
from mmbert.loader.masking import MaskingRule
from mmbert.loader.state import LoaderState
from mmbert.training import callbacks

ROWS, LANES = 64, 4


@dataclass(frozen=True)
class Rows:
    """A row of some documents, whose tokens tell where they are from."""

    def __call__(self, stream: int, row: int) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        lengths = np.random.default_rng([stream, row]).integers(3, 40, 4)
        return np.full(lengths.sum(), 10 + stream * ROWS + row, np.uint32), lengths


def loader(settings: LoaderSettings, state: LoaderState | None = None) -> Loader:
    streams = [StreamRows(name, 1.0, 0, ROWS, ROWS * 80, np.array([0, ROWS])) for name in ("a/deu_Latn", "a/eng_Latn")]
    return Loader(streams, Rows(), settings, 0, 1, workers=0, state=state)


@pytest.fixture
def settings(tmp_path: Any) -> LoaderSettings:
    masking = MaskingRule(0.3, 200, 4, (0, 1, 2, 4))
    return LoaderSettings(1, LANES, 64, lambda tokens: LANES, masking, tmp_path, buffer_tokens=2_000)


def content(batches: list[Batch]) -> list[tuple[bytes, bytes]]:
    return [(batch.input_ids.numpy().tobytes(), batch.targets.numpy().tobytes()) for batch in batches]


def test_a_phase_goes_on_with_the_state_that_travels_with_the_last_batch(settings: LoaderSettings) -> None:
    batches = list(islice(loader(settings), 6))
    wanted = content(batches)[3:]
    saved = LoaderState.from_bytes(batches[2].state.to_bytes())
    assert content(list(islice(loader(settings, saved), 3))) == wanted
    # Without: the loader's own state, which is ahead by what was made and not trained yet.
    ahead = LoaderState.from_bytes(batches[3].state.to_bytes())
    assert content(list(islice(loader(settings, ahead), 3))) != wanted


def test_without_the_lanes_state_a_phase_sees_its_data_again(settings: LoaderSettings) -> None:
    batches = list(islice(loader(settings), 6))
    assert content(list(islice(loader(settings, None), 3))) != content(batches)[3:]


def drawn(first: int, last: int) -> list[float]:
    """A number that a dropout would draw in each of the batches, by a process that begins with `first`."""
    rate = callbacks.LearningRate(1.0, lambda tokens: 1.0, seed=5)
    torch.manual_seed(5)
    found = []
    for batch in range(first, last):
        clock = SimpleNamespace(batch=SimpleNamespace(value=batch), token=SimpleNamespace(value=batch * 100))
        state: Any = SimpleNamespace(timestamp=clock, optimizers=[SimpleNamespace(param_groups=[{}])])
        logger: Any = None
        rate.batch_start(state, logger)
        found.append(float(torch.rand(1)))
    return found


def test_random_numbers_are_of_the_batch_and_not_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert drawn(0, 6)[3:] == drawn(3, 6)
    monkeypatch.setattr(callbacks, "seed_everything_for", lambda *_: None)
    assert drawn(0, 6)[3:] != drawn(3, 6)


def test_a_loader_process_killed_at_any_moment_is_infrastructure() -> None:
    workers = torch.utils.data.DataLoader(list(range(1_000)), num_workers=1, generator=torch.Generator())
    parts: Any = iter(workers)
    next(parts)

    def wait_for_the_signal() -> None:
        os.kill(parts._workers[0].pid, signal.SIGKILL)
        for _ in range(1_000):
            time.sleep(0.01)

    with pytest.raises(InfrastructureError, match="a loader process was killed"), lost_worker_explained():
        wait_for_the_signal()
