"""All faults of the matrix, in the order in which they are tried."""

from __future__ import annotations

from tests.chaos import s3, services, trainer
from tests.chaos.clock import CLOCK
from tests.chaos.disk import DISK
from tests.chaos.killed import KILLED
from tests.chaos.matrix import Fault
from tests.chaos.operations import STOPPED
from tests.chaos.races import RACES

FAULTS: tuple[Fault, ...] = (
    STOPPED, KILLED, DISK, CLOCK, RACES, s3.FAULT, trainer.FAULT, services.SCHEDULER, services.SERVERS, services.RACES,
)  # fmt: skip
