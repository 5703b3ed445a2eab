"""All faults of the matrix, in the order in which they are tried."""

from __future__ import annotations

from tests.chaos.matrix import Fault
from tests.chaos.services import RACES, SCHEDULER, SERVERS

FAULTS: tuple[Fault, ...] = (SCHEDULER, SERVERS, RACES)
