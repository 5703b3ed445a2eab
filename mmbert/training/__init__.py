"""Training of one phase: optimiser, schedules, callbacks, trainer."""
