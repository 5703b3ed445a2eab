"""`mmbert import`: what it takes, that nothing is lost on the way there and back, and what it refuses by its key."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ModernBertConfig, ModernBertForMaskedLM

from components.cli import main
from mmbert.artifacts import open_artifact
from tests.hub_server import HubServer

ORIGINAL = Path(__file__).parent.parent / "fixtures" / "original"
CHECKPOINT = ORIGINAL / "default_init" / "ep0-ba8-rank0.pt"


def call(*arguments: object) -> int:
    """The command line in this process; its exit code."""
    before, sys.argv = sys.argv, ["mmbert", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        sys.argv = before
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("released") / "model"
    assert call("convert", CHECKPOINT, out, "--max-seq-len", 128) == 0
    return out


def test_an_original_checkpoint_becomes_one_folder_that_is_an_artifact(tmp_path: Path) -> None:
    assert call("import", CHECKPOINT, tmp_path / "out", "--then", "continue", "--max-seq-len", 128) == 0
    artifact = open_artifact(str(tmp_path / "out"), "checkpoint")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*artifact.paths(), "manifest.json"}
    digested = {file.path for file in artifact.manifest.files if file.digested}
    assert digested == {"weights.safetensors", "optimizer.safetensors", "training_state.json", "tokenizer.json"}
    state = artifact.read_json("training_state.json")
    assert (state["phase"], state["finished"], state["tokens"], state["max_seq_len"]) == ("pretrain", False, 8704, 128)
    assert (state["model"]["num_attention_heads"], state["rope_theta"]["local_attention"]) == (4, 10_000)


def test_there_and_back_is_equal_to_the_bit(released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("import", CHECKPOINT, tmp_path / "first", "--max-seq-len", 128) == 0
    assert call("convert", tmp_path / "first", tmp_path / "second") == 0
    assert call("import", tmp_path / "second", tmp_path / "third") == 0
    capsys.readouterr()
    assert call("convert", tmp_path / "third", tmp_path / "fourth", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["out"], told["max_logit_difference"] < 1e-4) == (str(tmp_path / "fourth"), True)

    def content(folder: str, name: str) -> bytes:
        return (tmp_path / folder / name).read_bytes()

    assert content("first", "weights.safetensors") == content("third", "weights.safetensors")
    assert content("second", "model.safetensors") == (released / "model.safetensors").read_bytes()
    for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"):
        assert content("second", name) == content("fourth", name), name
    # A finished phase with all that it had, but for the optimiser, which a released model has not.
    first, third = (json.loads(content(folder, "training_state.json")) for folder in ("first", "third"))
    assert {key for key in first if first[key] != third[key]} == {"batches", "rows", "tokens"}
    assert not (tmp_path / "third" / "optimizer.safetensors").exists()


def test_what_plain_transformers_saved_comes_back_to_the_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ModernBertConfig(
        vocab_size=600, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
        global_attn_every_n_layers=2, local_attention=32, pad_token_id=0, eos_token_id=1, bos_token_id=2,
        mask_token_id=4,
    )  # fmt: skip
    model = ModernBertForMaskedLM(config)
    model.save_pretrained(tmp_path / "theirs")
    assert call("import", tmp_path / "theirs", tmp_path / "ours", "--phase", "decay") == 0
    shutil.copytree(ORIGINAL / "tokenizer", tmp_path / "words")
    content = json.loads((tmp_path / "words" / "tokenizer.json").read_text("utf-8"))
    content["model"]["vocab"] = {word: n for word, n in content["model"]["vocab"].items() if n < 600}
    (tmp_path / "words" / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    assert call("convert", tmp_path / "ours", tmp_path / "back", "--tokenizer", tmp_path / "words") == 0
    ours, theirs = (
        load_file(tmp_path / "back" / "model.safetensors"),
        load_file(tmp_path / "theirs" / "model.safetensors"),
    )
    assert {name: value.tolist() for name, value in ours.items()} == {n: v.tolist() for n, v in theirs.items()}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"attention_bias": True}, "attention_bias True"),
        ({"mlp_bias": True}, "mlp_bias True"),
        ({"norm_bias": True}, "norm_bias True"),
        ({"decoder_bias": False}, "decoder_bias False"),
        ({"hidden_activation": "silu"}, "hidden_activation 'silu'"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings False"),
        ({"model_type": "bert"}, "model_type 'bert'"),
        ({"local_attention": 33}, "local_attention 33"),
        ({"layer_types": ["full_attention"] * 7}, "layer_types that are not one global layer in every 3"),
        ({"global_attn_every_n_layers": 4}, "layer_types that are not one global layer in every 4"),
        ({"global_attn_every_n_layers": 4, "layer_types": None}, "6 is not a multiple of global_attn_every_n_layers 4"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn", "rope_theta": 1e4}}}, "rope_type 'yarn'"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling"),
        ({"num_attention_heads": 3}, "num_attention_heads"),
        ({"hidden_size": 128}, "hidden_size is 64 in the weights and 128"),
        ({"vocab_size": "many"}, "vocab_size"),
    ],
)
def test_a_model_with_other_parts_is_refused_by_its_key(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], words: str
) -> None:
    folder = tmp_path / "in"
    shutil.copytree(released, folder)
    config = {**json.loads((folder / "config.json").read_text("utf-8")), **change}
    kept = {key: value for key, value in config.items() if value is not None or key == "rope_scaling"}
    (folder / "config.json").write_text(json.dumps(kept), "utf-8")
    assert call("import", folder, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {folder}")
    assert words in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("command", ["convert", "import"])
def test_a_released_folder_with_broken_weights_is_refused(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, value: float
) -> None:
    shutil.copytree(released, tmp_path / "in")
    weights = load_file(released / "model.safetensors")
    weights["model.layers.2.attn.Wo.weight"][3, 3] = value
    save_file(weights, tmp_path / "in" / "model.safetensors", {"format": "pt"})
    assert call(command, tmp_path / "in", tmp_path / "out") == 2
    assert "'bert.encoder.layers.2.attn.Wo.weight' holds NaN or infinite" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_recipe_is_what_it_is_held_against(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("import", CHECKPOINT, tmp_path / "out", "--recipe", "tiny") == 2
    assert "model.vocab_size is 8192 in the recipe and 768 in the checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_released_model_has_no_middle_of_a_phase_and_a_full_folder_stays(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("import", released, tmp_path / "out", "--then", "continue") == 2
    assert "does not say how far its phase had come" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine", "utf-8")
    assert call("import", released, tmp_path / "out") == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]


def test_a_model_is_imported_by_its_name_on_the_hub(
    released: Path, hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("config.json", "model.safetensors", "tokenizer.json")
    hub.add("people/encoder", {name: (released / name).read_bytes() for name in names})
    assert call("import", "people/encoder", tmp_path / "out") == 0
    assert call("import", released, tmp_path / "same") == 0
    assert open_artifact(str(tmp_path / "out")).digest == open_artifact(str(tmp_path / "same")).digest
    assert call("import", "people/nothing", tmp_path / "none") == 2
    assert "no such file or folder here, and the hub has no" in capsys.readouterr().err


def test_a_model_without_its_configuration_is_told_so(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    shutil.copytree(released, folder)
    (folder / "config.json").unlink()
    for source in (folder, folder / "model.safetensors"):
        assert call("import", source, tmp_path / "out") == 2
        assert f"error: {source}: model.safetensors is here, and config.json" in capsys.readouterr().err


def test_what_it_says_of_the_folder_it_runs_in_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("import", ".", tmp_path / "out") == 2
    assert "error: .: no model.safetensors or weights.safetensors in this folder" in capsys.readouterr().err
