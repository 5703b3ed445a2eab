"""The command as a user meets it: exit codes, one message, no stack trace, nothing half-written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def mmbert(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MMBERT_", "MLFLOW_", "AWS_", "S3_"))}
    env |= {"AWS_EC2_METADATA_DISABLED": "true", **environment}
    command = [sys.executable, "-m", "components.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


def test_help_explains_itself() -> None:
    found = mmbert("run", "train", "--help")
    assert found.returncode == 0
    for word in ("--phase", "[pretrain|extend|decay]", "--checkpoint", "Train one phase"):
        assert word in found.stdout


def test_a_recipe_is_shown_whole_and_validated(tmp_path: Path) -> None:
    shown = mmbert("recipe", "show", "tiny", "--set", "phases.decay.tokens=1M")
    path = tmp_path / "mine.yaml"
    path.write_text(shown.stdout, "utf-8")
    assert "tokens: 1000000" in shown.stdout
    assert mmbert("recipe", "validate", str(path)).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("recipe", "validate", "tiny", "--set", "model.hidden_size=65"), "model"),
        (
            ("recipe", "validate", "tiny", "--set", "phases.pretrain.batch.global_batch_size=20"),
            "phases.pretrain.batch.global_batch_size 20 is not a multiple of training.lanes 8",
        ),
        (
            ("recipe", "validate", "tiny", "--set", "phases.extend.batch.microbatch_size=0"),
            "phases.extend.batch.microbatch_size = 0",
        ),
        (("recipe", "validate", "tiny", "--set", "nonsense"), "not of the form key.path=value"),
        (("recipe", "show", "nosuch"), "no preset 'nosuch'"),
        (("recipe", "validate", "absent.yaml"), "no such recipe file"),
        (("run", "curate", "--recipe", "tiny", "--group", "0", "--colour", "red"), "--colour"),
        (
            ("run", "tokenize", "--recipe", "tiny", "--documents", "absent", "--tokenizer", "absent"),
            "no complete artifact here",
        ),
    ],
)
def test_wrong_input_ends_with_2_and_one_message(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    found = mmbert(*arguments, MMBERT_ROOT=str(tmp_path / "root"))
    assert found.returncode == 2
    assert words.lower() in found.stderr.lower()
    assert "Traceback" not in found.stderr
    assert not (tmp_path / "root").exists()


def test_a_component_runs_alone_and_is_found_done(tmp_path: Path) -> None:
    first = mmbert("run", "recipe", "--preset", "tiny", "--root", str(tmp_path))
    again = mmbert("run", "recipe", "--preset", "tiny", "--root", str(tmp_path))
    one, two = json.loads(first.stdout), json.loads(again.stdout)
    assert (one["reused"], two["reused"]) == (False, True)
    assert one["uri"] == two["uri"]
    variants = ["decay-eng", "decay-cont", "decay-all"]
    assert one["outputs"] == {"groups": ["0", "1"], "variants": variants, "suites": ["demo"]}


def test_mlflow_down_at_the_start_is_infrastructure(tmp_path: Path) -> None:
    found = mmbert(
        "run", "recipe", "--preset", "tiny", "--root", str(tmp_path), MLFLOW_TRACKING_URI="http://127.0.0.1:9"
    )
    assert found.returncode == 3
    assert "http://127.0.0.1:9" in found.stderr
    assert not list(tmp_path.rglob("manifest.json"))


def test_a_disk_that_takes_nothing_is_infrastructure(tmp_path: Path) -> None:
    found = mmbert("run", "recipe", "--preset", "tiny", "--root", "/dev/full/x")
    assert found.returncode == 3
    assert "Traceback" not in found.stderr
