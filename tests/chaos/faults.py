"""All faults of the matrix, in the order in which they are tried."""

from __future__ import annotations

from tests.chaos.killed import KILLED
from tests.chaos.matrix import Fault
from tests.chaos.operations import STOPPED

FAULTS: tuple[Fault, ...] = (STOPPED, KILLED)
