"""benchmarks/gpu_train.py on a machine with torch and numpy alone, at a toy size on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
# Imported before anything else of the process: what a bare machine does not have cannot be imported.
BARE = """
import sys
for name in ("composer", "streaming", "transformers", "pydantic", "datasets", "safetensors", "yaml", "boto3", "mlflow"):
    sys.modules[name] = None
"""


# The first time by part fails, the second ends the process as a lost machine does.
LOST = """
import os, types
calls = []
def time_by_part(*_):
    calls.append(1)
    if len(calls) > 1:
        os._exit(9)
    raise ValueError("no profiler")
sys.modules["gpu_parts"] = types.ModuleType("gpu_parts")
sys.modules["gpu_parts"].time_by_part = time_by_part
"""


def gpu_train(tmp_path: Path, *arguments: str, before: str = BARE) -> subprocess.CompletedProcess[str]:
    (tmp_path / "sitecustomize.py").write_text(before, "utf-8")
    return subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "gpu_train.py", "--device", "cpu", "--tiny", *arguments],
        env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_back_end_that_runs_here_is_checked(tmp_path: Path) -> None:
    done = gpu_train(tmp_path, "--check")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert {line.split(": ")[1] for line in lines if line.startswith("not checked")} == {"flash", "varlen"}
    passed = {line.removeprefix("ok").strip() for line in lines if line.startswith("ok")}
    assert {
        "attention flex, window 128",
        "attention sdpa, window None",
        "loss blocked",
        "loss chunked",
        "model with sdpa",
    } <= passed
    assert {"model with flex, compiled once", "model with flex, compiled, with dropout"} <= passed


def test_figures_are_a_table_and_json_and_a_failure_is_a_row(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    arguments = ("--accumulate", "1", "--steps", "1", "--json", str(file))
    done = gpu_train(tmp_path, *arguments, "--only", "blocked", "eager")
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(file.read_text("utf-8"))
    assert {"date", "chip", "torch", "commit", "results"} <= figures.keys()
    rows = {row["attention"]: row for row in figures["results"]}
    assert rows.keys() == {"flash", "varlen", "flex", "sdpa"}
    assert "trains on a CUDA GPU only" in rows["varlen"]["error"]
    for name in ("flex", "sdpa"):
        assert rows[name]["tokens_per_second"] > 0
        assert rows[name]["parts_ms_a_microbatch"]["attention"] > 0
        assert rows[name]["parts_ms_a_microbatch"]["body matmuls"] > 0
        assert rows[name]["name"] in done.stdout


def test_what_was_measured_is_kept_whatever_fails_later(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    arguments = ("--accumulate", "1", "--steps", "1", "--json", str(file), "--only", "sdpa", "eager")
    done = gpu_train(tmp_path, *arguments, before=BARE + LOST)
    assert done.returncode == 9, done.stdout + done.stderr
    *_, last = json.loads(file.read_text("utf-8"))["results"]
    assert (last["attention"], last["loss"]) == ("sdpa", "blocked")
    assert last["tokens_per_second"] > 0
    assert last["parts_error"] == "ValueError: no profiler"
    assert "not known: ValueError: no profiler" in done.stdout


def test_words_that_fit_no_configuration_are_refused(tmp_path: Path) -> None:
    done = gpu_train(tmp_path, "--only", "base_2k")
    assert done.returncode == 2
    assert "--list prints their names" in done.stderr
