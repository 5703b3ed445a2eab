"""Several training processes on gloo: the same batches and weights as one process, through kills and restarts.

Weights agree within 1e-6 of the largest one: gradients are summed in another order, all else is the same. (1.2e-7 was
measured after 30 batches; dropout is off, since each process draws its own.)
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from components.contract import get_component
from components.runtime import run_component
from mmbert import artifacts
from mmbert.release.conversion import convert_to_folder
from tests.fixtures_stack import free_port
from tests.killing import training, wait_until_gone
from tests.small_run import SmallRun, environment, make_small_run

COMPOSER = [sys.executable, "-m", "composer.cli.launcher", "-n", "2"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return make_small_run(
        tmp_path_factory.mktemp("small"),
        "model.attention_output_dropout=0",
        "training.permanent_checkpoint_tokens=12k",
        "training.keep_checkpoints=10",
        # Checkpoints fall between two points of the history too.
        "training.log_every=3",
    )


@pytest.fixture(scope="module")
def alone(small: SmallRun) -> artifacts.Artifact:
    """What one process makes of it."""
    return artifacts.open_artifact(run_component(get_component("train"), small.train, small.root).uri)


def command(small: SmallRun, root: Path, launcher: list[str] | None = None) -> list[str]:
    line = small.command("train", str(root), small.train)
    return [*launcher, *line[1:]] if launcher else line


def two(folder: Path) -> dict[str, str]:
    """The environment of `mmbert run train` that starts two processes by itself."""
    profile = folder / "two.yaml"
    profile.write_text("threads: {train: 1}\nprocesses: {train: 2}\n", "utf-8")
    return environment(folder, MMBERT_PROFILE=str(profile))


def assert_same(made: artifacts.Artifact, alone: artifacts.Artifact) -> None:
    def curve(artifact: artifacts.Artifact, key: str) -> list[float]:
        return [point[key] for point in artifact.read_json("history.json")]

    for key in ("tokens", "global_batch_size", "padding_share"):
        assert curve(made, key) == curve(alone, key), key
    for key in ("loss", "gradient_norm"):
        assert curve(made, key) == pytest.approx(curve(alone, key), rel=1e-5), key
    for one, other in zip(made.read_json("history.json"), alone.read_json("history.json"), strict=True):
        assert one["losses"] == pytest.approx(other["losses"], rel=1e-5)
    weights, wanted = (load_file(a.remote("weights.safetensors")) for a in (made, alone))
    largest = max(float(w.abs().max()) for w in wanted.values())
    for name, weight in wanted.items():
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=1e-6 * largest, msg=name)


def loader_states(root: Path) -> dict[str, bytes]:
    """What the loader had consumed at each resume checkpoint, by its batch."""
    return {p.parent.name: p.read_bytes() for p in root.rglob("resume/*/*/loader.bin")}


def test_two_processes_make_what_one_makes(small: SmallRun, alone: artifacts.Artifact, tmp_path: Path) -> None:
    with training(command(small, tmp_path / "root", COMPOSER), environment(tmp_path)) as trainer:
        code, said = trainer.end()
    assert code == 0, said
    results = [line for line in said.splitlines() if line.startswith('{"uri"')]
    assert len(results) == 1
    made = artifacts.open_artifact(json.loads(results[0])["uri"])
    assert_same(made, alone)
    attempts = [path.name for path in Path(made.uri, "attempts").iterdir()]
    assert attempts == [made.manifest.producer["attempt"]]
    assert made.outputs["permanent_checkpoints"] == alone.outputs["permanent_checkpoints"]
    assert len(made.outputs["permanent_checkpoints"]) == 2
    kept = artifacts.open_artifact(f"{made.uri}/{made.outputs['permanent_checkpoints'][0]}", "checkpoint")
    state = kept.read_json("training_state.json")
    assert 12_000 <= state["tokens"] < 14_000
    assert not state["finished"]
    convert_to_folder(kept.uri, str(tmp_path / "converted"), artifacts.open_artifact(small.tokenizer).remote_folder(""),
                      None, None)  # fmt: skip
    assert (tmp_path / "converted" / "model.safetensors").exists()


def test_a_run_goes_on_with_another_number_of_processes(
    small: SmallRun, alone: artifacts.Artifact, tmp_path: Path
) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    with training(command(small, root, TORCHRUN), environment(tmp_path)) as trainer:
        trainer.wait_for_batch(10)
        trainer.kill_group()
    with training(command(small, other), environment(tmp_path)) as trainer:
        trainer.wait_for_batch(10)
        trainer.kill_group()
    by_two, by_one = loader_states(root), loader_states(other)
    shared = by_two.keys() & by_one.keys()
    assert shared
    assert all(by_two[batch] == by_one[batch] for batch in shared)

    # The first run goes on with one process, the second with two.
    assert_same(artifacts.open_artifact(run_component(get_component("train"), small.train, str(root)).uri), alone)
    with training(command(small, other), two(tmp_path)) as trainer:
        code, said = trainer.end()
    assert code == 0, said
    assert said.count("going on from") == 1
    assert_same(artifacts.open_artifact(json.loads(said.splitlines()[-1])["uri"]), alone)


def test_a_lost_process_ends_the_others_as_infrastructure(small: SmallRun, tmp_path: Path) -> None:
    with training(command(small, tmp_path / "root"), two(tmp_path)) as trainer:
        trainer.wait_for_batch(3)
        family = trainer.family()
        second = next(p for p in family if is_second(p))
        second.kill()
        code, said = trainer.end()
    assert code == 3, said
    assert said.count("error: process 1 was lost: killed from outside") == 1
    assert "Traceback" not in said
    wait_until_gone(family, 15)


def test_each_node_tells_of_work_that_was_done_before(
    small: SmallRun, alone: artifacts.Artifact, tmp_path: Path
) -> None:
    meeting = {"NNODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    line = command(small, Path(small.root))
    with contextlib.ExitStack() as nodes:
        started = []
        for node in ("0", "1"):
            env = environment(tmp_path, MMBERT_PROFILE="laptop", NODE_RANK=node, **meeting)
            result = ["--result-file", str(tmp_path / node)]
            started.append(nodes.enter_context(training([*line, *result], env)))
        ended = [trainer.end() for trainer in started]
    assert [code for code, _ in ended] == [0, 0], ended
    for node in ("0", "1"):
        told = json.loads((tmp_path / node).read_text("utf-8"))
        assert (told["uri"], told["reused"]) == (alone.uri, True)
    assert [said.count('{"uri"') for _, said in ended] == [1, 0]


def test_a_bad_batch_is_named_with_the_shares_of_all_processes(small: SmallRun, tmp_path: Path) -> None:
    preset, root = artifacts.open_artifact(small.recipe).remote("recipe.yaml"), str(tmp_path / "root")
    changed = {"preset": preset, "overrides": ["phases.pretrain.learning_rate=1e30"]}
    recipe = run_component(get_component("recipe"), changed, root).uri
    with training(small.command("train", root, {**small.train, "recipe": recipe}), two(tmp_path)) as trainer:
        code, said = trainer.end()
    assert code == 2, said
    assert re.search(r"saved as \S+/bad_batches/batch-0+2-rank-\*\.safetensors;", said)
    shares = [json.loads(path.read_text("utf-8"))["tokens_by_stream"] for path in tmp_path.rglob("bad_batches/*.json")]
    assert len(shares) == 2
    for stream in ("own/deu_Latn", "own/eng_Latn"):
        assert f"{stream} ({sum(share.get(stream, 0) for share in shares):,} tokens)" in said


def is_second(process: psutil.Process) -> bool:
    return process.environ().get("RANK") == "1"
