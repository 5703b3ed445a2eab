"""Training a phase: what it learns and writes, and that a killed run ends with an undisturbed one's weights."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import re
import shutil
import subprocess
import time
import urllib.request
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from components.contract import get_component
from components.runtime import run_component
from mmbert import artifacts
from mmbert.errors import UserError
from mmbert.loader.state import LoaderState
from mmbert.recipe import load_recipe
from mmbert.sealed import seal, unseal
from mmbert.training import resume
from tests.fixtures_stack import free_port
from tests.killing import mapped_shared_memory, training, wait_until_gone
from tests.small_run import SmallRun, environment, make_small_run, run_to_end

DIGESTED = {"weights.safetensors", "optimizer.safetensors", "training_state.json"}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return make_small_run(tmp_path_factory.mktemp("small"))


@dataclass(frozen=True)
class Watched:
    """A training that was let alone, and the last page of its metrics."""

    artifact: artifacts.Artifact
    page: dict[str, float]


@pytest.fixture(scope="module")
def watched(small: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    folder = tmp_path_factory.mktemp("undisturbed")
    command, port = small.command("train", str(folder / "root"), small.train), free_port()
    page = ""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run_to_end, command, environment(folder, MMBERT_METRICS_PORT=str(port)))
        while not running.done():
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                page = answer.read().decode()
            futures.wait([running], 0.1)
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    found = {sample.name: sample.value for sample in samples if sample.labels.get("rank", "0") == "0"}
    return Watched(artifacts.open_artifact(running.result(), "checkpoint"), found)


@pytest.fixture(scope="module")
def undisturbed(watched: Watched) -> artifacts.Artifact:
    return watched.artifact


def test_a_running_phase_can_be_watched(watched: Watched) -> None:
    history = watched.artifact.read_json("history.json")
    page = {name.removeprefix("mmbert_training_"): value for name, value in watched.page.items()}
    # The last look may have been before the last batch.
    assert page["step"] == page["step_seconds_count"] in {point["batch"] for point in history[-9:]}
    assert page["tokens_total"] in {point["tokens"] for point in history[-9:]}
    assert any(page["loss"] == pytest.approx(point["loss"]) for point in history[-9:])
    assert 0 < page["loader_wait_seconds_total"] < page["step_seconds_sum"]
    assert page["checkpoint_interval_tokens"] == 4_000
    started = page["mmbert_component_start_timestamp_seconds"]
    assert started < page["checkpoint_last_saved_timestamp_seconds"] <= time.time()
    assert started < page["last_step_timestamp_seconds"] <= time.time()


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


def test_a_vocabulary_smaller_than_the_tokenizers_ends_with_2(small: SmallRun, tmp_path: Path) -> None:
    root = tmp_path / "root"
    arguments = {**small.train, "recipe": with_overrides(small, root, "model.vocab_size=500")}
    command = small.command("train", str(root), arguments)
    found = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, check=False)
    assert found.returncode == 2, found.stderr
    assert "the tokenizer's largest id is 599, but model.vocab_size is 500" in found.stderr
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
        root = tmp_path / str(microbatch)  # of their own: all are the same piece of work
        recipe = with_overrides(small, root, *overrides)
        arguments = {**small.train, "recipe": recipe, "shards": [small.shards], "documents": [small.documents]}
        done = run_component(get_component("train"), arguments, str(root))
        losses[microbatch] = [p["loss"] for p in artifacts.open_artifact(done.uri).read_json("history.json")]
    for microbatch in (3, 1):
        assert losses[microbatch] == pytest.approx(losses[8], abs=2e-5, rel=0)


def with_workers(small: SmallRun, workers: int, root: Path) -> dict[str, str]:
    """The training's arguments with another number of loader processes, and three batches a point of the history, so
    that kills fall between two: the same piece of work."""
    overrides = f"training.workers={workers}", "training.log_every=3"
    return {**small.train, "recipe": with_overrides(small, root, *overrides)}


@pytest.fixture(scope="module")
def killed(small: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root whose training was killed three times: before the first checkpoint, and twice at any time, be it in the
    middle of a batch, of a save or of an upload."""
    folder = tmp_path_factory.mktemp("killed")
    chance = random.Random(4)
    kills = [chance.randrange(1, 4), chance.randrange(6, 12), chance.randrange(14, 24)]
    for workers, batch in zip((1, 2, 1), kills, strict=True):
        command = small.command("train", str(folder / "root"), with_workers(small, workers, folder / "root"))
        with training(command, environment(folder)) as trainer:
            trainer.wait_for_batch(batch)
            time.sleep(chance.uniform(0, 0.05))
            family = trainer.family()
            assert len(family) == 1 + workers
            assert [mapped_shared_memory(process) for process in family] == [[]] * len(family)
            trainer.process.kill()  # alone: its loader processes notice
            wait_until_gone(family[1:], 15)
    return folder / "root"


def go_on(small: SmallRun, root: Path, workers: int) -> tuple[artifacts.Artifact, str]:
    """Run the training to its end: what it made, and what it said."""
    command = small.command("train", str(root), with_workers(small, workers, root))
    with training(command, environment(root.parent)) as trainer:
        code, said = trainer.end()
    assert code == 0, said
    assert re.search(r"going on from .*: batch \d+", said)
    return artifacts.open_artifact(json.loads(said.splitlines()[-1])["uri"]), said


def test_without_the_packers_waiting_pieces_a_resumed_run_differs(
    small: SmallRun, undisturbed: artifacts.Artifact, killed: Path, tmp_path: Path
) -> None:
    """The proof that the test below can fail."""
    root = tmp_path / "root"
    shutil.copytree(killed, root)
    for marker in root.rglob("resume/*/*/complete.json"):
        place = marker.parent / "loader.bin"
        state = LoaderState.from_bytes(place.read_bytes())
        assert all(len(lane.open_rows) and lane.waiting.any() for lane in state.lanes.values())
        empty = {
            number: dataclasses.replace(lane, open_rows=lane.open_rows[:0], waiting=lane.waiting[:0])
            for number, lane in state.lanes.items()
        }
        place.write_bytes(LoaderState(state.fingerprint, empty).to_bytes())
        content = unseal(marker.read_bytes())
        content["digests"]["loader.bin"] = artifacts.digest_file(place)
        marker.write_text(json.dumps(seal(content)), "utf-8")
    resumed, _ = go_on(small, root, workers=0)
    assert resumed.digest != undisturbed.digest


def test_a_run_killed_at_any_batch_ends_with_the_weights_of_one_never_killed(
    small: SmallRun, undisturbed: artifacts.Artifact, killed: Path
) -> None:
    newest = max(killed.rglob("resume/*/*/composer.pt"), key=lambda path: path.parent.name)
    newest.write_bytes(newest.read_bytes()[:-100])
    resumed, said = go_on(small, killed, workers=2)
    assert "'composer.pt' of the resume checkpoint was altered or cut short; trying an older" in said
    assert resumed.digest == undisturbed.digest
    assert not list(killed.rglob("resume/*"))

    batches, points = undisturbed.read_json("history.json"), resumed.read_json("history.json")
    last = batches[-1]["batch"]
    assert [point["batch"] for point in points] == [*range(3, last, 3), last]
    before = 0
    for point in points:
        covered = batches[before : point["batch"]]
        for key in ("loss", "gradient_norm"):
            assert point[key] == pytest.approx(sum(b[key] for b in covered) / len(covered), rel=1e-12), point["batch"]
        tokens = point["tokens"] - (batches[before - 1]["tokens"] if before else 0)
        assert point["padding_share"] == pytest.approx(1 - tokens / (len(covered) * 8 * 128))
        before = point["batch"]


def test_a_run_killed_after_its_last_batch_was_saved_only_ends(
    small: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ("phases.pretrain.tokens=4k", "training.checkpoint_tokens=2k", "training.log_every=3")
    recipe = with_overrides(small, tmp_path, *overrides)
    arguments = {**small.train, "recipe": recipe, "shards": [small.shards], "documents": [small.documents]}
    with monkeypatch.context() as patched:
        patched.setattr(resume, "drop", lambda uri: None)
        done = artifacts.open_artifact(run_component(get_component("train"), arguments, str(tmp_path)).uri)
    batches = done.read_json("training_state.json")["batches"]
    Path(done.uri, "manifest.json").unlink()
    capsys.readouterr()
    again = artifacts.open_artifact(run_component(get_component("train"), arguments, str(tmp_path)).uri)
    assert f": batch {batches}, " in capsys.readouterr().out
    assert again.digest == done.digest
    assert again.read_json("bits_per_byte.json") == done.read_json("bits_per_byte.json")


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
