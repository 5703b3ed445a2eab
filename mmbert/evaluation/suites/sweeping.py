"""The runs of a fine-tuned task: one for each seed, at a learning rate that is given or found by a sweep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy.typing as npt

from mmbert.evaluation.suites.base import Setup
from mmbert.evaluation.suites.keeping import kept_arrays

Outputs = Mapping[str, npt.NDArray[Any]]
"""A run's outputs on each test set, by the set's name; kept as `rate-<rate>-seed-<seed>.npz`."""


def best_runs(
    setup: Setup, run: Callable[[float, int], Outputs], quality: Callable[[Outputs], float]
) -> tuple[float, list[Outputs]]:
    """The learning rate, and the outputs of the run of each seed at it.

    Of several rates in the setting `learning_rates` the one counts whose run of the first seed has the highest quality;
    that run is then the first seed's. Runs that are kept are not run again.
    """

    def kept(rate: float, seed: int) -> Outputs:
        return kept_arrays(setup.kept / f"rate-{rate:g}-seed-{seed}.npz", lambda: run(rate, seed))

    rates = [float(rate) for rate in setup.settings["learning_rates"]]
    rate = rates[0] if len(rates) == 1 else max(rates, key=lambda r: quality(kept(r, setup.seeds[0])))
    return rate, [kept(rate, seed) for seed in setup.seeds]
