"""Fixtures that every test may ask for, and what is said of tests that cannot run on this machine."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from mmbert import storage
from tests.fixtures_stack import free_port
from tests.hub_server import HubServer

# Read when huggingface_hub is imported, so they are set before anything can. No test reaches the real hub.
_HUB_PORT = free_port()
_HUB_HOME = tempfile.mkdtemp(prefix="hub-home-")
os.environ |= {"HF_ENDPOINT": f"http://127.0.0.1:{_HUB_PORT}", "HF_HOME": _HUB_HOME, "HF_HUB_DISABLE_TELEMETRY": "1"}
os.environ.pop("HF_TOKEN", None)

# The first call of much here loads or compiles something, and other tests run beside it.
hypothesis.settings.register_profile("here", deadline=None)
hypothesis.settings.load_profile("here")

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


def pytest_unconfigure() -> None:
    shutil.rmtree(_HUB_HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def hub() -> Iterator[HubServer]:
    """A Hugging Face hub on loopback, which huggingface_hub and datasets in this process talk to."""
    server = HubServer(_HUB_PORT)
    yield server
    server.stop()


@pytest.fixture(autouse=True, scope="module")
def own_store() -> Iterator[None]:
    """No module's tests go on with the S3 client of another's server: clients are kept by process."""
    storage.s3_client.cache_clear()
    yield
    storage.s3_client.cache_clear()
