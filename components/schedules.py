"""When a DAG runs by itself, as its environment sets it."""

from __future__ import annotations

import os
from typing import Any

from airflow.sdk import AssetOrTimeSchedule, CronTriggerTimetable

from mmbert.errors import UserError

SCHEDULE, RECIPE = "MMBERT_REEVALUATE_SCHEDULE", "MMBERT_REEVALUATE_RECIPE"
_NEVER = {"never", "none"}


def reevaluation_schedule(event: Any) -> Any:
    """On an event of the asset, and at the times of MMBERT_REEVALUATE_SCHEDULE.

    That is a cron expression in UTC, a preset (`@daily`, `@weekly`, the default) or `never`. The first run waits for
    the next of these times. Raises UserError for anything else.
    """
    text = os.environ.get(SCHEDULE, "").strip() or "@weekly"
    if text in _NEVER:
        return [event]
    times = CronTriggerTimetable(text, timezone="UTC")
    try:
        times.validate()
    except Exception as error:
        raise UserError(f"{SCHEDULE}={text}: no cron expression, @weekly or the like, or never: {error}") from error
    return AssetOrTimeSchedule(timetable=times, assets=[event])


def default_recipe() -> str:
    """The recipe of a run that nobody gave one: MMBERT_REEVALUATE_RECIPE, else `tiny`."""
    return os.environ.get(RECIPE, "").strip() or "tiny"
