"""All faults of the matrix, in the order in which they are tried."""

from __future__ import annotations

from tests.chaos.matrix import Fault
from tests.chaos.services import RACES, SERVICES

FAULTS: tuple[Fault, ...] = (SERVICES, RACES)
