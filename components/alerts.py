"""Alerts through Airflow's notifiers: which ones, and what each is given.

`MMBERT_NOTIFIERS` is a JSON list, or the path of a file that holds one: an object a notifier, its class under
`notifier`, the class's own arguments beside it. Passwords stay in Airflow's connections. Arguments may be templates;
besides Airflow's own names they know `alert_subject`, `alert_text` and `alert_html`:

    [{"notifier": "airflow.providers.smtp.notifications.smtp.SmtpNotifier", "to": "team@example.org",
      "subject": "{{ alert_subject }}", "html_content": "{{ alert_html }}"}]
"""

from __future__ import annotations

import html
import importlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow.sdk import BaseNotifier

from components import planning
from mmbert import tracking
from mmbert.errors import InfrastructureError, UserError
from mmbert.tables import counted

VARIABLE = "MMBERT_NOTIFIERS"
TAG = "mmbert.alert"


@dataclass(frozen=True)
class Alert:
    """What got worse, a line each. `name` is the registered model's; `experiment` MLflow's of the workflow run."""

    name: str
    lines: Sequence[str]
    experiment: str = ""

    @property
    def subject(self) -> str:
        return f"{self.name}: {counted(len(self.lines), 'alert')}"

    def template_values(self) -> dict[str, str]:
        items = "".join(f"<li>{html.escape(line)}</li>" for line in self.lines)
        return {
            "alert_subject": self.subject,
            "alert_text": "\n".join(self.lines),
            "alert_html": f"<p>{html.escape(self.subject)}</p><ul>{items}</ul>",
        }


class LogAndTagNotifier(BaseNotifier):
    """The default: the task's log, and the tag `mmbert.alert` on the workflow's run in MLflow."""

    template_fields = ("subject", "text", "experiment")

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.subject, self.text, self.experiment = "{{ alert_subject }}", "{{ alert_text }}", "{{ alert_experiment }}"

    def notify(self, context: Any) -> None:  # noqa: ARG002
        self.log.warning("%s\n%s", self.subject, self.text)
        run = tracking.connect(self.experiment).open_workflow()
        run.set_tags({TAG: self.text})
        run.close()


def send(alert: Alert, context: Mapping[str, Any]) -> None:
    """Through each notifier, also where one before it failed. Raises InfrastructureError naming those that did."""
    known = {**context, **alert.template_values(), "alert_experiment": alert.experiment}
    failed = []
    for notifier in notifiers():
        try:
            notifier(known)
        except Exception as error:
            failed.append(f"{type(notifier).__name__} ({type(error).__name__}: {error})")
    if failed:
        raise InfrastructureError(f"alerts were not sent by {', '.join(failed)}: {' | '.join(alert.lines)}")


def notifiers() -> list[Any]:
    """The configured notifiers, or the default one. Raises UserError where the setting is wrong."""
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return [LogAndTagNotifier()]
    if not text.startswith("["):
        try:
            text = Path(text).read_text("utf-8")
        except OSError as error:
            raise UserError(f"{VARIABLE}: neither a JSON list nor a file that can be read: {error}") from error
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise UserError(f"{VARIABLE}: no JSON: {error}") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "notifier" in entry for entry in entries):
        raise UserError(f'{VARIABLE}: a list of objects is needed, each with its class under "notifier"')
    return [_notifier(**entry) for entry in entries]


def _notifier(notifier: str, **arguments: Any) -> Any:
    module, _, name = notifier.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{VARIABLE}: there is no notifier {notifier}: {error}") from error
    try:
        return found(**arguments)
    except TypeError as error:
        raise UserError(f"{VARIABLE}: {notifier} does not take these arguments: {error}") from error


def experiment_of(recipe: Mapping[str, Any]) -> str:
    """The MLflow experiment of a workflow run, by its preset and overrides; empty where the recipe is wrong."""
    try:
        return f"mmbert/{planning.recipe_of(recipe).name}"
    except UserError:
        return ""
