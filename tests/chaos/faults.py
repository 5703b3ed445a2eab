"""All faults of the matrix, in the order in which they are tried."""

from __future__ import annotations

from tests.chaos import s3, trainer
from tests.chaos.matrix import Fault

FAULTS: tuple[Fault, ...] = (trainer.FAULT, s3.FAULT)
