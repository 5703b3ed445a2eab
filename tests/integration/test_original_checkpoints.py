"""Checkpoints of the original training code: the same numbers, whole import, conversion, and what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForMaskedLM

from components.cli import main
from components.contract import get_component
from components.runtime import run_component
from mmbert import artifacts, storage
from mmbert.data.tokenizer import TOKENIZER_FILE
from mmbert.errors import UserError
from mmbert.model.config import EncoderConfig
from mmbert.model.head import MaskedLanguageModel
from mmbert.recipe import load_recipe
from mmbert.release import sources
from mmbert.release.checkpoints import ComposerCheckpoint, load_weights, read_composer
from mmbert.release.loading import load_encoder
from mmbert.sealed import seal, unseal
from mmbert.training import canonical, resume
from mmbert.training.optimizer import StableAdamW, parameter_groups
from mmbert.training.start import start_from
from tests.fixtures_stack import S3
from tests.pickled import Call
from tests.small_run import SmallRun, make_small_run

ORIGINAL = Path(__file__).parent.parent / "fixtures" / "original"
SETS = {"default": ORIGINAL / "default_init", "sharp": ORIGINAL}
CHECKPOINT = ORIGINAL / "default_init" / "ep0-ba8-rank0.pt"
TOKENIZER = ORIGINAL / "tokenizer"
THETAS = [(10_000, 10_000), (160_000, 10_000), (160_000, 160_000)]


def config(thetas: tuple[float, float] = (10_000, 10_000)) -> EncoderConfig:
    return EncoderConfig(768, 64, 96, 7, 4, global_rope_theta=thetas[0], local_rope_theta=thetas[1])


def model_of(weights: dict[str, Tensor], thetas: tuple[float, float] = (10_000, 10_000)) -> MaskedLanguageModel:
    model = MaskedLanguageModel(config(thetas))
    model.load_weights(weights)
    return model.eval()


@pytest.mark.parametrize("thetas", THETAS)
def test_outputs_and_gradients_are_the_originals(thetas: tuple[int, int]) -> None:
    """Of the original's own initialisation; tests/unit/test_model.py has the sharper one, by every back end."""
    label = f"g{thetas[0]}_l{thetas[1]}"
    reference = load_file(SETS["default"] / f"ref_{label}.safetensors")
    expected = json.loads((SETS["default"] / "ref_losses_gradnorms.json").read_text("utf-8"))[label]
    model = model_of(load_weights(SETS["default"] / "ep0-ba8-rank0.pt"), thetas)

    real = reference["unpad_indices"]
    tokens, labels = reference["input_ids"].flatten()[real], reference["labels"].flatten()[real]
    padded = (tokens, F.pad(reference["attention_mask"].sum(1).cumsum(0), (1, 0)).int(), labels)
    packed = tuple(reference[f"packed_{key}"] for key in ("input_ids", "cu_seqlens", "labels"))
    wanted = {
        "padded": (padded, reference["hidden_unpadded"], reference["masked_logits"], expected["loss"]),
        "packed": (packed, reference["packed_hidden"], reference["packed_masked_logits"], expected["packed_loss"]),
    }
    for kind, ((ids, cu_seqlens, targets), hidden, logits, loss) in wanted.items():
        masked = (targets != -100).nonzero().squeeze(1)
        with torch.no_grad():
            ours = model.encode(ids, cu_seqlens, 200)
            torch.testing.assert_close(ours, hidden, atol=1e-4, rtol=0)
            torch.testing.assert_close(model.masked_logits(ours, masked), logits, atol=1e-4, rtol=0)
        mean = model(ids, cu_seqlens, 200, masked, targets[masked]).total / len(masked)
        assert mean.item() == pytest.approx(loss, abs=1e-5), kind
        if kind == "padded":
            mean.backward()
    norms = {n: p.grad.norm().item() for n, p in model.named_parameters() if p.grad is not None}
    assert norms == pytest.approx(expected["grad_norms"], rel=1e-4)


@pytest.fixture(scope="module")
def whole() -> ComposerCheckpoint:
    return read_composer(CHECKPOINT)


def test_a_checkpoint_is_read_whole(whole: ComposerCheckpoint) -> None:
    assert whole.optimizer is not None
    assert len(whole.weights) == 47
    assert set(whole.optimizer.moments) == {
        f"{name}.{slot}" for name in whole.weights for slot in ("exp_avg", "exp_avg_sq", "eps_sq")
    }
    assert all(whole.optimizer.moments[f"{name}.exp_avg_sq"].max() > 0 for name in whole.weights)
    assert (whole.optimizer.steps, whole.optimizer.betas, whole.optimizer.eps) == (8, (0.9, 0.95), 1e-8)
    assert (whole.optimizer.learning_rate, whole.optimizer.peak_learning_rate) == (8e-4, 8e-4)
    assert (whole.clock.batches, whole.clock.epochs) == (8, 0)
    assert whole.clock.tokens == 8704
    assert whole.scheduled_rates == [8e-4, 8e-4]
    assert whole.config["vocab_size"] == 768
    assert whole.tokenizer["tokenizer.json"] == json.loads((TOKENIZER / "tokenizer.json").read_text("utf-8"))


def test_a_checkpoint_of_the_context_extension_is_read(whole: ComposerCheckpoint) -> None:
    extended = read_composer(ORIGINAL / "ext" / "ep0-ba2-rank0.pt")
    assert extended.optimizer is not None
    assert (extended.config["rotary_emb_base"], extended.config["local_attn_rotary_emb_base"]) == (160_000, 160_000)
    # The phase's time was reset, the optimiser's was not.
    assert (extended.clock.batches, extended.clock.tokens, extended.optimizer.steps) == (2, 8192, 10)
    assert not torch.equal(extended.weights["head.dense.weight"], whole.weights["head.dense.weight"])


# Import, and training that goes on.

SHAPE = (
    "model.vocab_size=768",
    "model.hidden_size=64",
    "model.intermediate_size=96",
    "model.num_hidden_layers=7",
    "model.num_attention_heads=4",
    "model.attention_output_dropout=0.0",
    "optimizer.betas=[0.9, 0.95]",
    "phases.pretrain.learning_rate=1e-3",
    "phases.pretrain.weight_decay=8e-5",
    "phases.pretrain.tokens=14k",
    "phases.pretrain.schedule={warmup_tokens: 12k}",
    "phases.pretrain.batch={global_batch_size: 16, microbatch_size: 8, warmup_from: 8, warmup_tokens: 11k}",
    "phases.extend.tokens=3k",
    "training.checkpoint_tokens=1k",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return make_small_run(tmp_path_factory.mktemp("original"), *SHAPE)


def make(run: SmallRun, component: str, **arguments: Any) -> artifacts.Artifact:
    return artifacts.open_artifact(run_component(get_component(component), arguments, run.root).uri)


def imported(run: SmallRun, then: str, source: Path = CHECKPOINT, phase: str = "pretrain") -> artifacts.Artifact:
    return make(run, "import_checkpoint", recipe=run.recipe, source=str(source), phase=phase, then=then)


def test_import_takes_over_every_tensor(run: SmallRun, whole: ComposerCheckpoint, tmp_path: Path) -> None:
    artifact = imported(run, "continue")
    assert {f.path for f in artifact.manifest.files if f.digested} == {
        canonical.WEIGHTS,
        canonical.OPTIMIZER,
        canonical.STATE,
        TOKENIZER_FILE,
    }
    assert whole.optimizer is not None
    weights = load_file(artifact.fetch(canonical.WEIGHTS, tmp_path))
    assert weights.keys() == whole.weights.keys()
    assert all(torch.equal(weights[name], value) for name, value in whole.weights.items())
    moments = load_file(artifact.fetch(canonical.OPTIMIZER, tmp_path))
    assert moments.keys() == whole.optimizer.moments.keys()
    assert all(torch.equal(moments[name], value) for name, value in whole.optimizer.moments.items())
    state = artifact.read_json(canonical.STATE)
    assert (state["phase"], state["finished"]) == ("pretrain", False)
    assert (state["batches"], state["tokens"], state["rows"]) == (8, 8704, 68)
    assert state["model"]["num_attention_heads"] == 4


def test_the_imported_optimiser_makes_the_step_of_its_formula(
    run: SmallRun, whole: ComposerCheckpoint, tmp_path: Path
) -> None:
    assert whole.optimizer is not None
    model = model_of(whole.weights)
    optimizer = StableAdamW(parameter_groups(model.named_parameters(), 8e-5), lr=1e-3)
    canonical.load_optimizer(imported(run, "continue").fetch(canonical.OPTIMIZER, tmp_path), model, optimizer)
    name = "bert.encoder.layers.3.mlp.Wi.weight"
    parameter = dict(model.named_parameters())[name]
    gradient = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 0.01
    parameter.grad = gradient.clone()
    optimizer.param_groups[1]["lr"] = 7e-4
    optimizer.step()

    b1, b2 = ((b**9 - b) / (b**9 - 1) for b in (0.9, 0.95))
    m = b1 * whole.optimizer.moments[f"{name}.exp_avg"] + (1 - b1) * gradient
    v = b2 * whole.optimizer.moments[f"{name}.exp_avg_sq"] + (1 - b2) * gradient**2
    step = 7e-4 / max(1.0, (gradient**2 / v.clamp(min=1e-16)).mean().sqrt().item())
    expected = whole.weights[name] * (1 - step / 1e-3 * 8e-5) - step * m / (v.sqrt() + 1e-8)
    torch.testing.assert_close(parameter.detach(), expected, atol=1e-7, rtol=1e-5)


@pytest.fixture(scope="module")
def left_behind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the resume checkpoints of `gone_on` are, as a killed run leaves them."""
    return tmp_path_factory.mktemp("left_behind")


@pytest.fixture(scope="module")
def gone_on(run: SmallRun, left_behind: Path) -> artifacts.Artifact:
    """Pretraining gone on from the checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resume, "drop", lambda uri: Path(uri, "resume").rename(left_behind / "resume"))
        return train(run, run.root)


def train(run: SmallRun, root: str) -> artifacts.Artifact:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        arguments = {**run.train, "checkpoint": imported(run, "continue").uri}
        return artifacts.open_artifact(run_component(get_component("train"), arguments, root).uri)
    finally:
        torch.set_num_threads(threads)


def test_training_goes_on_in_the_middle_of_the_phase(gone_on: artifacts.Artifact, tmp_path: Path) -> None:
    first, *_, last = gone_on.read_json("history.json")
    assert first["batch"] == 9
    assert first["learning_rate"] == pytest.approx(1e-3 * 8704 / 12_000, rel=1e-6)
    # The batch warm-up of 8 rows lasts 11k tokens.
    assert (first["global_batch_size"], last["global_batch_size"]) == (8, 16)
    assert 8704 < first["tokens"] <= 8704 + 8 * 128
    state = gone_on.read_json(canonical.STATE)
    assert (state["tokens"], state["batches"], state["finished"]) == (last["tokens"], last["batch"], True)
    assert 14_000 <= last["tokens"] < 14_000 + 16 * 128
    with safe_open(gone_on.fetch(canonical.OPTIMIZER, tmp_path), "pt") as stored:
        assert json.loads(stored.metadata()["steps"]) == [last["batch"]] * 2


def test_this_projects_composer_checkpoint_gives_the_artifact_again(
    gone_on: artifacts.Artifact, run: SmallRun, tmp_path: Path
) -> None:
    path = gone_on.fetch(gone_on.paths("composer/")[0], tmp_path)
    again = imported(run, "next", path)
    for name in (canonical.WEIGHTS, canonical.OPTIMIZER):
        assert again.file(name).sha256 == gone_on.file(name).sha256
    assert again.read_json(canonical.STATE) == gone_on.read_json(canonical.STATE)


@pytest.fixture
def killed(gone_on: artifacts.Artifact, left_behind: Path, tmp_path: Path) -> str:
    """A root in which that training was killed after its last but one resume checkpoint."""
    shutil.copytree(left_behind, tmp_path / "root" / "checkpoint" / Path(gone_on.uri).name)
    *_, before_last, last = sorted((tmp_path / "root").rglob("resume/*/*/complete.json"))
    assert before_last.parent.name < last.parent.name
    shutil.rmtree(last.parent)
    return str(tmp_path / "root")


def test_a_run_that_went_on_and_was_killed_ends_the_same(
    gone_on: artifacts.Artifact, run: SmallRun, killed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = train(run, killed)
    said = capsys.readouterr().out
    assert "going on 8,704 tokens into phase 'pretrain'; its data are drawn from their beginning" in said
    assert re.search(r"going on from .*: batch \d+", said)
    assert (made.uri != gone_on.uri, made.digest) == (True, gone_on.digest)


def test_a_resume_checkpoint_that_would_run_code_is_refused(run: SmallRun, killed: str, tmp_path: Path) -> None:
    """Whoever may write to the bucket can set the digest in the marker right."""
    for marker in Path(killed).rglob("resume/*/*/complete.json"):
        path = marker.parent / "composer.pt"
        content = torch.load(path, weights_only=False)
        torch.save({**content, "note": Call(open, str(tmp_path / "ran"), "w")}, path)
        said = unseal(marker.read_bytes())
        said["digests"]["composer.pt"] = artifacts.digest_file(path)
        marker.write_text(json.dumps(seal(said)), "utf-8")
    with pytest.raises(UserError, match=r"composer\.pt: refused, because it asks for (_io|io|builtins)\.open.*resume/"):
        train(run, killed)
    assert not (tmp_path / "ran").exists()
    assert not list(Path(killed).rglob("manifest.json"))


def test_an_artifact_of_the_middle_of_a_phase_is_imported_with_its_optimiser_and_time(
    run: SmallRun, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a permanent checkpoint is one: by its URI, or by the file of its weights."""
    made = imported(run, "continue")
    for source in (made.uri, made.remote(canonical.WEIGHTS)):
        again = imported(run, "continue", Path(source))
        assert again.uri != made.uri
        assert again.digest == made.digest
    assert "no optimiser state" not in capsys.readouterr().out


def test_an_artifact_without_an_optimiser_or_with_a_wrong_one(run: SmallRun, tmp_path: Path) -> None:
    imported(run, "continue").fetch_folder(tmp_path / "files", tmp_path / "cache")
    path = tmp_path / "files" / canonical.OPTIMIZER
    moments = load_file(path)
    moments.pop("head.norm.weight.exp_avg")
    save_file(moments, path, metadata={"steps": "[8, 8]"})
    with pytest.raises(UserError, match=r"has no exp_avg of 'head\.norm\.weight'"):
        imported(run, "continue", tmp_path / "files")
    path.unlink()
    assert canonical.OPTIMIZER not in imported(run, "continue", tmp_path / "files").paths()


def test_process_0_alone_says_where_training_begins(
    run: SmallRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    recipe = load_recipe(artifacts.open_artifact(run.recipe).remote("recipe.yaml"))
    model = MaskedLanguageModel(config())
    optimizer = StableAdamW(parameter_groups(model.named_parameters(), 8e-5), lr=1e-3)
    said = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        clock = start_from(
            imported(run, "continue"), "pretrain", recipe.phases.pretrain, recipe.model, model, optimizer, tmp_path
        )
        assert clock.tokens == 8704
        said.append("going on 8,704 tokens" in capsys.readouterr().out)
    assert said == [True, False]


def test_the_import_command_makes_what_the_component_makes(run: SmallRun, tmp_path: Path) -> None:
    """So training from either is the same."""
    recipe = artifacts.open_artifact(run.recipe).remote("recipe.yaml")
    for then in ("next", "continue"):
        assert call("import", str(CHECKPOINT), str(tmp_path / then), "--recipe", recipe, "--then", then) == 0
        assert artifacts.open_artifact(str(tmp_path / then)).digest == imported(run, then).digest


def test_a_checkpoint_of_the_middle_starts_no_other_phase(run: SmallRun) -> None:
    mixture = make(run, "mixture", recipe=run.recipe, shards=[run.shards], phase="extend")
    arguments = {**run.train, "phase": "extend", "mixture": mixture.uri}
    with pytest.raises(UserError, match=r"8,704 tokens into phase 'pretrain'.*--then next"):
        make(run, "train", **arguments, checkpoint=imported(run, "continue").uri)


def test_training_from_another_models_checkpoint_names_the_key(run: SmallRun, tmp_path: Path) -> None:
    recipe = make(run, "recipe", preset=artifacts.open_artifact(run.recipe).remote("recipe.yaml"),
                  overrides=["model.num_attention_heads=2"])  # fmt: skip
    with pytest.raises(UserError, match="num_attention_heads is 2 in the recipe and 4 in the checkpoint"):
        make(run, "train", **{**run.train, "recipe": recipe.uri}, checkpoint=imported(run, "next").uri)


def test_the_next_phase_starts_its_own_time(run: SmallRun) -> None:
    start = imported(run, "next")
    mixture = make(run, "mixture", recipe=run.recipe, shards=[run.shards], phase="extend")
    trained = make(run, "train", **{**run.train, "phase": "extend", "mixture": mixture.uri}, checkpoint=start.uri)
    first = trained.read_json("history.json")[0]
    assert (first["batch"], first["learning_rate"]) == (1, 2e-3)


def test_evaluation_runs_these_weights_with_the_last_phases_rotary_bases(run: SmallRun, tmp_path: Path) -> None:
    reference = load_file(SETS["default"] / "ref_g160000_l160000.safetensors")
    recipe = load_recipe(artifacts.open_artifact(run.recipe).remote("recipe.yaml"))
    model = load_encoder(recipe, imported(run, "next"), tmp_path)
    with torch.no_grad():
        hidden = model.encode(reference["packed_input_ids"], reference["packed_cu_seqlens"], 200)
    torch.testing.assert_close(hidden, reference["packed_hidden"], atol=1e-5, rtol=0)


def test_a_released_folder_is_imported_without_an_optimiser(
    run: SmallRun, whole: ComposerCheckpoint, tmp_path: Path
) -> None:
    call("convert", str(CHECKPOINT), str(tmp_path / "released"))
    artifact = imported(run, "next", tmp_path / "released")
    weights = load_file(artifact.fetch(canonical.WEIGHTS, tmp_path / "cache"))
    assert all(torch.equal(weights[name], value) for name, value in whole.weights.items())
    assert canonical.OPTIMIZER not in artifact.paths()
    with pytest.raises(UserError, match="does not say how far"):
        imported(run, "continue", tmp_path / "released")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.hidden_size=128"], "model.hidden_size is 128 in the recipe and 64 in the checkpoint"),
        (["model.vocab_size=600"], "model.vocab_size is 600 in the recipe and 768 in the checkpoint"),
        (["model.num_attention_heads=2"], "model.num_attention_heads is 2 in the recipe and 4 in the checkpoint"),
        (["model.num_hidden_layers=4"], "model.num_hidden_layers is 4 in the recipe and 7 in the checkpoint"),
        (["model.mask_token_id=5"], "model.mask_token_id is 5 in the recipe and 4 in the checkpoint"),
        (["phases.pretrain.rope_theta.local_attention=5000"], "phases.pretrain.rope_theta.local_attention is 5,000"),
        (["phases.pretrain.tokens=8k", "phases.pretrain.schedule={}", "phases.pretrain.batch.warmup_tokens=7k"],
         "phases.pretrain.tokens is 8,000: nothing is left"),
    ],
)  # fmt: skip
def test_another_recipe_is_refused_by_its_key(
    run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], words: str
) -> None:
    recipe = tmp_path / "recipe.yaml"
    call("recipe", "show", artifacts.open_artifact(run.recipe).remote("recipe.yaml"),
         *(word for key in overrides for word in ("--set", key)))  # fmt: skip
    recipe.write_text(capsys.readouterr().out, "utf-8")
    code = call("run", "import_checkpoint", "--recipe", str(recipe), "--source", str(CHECKPOINT), "--phase", "pretrain",
                "--then", "continue", "--root", str(tmp_path / "root"))  # fmt: skip
    assert (code, words in capsys.readouterr().err) == (2, True)
    # The note of what the attempt reads, which the next one takes over.
    assert {path.name for path in (tmp_path / "root").rglob("*.*")} == {"work.json"}


def test_a_model_without_the_tokenizer_that_the_recipe_wants_of_it_is_refused(
    run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, released = tmp_path / "recipe.yaml", tmp_path / "released"
    assert call("convert", str(CHECKPOINT), str(released), "--max-seq-len", "128") == 0
    (released / "tokenizer.json").unlink()
    capsys.readouterr()
    call("recipe", "show", artifacts.open_artifact(run.recipe).remote("recipe.yaml"),
         "--set", "tokenizer={kind: checkpoint}")  # fmt: skip
    recipe.write_text(capsys.readouterr().out, "utf-8")
    code = call("run", "import_checkpoint", "--recipe", str(recipe), "--source", str(released), "--phase", "pretrain",
                "--then", "next", "--root", str(tmp_path / "root"))  # fmt: skip
    assert (code, f"error: {released}: it carries no tokenizer.json" in capsys.readouterr().err) == (2, True)
    assert not list((tmp_path / "root").rglob("manifest.json"))


# Conversion.


def call(*arguments: str) -> int:
    """The command line in this process; its exit code."""
    before, sys.argv = sys.argv, ["mmbert", *arguments]
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        sys.argv = before
    return int(ended.value.code or 0)


@pytest.mark.parametrize("name", SETS)
def test_a_converted_checkpoint_gives_the_originals_logits(name: str, tmp_path: Path) -> None:
    out = tmp_path / "model"
    code = call("convert", str(SETS[name] / "ep0-ba8-rank0.pt"), str(out), "--tokenizer", str(TOKENIZER),
                "--max-seq-len", "1024")  # fmt: skip
    assert code == 0
    reference = load_file(SETS[name] / "ref_g10000_l10000.safetensors")
    model = AutoModelForMaskedLM.from_pretrained(out, attn_implementation="sdpa", dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(input_ids=reference["input_ids"], attention_mask=reference["attention_mask"]).logits
    masked = reference["labels"] != -100
    torch.testing.assert_close(logits[masked], reference["masked_logits"], atol=1e-4, rtol=0)
    assert json.loads((out / "tokenizer_config.json").read_text("utf-8"))["model_max_length"] == 1024
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_local_theta_of_minus_one_is_the_global_one_and_an_empty_folder_is_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ep0-ba8-rank0.pt"
    edited(lambda state: _set(state, "local_attn_rotary_emb_base", -1))(path)
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path / "model")
    before = Path.cwd().stat().st_ino
    assert call("convert", str(path), ".") == 0
    assert (Path.cwd().stat().st_ino, tmp_path.joinpath("model").stat().st_ino) == (before, before)
    assert {"config.json", "model.safetensors", "tokenizer.json"} < {place.name for place in Path().iterdir()}
    assert not list(Path().glob(".*"))
    assert "# model\n" in Path("README.md").read_text("utf-8")
    assert "Loading weights" not in capfd.readouterr().err
    written = json.loads((tmp_path / "model" / "config.json").read_text("utf-8"))
    assert written["rope_parameters"]["sliding_attention"]["rope_theta"] == 10_000


def test_what_training_wrote_converts(run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = imported(run, "next")
    assert call("convert", start.uri, str(tmp_path / "a")) == 0
    assert call("convert", start.uri, str(tmp_path / "c"), "--tokenizer", run.tokenizer) == 2
    assert "not the tokenizer that the checkpoint carries" in capsys.readouterr().err
    folder = tmp_path / "files"
    start.fetch_folder(folder, tmp_path / "cache")
    (folder / TOKENIZER_FILE).unlink()
    assert call("convert", str(folder / canonical.WEIGHTS), str(tmp_path / "b"), "--tokenizer", run.tokenizer) == 0
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()

    # Its manifest leads to the tokenizer that it was trained with: one of the same size is refused.
    words = artifacts.open_artifact(run.tokenizer)
    known = artifacts.ArtifactWriter(
        f"{tmp_path}/known", "checkpoint", "known", {},
        {"tokenizer": [{"uri": words.uri, "digest": words.digest, "kind": "tokenizer"}]},
    )  # fmt: skip
    known.add_folder("", folder)
    after = artifacts.ArtifactWriter(
        f"{tmp_path}/after", "checkpoint", "after", {},
        {"checkpoints": [{"uri": known.commit({}).uri, "digest": "", "kind": "checkpoint"}]},
    )  # fmt: skip
    after.add_folder("", folder)
    trained = after.commit({}).uri
    other = tmp_path / "other"
    words.fetch_folder(other, tmp_path / "cache")
    content = words.read_json("tokenizer.json")
    vocabulary = content["model"]["vocab"]
    a, b = list(vocabulary)[-2:]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (other / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    assert call("convert", trained, str(tmp_path / "x"), "--tokenizer", str(other)) == 2
    assert "not the tokenizer that the checkpoint was trained with: it has 768 tokens" in capsys.readouterr().err
    # Of weights alone nothing tells, but the special tokens must be the model's.
    names = json.loads((other / "tokenizer_config.json").read_text("utf-8"))
    names["bos_token"], names["eos_token"] = names["eos_token"], names["bos_token"]
    (other / "tokenizer_config.json").write_text(json.dumps(names), "utf-8")
    (other / "special_tokens_map.json").unlink(missing_ok=True)
    assert call("convert", str(folder / canonical.WEIGHTS), str(tmp_path / "x"), "--tokenizer", str(other)) == 2
    assert "other: eos_token_id is 2 here and 1 in the model" in capsys.readouterr().err

    (folder / canonical.STATE).unlink()
    weights = str(folder / canonical.WEIGHTS)
    assert call("convert", weights, str(tmp_path / "c"), "--tokenizer", run.tokenizer) == 2
    assert "give the recipe with --recipe" in capsys.readouterr().err
    recipe = artifacts.open_artifact(run.recipe).remote("recipe.yaml")
    assert call("convert", weights, str(tmp_path / "c"), "--tokenizer", run.tokenizer, "--recipe", recipe) == 0
    assert call("convert", weights, str(tmp_path / "d"), "--tokenizer", run.tokenizer, "--recipe", "tiny") == 2
    assert "model.vocab_size is 8192 in the recipe and 768 in the checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()


def test_checkpoints_and_released_folders_lie_in_s3_too(
    s3_server: S3, monkeypatch: pytest.MonkeyPatch, run: SmallRun, whole: ComposerCheckpoint, tmp_path: Path
) -> None:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    storage.s3_client.cache_clear()
    bucket = s3_server.make_bucket("original")
    storage.upload(f"{bucket}/run/ep0-ba8-rank0.pt", CHECKPOINT)
    assert call("convert", f"{bucket}/run/ep0-ba8-rank0.pt", f"{bucket}/released") == 0
    assert "config.json" in storage.list_files(f"{bucket}/released")
    artifact = make(
        run, "import_checkpoint", recipe=run.recipe, source=f"{bucket}/released", phase="pretrain", then="next"
    )
    weights = load_file(artifact.fetch(canonical.WEIGHTS, tmp_path))
    assert all(torch.equal(weights[name], value) for name, value in whole.weights.items())

    # This project's files: the same from a folder and from S3.
    folder = tmp_path / "ours"
    imported(run, "continue").fetch_folder(folder, tmp_path / "cache")
    (folder / "composer").mkdir()
    edited(lambda state: state["integrations"].clear())(folder / "composer" / "ep0-ba8-rank0.pt")
    for path in folder.rglob("*.*"):
        storage.upload(f"{bucket}/ours/{path.relative_to(folder)}", path)
    for name in ("composer/ep0-ba8-rank0.pt", canonical.WEIGHTS, ""):
        here, there = (
            sources.read(sources.fetch(uri, tmp_path / name / "fetched", optimizer=True), uri, optimizer=True)
            for uri in (str(folder / name), f"{bucket}/ours/{name}".rstrip("/"))
        )
        assert here.config["num_attention_heads"] == 4
        assert (here.config, here.max_seq_len, here.clock) == (there.config, there.max_seq_len, there.clock)
        assert here.optimizer is not None
        assert there.optimizer is not None
        assert here.optimizer.steps == there.optimizer.steps == 8
    storage.s3_client.cache_clear()


def edited(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """A checkpoint with something else in it, saved as torch saves."""

    def write(path: Path) -> None:
        content = torch.load(CHECKPOINT, weights_only=False)
        change(content["state"])
        torch.save(content, path)

    return write


def flipped(share: float) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        data = bytearray(CHECKPOINT.read_bytes())
        data[int(len(data) * share)] ^= 1
        path.write_bytes(data)

    return write


def _set(state: dict[str, Any], key: str, value: Any) -> None:
    state["integrations"]["huggingface"]["model"]["config"]["content"][key] = value


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "no such file"),
    "cut short": (lambda path: path.write_bytes(CHECKPOINT.read_bytes()[:-5000]), "cut short"),
    "empty": (lambda path: path.write_bytes(b""), "not a checkpoint"),
    "a bit of a tensor": (flipped(0.5), "Bad CRC-32"),
    "a bit of the pickle": (flipped(0.005), "Bad CRC-32"),
    "code": (edited(lambda s: s.update(callbacks=os.system)), "posix.system"),
    "no model": (edited(lambda s: s.pop("model")), "state.model"),
    "no weights": (edited(lambda s: s.update(model={"model.head.norm.weight": 1})), "is no tensor"),
    "no time": (edited(lambda s: s.pop("timestamp")), "state.timestamp"),
    "a weight gone": (edited(lambda s: s["model"].pop("model.head.norm.weight")), "head.norm.weight"),
    "not a number": (
        edited(lambda s: s["model"]["model.head.norm.weight"].fill_(torch.nan)),
        "'head.norm.weight' holds NaN",
    ),
    "infinite": (
        edited(lambda s: s["model"]["model.bert.encoder.layers.3.mlp.Wi.weight"][5].fill_(torch.inf)),
        "'bert.encoder.layers.3.mlp.Wi.weight' holds NaN or infinite",
    ),
    "another vocabulary": (edited(lambda s: _set(s, "vocab_size", 800)), "vocab_size is 768 in the weights and 800"),
    "another width": (edited(lambda s: _set(s, "intermediate_size", 80)), "intermediate_size is 96 in the weights"),
    "another model": (edited(lambda s: _set(s, "mlp_layer", "mlp")), "mlp_layer 'mlp'"),
}
COMMANDS = {"convert": ("--tokenizer", str(TOKENIZER)), "import": ("--max-seq-len", "128")}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("case", BAD)
def test_a_bad_checkpoint_is_refused_and_nothing_written(
    case: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write, words = BAD[case]
    path = tmp_path / "in" / "ep0-ba8-rank0.pt"
    path.parent.mkdir()
    write(path)
    assert call(command, str(path), str(tmp_path / "out" / "model"), *COMMANDS[command]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}")
    assert words in error
    assert not list((tmp_path / "out").glob("**/*"))


def test_another_optimiser_is_refused_by_import_and_no_matter_for_convert(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ep0-ba8-rank0.pt"
    edited(lambda s: s.update(optimizers={"AdamW": {}}))(path)
    assert call("import", str(path), str(tmp_path / "out"), "--max-seq-len", "128") == 2
    assert "its optimiser is AdamW" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert call("convert", str(path), str(tmp_path / "out"), "--max-seq-len", "128") == 0


def test_a_wrong_tokenizer_or_a_full_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(words: str, out: str = "out") -> None:
        assert call("convert", str(CHECKPOINT), str(tmp_path / out), "--tokenizer", str(tmp_path / "words")) == 2
        assert words in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    refused("no tokenizer.json")
    shutil.copytree(TOKENIZER, tmp_path / "words")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine", "utf-8")
    refused("there are files or folders here already", "full")
    (tmp_path / "full" / "notes.txt").unlink()
    (tmp_path / "full" / "empty").mkdir()
    refused("there are files or folders here already", "full")
    content = json.loads((TOKENIZER / "tokenizer.json").read_text("utf-8"))
    word = max(content["model"]["vocab"], key=content["model"]["vocab"].get)
    content["model"]["vocab"].pop(word)
    (tmp_path / "words" / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    refused("it has 767 tokens, the checkpoint's 768")
    content["model"]["vocab"] |= {f"more{n}": 767 + n for n in range(10)}
    (tmp_path / "words" / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    refused("it has 777 tokens, the checkpoint's 768")
    (tmp_path / "words" / "tokenizer.json").write_text('{"version": "1.0"}', "utf-8")
    refused("cannot be read as a tokenizer")
