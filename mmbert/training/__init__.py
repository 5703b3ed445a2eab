"""Composer stays within this package."""

from mmbert.training import deferred

deferred.install()
