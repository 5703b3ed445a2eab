"""Prometheus' alert rules, by promtool: their syntax, and their tests. A PrometheusRule's spec is a rule file."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import yaml

from infra.checks import tools
from infra.checks.check import Check, check

RULES, TESTS = "prometheus-rule.yaml", "rules_test.yaml"


def alert_checks(folder: Path) -> Iterator[Check]:
    """`rules_test.yaml` tests `rules.yaml`, which is made here of the PrometheusRule."""
    if not (folder / RULES).is_file():
        yield check("alerts", RULES, [f"{folder / RULES} is missing"])
        return
    with tempfile.TemporaryDirectory() as temporary:
        rules = Path(temporary, "rules.yaml")
        spec = yaml.safe_load((folder / RULES).read_text("utf-8"))["spec"]
        rules.write_text(yaml.safe_dump(spec), "utf-8")
        tests = Path(shutil.copy(folder / TESTS, temporary))
        yield _promtool(RULES, "check", rules)
        yield _promtool(TESTS, "test", tests)


def _promtool(subject: str, command: str, path: Path) -> Check:
    done = tools.run("promtool", command, "rules", path)
    said = " ".join((done.stdout + done.stderr).split())
    return check("alerts", subject, [said] if done.returncode else [])
