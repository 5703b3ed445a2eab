"""Training a phase: what it learns and writes, and that a killed run ends with an undisturbed one's weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from components.contract import get_component
from components.runtime import run_component
from mmbert import artifacts
from mmbert.errors import UserError
from mmbert.recipe import load_recipe
from tests.small_run import SmallRun, environment, make_small_run, run_to_end

DIGESTED = {"weights.safetensors", "optimizer.safetensors", "training_state.json"}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return make_small_run(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def undisturbed(small: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> artifacts.Artifact:
    folder = tmp_path_factory.mktemp("undisturbed")
    uri = run_to_end(small.command("train", str(folder / "root"), small.train), environment(folder))
    return artifacts.open_artifact(uri, "checkpoint")


def test_a_phase_learns_and_writes_what_the_next_one_needs(undisturbed: artifacts.Artifact) -> None:
    digested = {f.path for f in undisturbed.manifest.files if f.digested}
    assert digested == DIGESTED
    history = undisturbed.read_json("history.json")
    assert history[-1]["loss"] < history[0]["loss"] - 0.3
    assert history[-1]["tokens"] >= 30_000
    state = undisturbed.read_json("training_state.json")
    assert (state["phase"], state["tokens"]) == ("pretrain", history[-1]["tokens"])
    bits = undisturbed.read_json("bits_per_byte.json")
    assert set(bits["languages"]) == {"eng_Latn", "deu_Latn", "rus_Cyrl", "amh_Ethi"}
    assert 0 < bits["languages"]["eng_Latn"]["bits_per_byte"] < bits["languages"]["rus_Cyrl"]["bits_per_byte"] * 5


def test_learning_rate_and_padding_are_what_the_recipe_says(small: SmallRun, undisturbed: artifacts.Artifact) -> None:
    history = undisturbed.read_json("history.json")
    peak = load_recipe("tiny").phases.pretrain.learning_rate
    first, second = history[0], history[1]
    assert first["learning_rate"] < peak / 100
    assert second["learning_rate"] == pytest.approx(peak * first["tokens"] / 4_000, rel=1e-3)
    assert history[-1]["learning_rate"] == peak
    assert all(point["padding_share"] < 0.1 for point in history)


def with_overrides(run: SmallRun, root: Path, *overrides: str) -> str:
    """URI of the run's recipe with changes."""
    preset = str(Path(artifacts.open_artifact(run.recipe).remote("recipe.yaml")))
    return run_component(get_component("recipe"), {"preset": preset, "overrides": list(overrides)}, str(root)).uri


@pytest.mark.parametrize(
    ("override", "variables", "message"),
    [
        ("model.vocab_size=500", {}, "the tokenizer's largest id is 599, but model.vocab_size is 500"),
        ("training.lanes=8", {"WORLD_SIZE": "3", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "3"},
         "8 lanes cannot be shared evenly by 3 processes"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_recipe_ends_with_2(
    small: SmallRun, tmp_path: Path, override: str, variables: dict[str, str], message: str
) -> None:
    root = tmp_path / "root"
    arguments = {**small.train, "recipe": with_overrides(small, root, override)}
    command = small.command("train", str(root), arguments)
    found = subprocess.run(command, env=environment(tmp_path, **variables), capture_output=True, text=True, check=False)
    assert found.returncode == 2, found.stderr
    assert message in found.stderr
    assert "Traceback" not in found.stderr
    assert not list((root / "checkpoint").rglob("manifest.json"))


def test_the_loss_is_the_mean_over_masked_tokens_however_a_batch_is_split(small: SmallRun, tmp_path: Path) -> None:
    """Rows hold different numbers of masked tokens: gradients of the microbatches' means would put the second step
    off by 1e-4."""
    losses = {}
    for microbatch in (8, 3, 1):
        overrides = (
            f"phases.pretrain.batch.microbatch_size={microbatch}", "phases.pretrain.tokens=2k",
            "phases.pretrain.schedule={warmup_tokens: 0}", "model.attention_output_dropout=0",
        )  # fmt: skip
        recipe = with_overrides(small, tmp_path, *overrides)
        arguments = {**small.train, "recipe": recipe, "shards": [small.shards], "documents": [small.documents]}
        done = run_component(get_component("train"), arguments, str(tmp_path))
        losses[microbatch] = [p["loss"] for p in artifacts.open_artifact(done.uri).read_json("history.json")]
    for microbatch in (3, 1):
        assert losses[microbatch] == pytest.approx(losses[8], abs=2e-5, rel=0)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_killed_run_ends_with_the_weights_of_one_never_killed(
    small: SmallRun, undisturbed: artifacts.Artifact, tmp_path: Path, workers: str
) -> None:
    arguments = {**small.train}
    if workers != "0":
        arguments["recipe"] = with_overrides(small, tmp_path / "root", f"training.workers={workers}")
    command = small.command("train", str(tmp_path / "root"), arguments)
    killed = 0
    for wanted in (2, 4):
        kill_at_resume_point(command, tmp_path, wanted)
        killed += 1
    uri = run_to_end(command, environment(tmp_path))
    resumed = artifacts.open_artifact(uri)
    assert killed == 2
    assert resumed.digest == undisturbed.digest
    steps = [point["batch"] for point in resumed.read_json("history.json")]
    assert steps == [point["batch"] for point in undisturbed.read_json("history.json")]
    assert not list((tmp_path / "root").rglob("resume/*/*/complete.json"))


def kill_at_resume_point(command: list[str], folder: Path, wanted: int) -> None:
    """Start the trainer and SIGKILL its whole group once `wanted` resume checkpoints are there."""
    process = subprocess.Popen(
        command, env=environment(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while len(list((folder / "root").rglob("resume/*/*/complete.json"))) < wanted:
        assert process.poll() is None, "the trainer ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_without_the_loaders_state_a_resumed_run_differs(
    small: SmallRun, undisturbed: artifacts.Artifact, tmp_path: Path
) -> None:
    """The proof that the test above can fail: an older loader state under a newer checkpoint is not the same run."""
    command = small.command("train", str(tmp_path / "root"), small.train)
    kill_at_resume_point(command, tmp_path, 2)
    markers = sorted((tmp_path / "root").rglob("resume/*/*/complete.json"))
    older, newer = markers[0].parent, markers[-1].parent
    (newer / "loader.bin").write_bytes((older / "loader.bin").read_bytes())
    marker = json.loads((newer / "complete.json").read_text("utf-8"))
    marker["digests"]["loader.bin"] = json.loads((older / "complete.json").read_text("utf-8"))["digests"]["loader.bin"]
    (newer / "complete.json").write_text(json.dumps(marker), "utf-8")
    resumed = artifacts.open_artifact(run_to_end(command, environment(tmp_path)))
    assert resumed.digest != undisturbed.digest


def test_a_damaged_resume_checkpoint_is_passed_over(
    small: SmallRun, undisturbed: artifacts.Artifact, tmp_path: Path
) -> None:
    command = small.command("train", str(tmp_path / "root"), small.train)
    kill_at_resume_point(command, tmp_path, 2)
    newest = max((tmp_path / "root").rglob("resume/*/*/composer.pt"))
    newest.write_bytes(newest.read_bytes()[:-100])
    assert artifacts.open_artifact(run_to_end(command, environment(tmp_path))).digest == undisturbed.digest


def test_the_next_phase_starts_from_the_checkpoint(small: SmallRun, undisturbed: artifacts.Artifact) -> None:
    def run(component: str, **arguments: object) -> artifacts.Artifact:
        return artifacts.open_artifact(run_component(get_component(component), arguments, small.root).uri)

    mixture = run("mixture", recipe=small.recipe, shards=[small.shards], phase="extend")
    data = {**small.train, "phase": "extend", "mixture": mixture.uri, "shards": [small.shards]}
    data["documents"] = [small.documents]
    extended = run("train", **data, checkpoint=undisturbed.uri)
    history = extended.read_json("history.json")
    first_phase = undisturbed.read_json("history.json")
    assert history[0]["loss"] < first_phase[0]["loss"] - 0.2
    assert history[0]["learning_rate"] == load_recipe("tiny").phases.extend.learning_rate
    with pytest.raises(UserError, match="this mixture is for phase 'extend', not 'pretrain'"):
        run("train", **{**data, "phase": "pretrain"})
