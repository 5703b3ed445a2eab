"""The metrics page as Prometheus reads it, and the alert rules that are made of its names."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from mmbert import metrics
from tests.fixtures_stack import clean_environment, free_port

PROJECT = Path(__file__).resolve().parents[2]
ALERTS = PROJECT / "infra" / "kubernetes" / "base" / "alerts"
CODE = """
import multiprocessing, sys, urllib.request
from components.contract import get_component
from components.runtime import run_component
from mmbert import metrics, storage
from mmbert.errors import UserError

root = sys.argv[1]

def work(path):
    storage.write_bytes(f"{root}/{path}", b"x")

if __name__ == "__main__":
    with metrics.served():
        recipe = {"preset": "tiny", "overrides": []}
        run_component(get_component("recipe"), recipe, root, "the recipe")
        for method in ("fork", "spawn"):
            child = multiprocessing.get_context(method).Process(target=work, args=(method,))
            child.start()
            child.join()
            assert child.exitcode == 0
        try:
            storage.read_bytes(f"{root}/missing")
        except UserError:
            pass
        for metric in metrics.ALL[2:]:
            if metric not in (metrics.STORE_REQUESTS, metrics.STORE_SECONDS):
                record = {"gauge": metrics.set_to, "counter": metrics.add, "histogram": metrics.observe}[metric.kind]
                record(metric, 3, *("label" for _ in metric.labels))
        print(urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[2]}/metrics").read().decode())
    assert not metrics.active()
"""


def rules() -> Iterator[dict[str, Any]]:
    found = yaml.safe_load((ALERTS / "prometheus-rule.yaml").read_text("utf-8"))
    for group in found["spec"]["groups"]:
        yield from group["rules"]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    folder = tmp_path_factory.mktemp("page")
    program = folder / "program.py"
    program.write_text(CODE)
    port = str(free_port())
    environment = {
        **clean_environment(),
        "PYTHONPATH": os.pathsep.join([str(PROJECT), *sys.path]),
        metrics.PORT: port,
        "MMBERT_WORKFLOW_RUN": "run 7",
    }
    done = subprocess.run(
        [sys.executable, str(program), str(folder / "root"), port], env=environment, check=False, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    page = done.stdout[done.stdout.index("# HELP") :]
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def test_the_page_has_every_metric_that_the_rules_use(samples: dict[tuple[str, Any], float]) -> None:
    names = {name for name, _ in samples}
    text = "\n".join([rule["expr"] + str(rule["annotations"]) for rule in rules()])
    used = set(re.findall(r"\bmmbert_\w+", text))
    assert len(used) > 8
    assert used <= names


def test_the_page_says_what_runs_here(samples: dict[tuple[str, Any], float]) -> None:
    (info,) = [dict(labels) for name, labels in samples if name == "mmbert_component_info"]
    assert {key: info[key] for key in ("component", "task", "workflow_run")} == {
        "component": "recipe", "task": "the recipe", "workflow_run": "run 7",
    }  # fmt: skip
    assert re.fullmatch(r"[0-9a-f]{16,}", info["fingerprint"])


def test_the_page_adds_up_what_child_processes_count(samples: dict[tuple[str, Any], float]) -> None:
    def requests(operation: str, outcome: str) -> float:
        labels = frozenset({"operation": operation, "outcome": outcome}.items())
        return samples.get(("mmbert_store_requests_total", labels), 0)

    assert requests("read_bytes", "missing") >= 1
    assert requests("write_bytes", "error") == 0
    seconds = samples["mmbert_store_request_seconds_count", frozenset({("operation", "write_bytes")})]
    assert seconds == requests("write_bytes", "ok") >= 3  # the component, a forked process, a spawned one


def test_gauges_have_no_process_s_number(samples: dict[tuple[str, Any], float]) -> None:
    assert samples["mmbert_training_step", frozenset()] == 3


def test_nothing_is_counted_where_it_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(metrics.PORT, raising=False)
    with metrics.served():
        assert not metrics.active()
        metrics.add(metrics.TOKENS, 1)
    assert "prometheus_client.values" not in sys.modules or not metrics._made.cache_info().currsize


def test_a_taken_port_does_not_stop_the_work(tmp_path: Path) -> None:
    code = "from mmbert import metrics\nwith metrics.served():\n    metrics.add(metrics.TOKENS, 1)\n    print('done')"
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))  # noqa: S104 - where the page is served
        taken.listen()
        port = str(taken.getsockname()[1])
        environment = {**clean_environment(), metrics.PORT: port}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, check=False, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(rf"warning: no metrics at port {port} \(MMBERT_METRICS_PORT\): .+\ndone\n", done.stdout)


@pytest.mark.parametrize("port", ["metrics", "0", "65536", "-1"])
def test_a_port_that_is_none_is_the_user_s_error(port: str) -> None:
    line = "import sys\nsys.argv[1:] = ['run', 'recipe', '--preset', 'tiny']\nfrom components.cli import main\nmain()"
    environment = {**clean_environment(), metrics.PORT: port}
    done = subprocess.run([sys.executable, "-c", line], env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: MMBERT_METRICS_PORT={port}: it must be a port's number")


def test_each_alert_has_its_section_and_its_tests() -> None:
    headings = {
        re.sub(r"[^a-z0-9 -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in (PROJECT / "docs" / "operations.md").read_text("utf-8").splitlines()
        if line.startswith("#")
    }
    tests = (ALERTS / "rules_test.yaml").read_text("utf-8")
    for rule in rules():
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"
        assert rule["alert"].lower() in headings
        assert f"{rule['alert']}\n        exp_alerts: []" in tests or f'{rule["alert"]}"' in tests
        assert set(rule["annotations"]) == {"summary", "description", "runbook"}


def test_every_manifest_is_part_of_the_kustomization() -> None:
    listed = yaml.safe_load((ALERTS / "kustomization.yaml").read_text("utf-8"))["resources"]
    there = {path.name for path in ALERTS.glob("*.yaml")} - {"kustomization.yaml", "rules_test.yaml"}
    assert set(listed) == there
