"""A linear probe: how much of a label can be read off frozen embeddings by one linear layer."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


def linear_probe(
    train: FloatArray,
    train_labels: Sequence[str],
    test: FloatArray,
    *,
    regularisation: float = 1.0,
    iterations: int = 100,
) -> npt.NDArray[np.str_]:
    """Labels of `test` [M, H] by logistic regression on `train` [N, H], features standardised on `train`: [M].

    `regularisation` is scikit-learn's C and is never tuned, so every model is measured the same way.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, deviation = train.mean(axis=0), train.std(axis=0) + 1e-6
    probe = LogisticRegression(C=regularisation, max_iter=iterations)
    with warnings.catch_warnings():
        # The number of iterations is part of the method: more of them change little and cost seconds.
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit((train - mean) / deviation, np.asarray(train_labels))
    predicted: npt.NDArray[np.str_] = probe.predict((test - mean) / deviation)
    return predicted
