"""Training of one phase: optimiser, schedules, callbacks, trainer. Composer stays within this package."""

from mmbert.training import deferred

deferred.install()
