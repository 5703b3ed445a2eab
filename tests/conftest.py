"""Fixtures that every test may ask for, and what is said of tests that cannot run on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["tests.fixtures_stack", "tests.browser"]

NOTE = Path(__file__).resolve().parents[1] / ".cache" / "tests-not-run"
"""Left by scripts/setup-test.sh where there is no browser."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if NOTE.exists():
        without = [item for item in items if item.get_closest_marker("browser")]
        config.hook.pytest_deselected(items=without)
        items[:] = [item for item in items if item not in without]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if NOTE.exists():
        terminalreporter.write_sep("!", "tests that did NOT RUN", red=True)
        terminalreporter.write_line(NOTE.read_text("utf-8"))
