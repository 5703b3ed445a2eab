"""`mmbert merge`: checkpoints of every form become one of the form of the first, whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from components.cli import _exit_code, cli
from mmbert.errors import UserError
from mmbert.model.config import EncoderConfig
from mmbert.model.initialization import new_model
from mmbert.release.checkpoints import load_weights, save_weights
from mmbert.release.conversion import convert_to_folder
from mmbert.release.hugging_face import export
from mmbert.release.merge import ema, linear, ties
from mmbert.release.merging import MergeSettings, merge_files

ORIGINAL = Path(__file__).parent.parent / "fixtures" / "original"
A, B = ORIGINAL / "ep0-ba8-rank0.pt", ORIGINAL / "default_init" / "ep0-ba8-rank0.pt"
BASE = ORIGINAL / "ext" / "ep0-ba2-rank0.pt"
CONFIG = EncoderConfig(768, 32, 48, 4, 2)


def run(*arguments: object) -> str:
    result = CliRunner().invoke(cli, ["merge", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def stored(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, weights_only=False)["state"]
    return state


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def test_original_checkpoints_become_one_that_converts(tmp_path: Path) -> None:
    out = tmp_path / "merged"
    shown = run("--method", "ties", "--base", BASE, A, B, "--out", out, "--weights", "1,2", "--density", 0.3)
    (path,) = out.glob("*.pt")
    base, a, b = (load_weights(p) for p in (BASE, A, B))
    expected, _ = ties(base, {"a": a, "b": b}, 0.3, [1, 2])
    assert equal(load_weights(path), expected)

    state, source = stored(path), stored(A)
    assert list(state["model"]) == list(source["model"])
    embedding = state["model"]["model.bert.embeddings.tok_embeddings.weight"]
    assert embedding.data_ptr() == state["model"]["model.decoder.weight"].data_ptr()
    assert state["integrations"] == source["integrations"]
    assert state["optimizers"] == {}

    report = json.loads((out / "merge.json").read_text())
    assert list(report["kinds"]) == ["embedding", "attention", "mlp", "norms", "head"]
    assert list(report["layers"]) == ["embeddings", *map(str, range(7)), "head"]
    assert list(report["layers"]["3"]["kinds"]) == ["attention", "norms", "mlp"]
    whole = report["total"]
    assert whole["elements"] == sum(value.numel() for value in base.values())
    assert whole["kept_shares"][str(A)] == pytest.approx(0.3, abs=0.001)
    changes = [report["layers"][layer]["change_norms"][str(B)] ** 2 for layer in report["layers"]]
    assert sum(changes) == pytest.approx(whole["change_norms"][str(B)] ** 2)
    assert "sign conflict" in shown
    assert "the model" in shown

    parity = convert_to_folder(str(path), str(tmp_path / "model"), "", None, 256)
    assert parity.max_logit_difference < 1e-4


def test_a_file_as_out_and_the_report_beside_it(tmp_path: Path) -> None:
    out = tmp_path / "average.pt"
    shown = run("--method", "linear", A, B, "--out", out, "--weights", "3", "--weights", "1", "--json")
    assert equal(load_weights(out), linear([load_weights(A), load_weights(B)], [3, 1]))
    told = json.loads((tmp_path / "average.merge.json").read_text())
    assert told == {"method": "linear", "models": [str(A), str(B)], "weights": [3.0, 1.0]}
    assert json.loads(shown) == {"out": str(out), "report": str(tmp_path / "average.merge.json"), **told}
    run("--method", "ema", BASE, A, B, "--out", tmp_path / "ema.pt", "--decay", 0.25)
    assert equal(load_weights(tmp_path / "ema.pt"), ema([load_weights(p) for p in (BASE, A, B)], 0.25))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "average.merge.json",
        "average.pt",
        "ema.merge.json",
        "ema.pt",
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[int], Path]:
    """Makes the released folder of a seeded model."""

    def make(seed: int) -> Path:
        tokenizer = ORIGINAL / "tokenizer"
        out = tmp_path / f"released-{seed}"
        weights = {name: value.detach() for name, value in new_model(CONFIG, seed).weights().items()}
        export(weights, CONFIG, tokenizer, 256, out, card="# A model\n")
        return out

    return make


def test_released_folders_become_a_folder_that_transformers_load(tmp_path: Path, folder: Callable[[int], Path]) -> None:
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    first, second = folder(1), folder(2)
    run("--method", "linear", first, second, "--out", tmp_path / "merged")
    assert sorted(p.name for p in (tmp_path / "merged").iterdir()) == [
        "config.json", "merge.json", "model.safetensors", "special_tokens_map.json", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "merged")
    weights = [AutoModelForMaskedLM.from_pretrained(path).state_dict() for path in (first, second)]
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, (weights[0][name] + weights[1][name]) / 2)
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").mask_token_id == CONFIG.mask_token_id


def test_types_of_the_first_stay(tmp_path: Path) -> None:
    exact = [new_model(CONFIG, seed).weights() for seed in (1, 2)]
    for name, weights in zip("ab", exact, strict=True):
        save_weights({n: v.detach().bfloat16() for n, v in weights.items()}, tmp_path / f"{name}.safetensors")
    run(
        "--method",
        "linear",
        tmp_path / "a.safetensors",
        tmp_path / "b.safetensors",
        "--out",
        tmp_path / "c.safetensors",
    )
    from safetensors.torch import load_file

    merged = load_file(tmp_path / "c.safetensors")
    halves = linear([load_weights(tmp_path / f"{name}.safetensors") for name in "ab"], [1, 1])
    assert all(torch.equal(merged[name], halves[name].bfloat16()) for name in halves)


def altered(tmp_path: Path, name: str, change: Callable[[dict[str, Tensor]], None]) -> str:
    checkpoint = torch.load(A, weights_only=False)
    change(checkpoint["state"]["model"])
    checkpoint["state"]["optimizers"] = {}
    torch.save(checkpoint, tmp_path / name)
    return str(tmp_path / name)


def test_what_cannot_be_merged_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    def spoil(model: dict[str, Tensor]) -> None:
        model["model.bert.encoder.layers.2.mlp.Wo.weight"][1, 1] = torch.inf

    def shorten(model: dict[str, Tensor]) -> None:
        model["model.head.norm.weight"] = torch.ones(5)

    infinite, short = altered(tmp_path, "inf.pt", spoil), altered(tmp_path, "short.pt", shorten)
    copy = str(shutil.copyfile(A, tmp_path / "copy.pt"))
    a, b, base = str(A), str(B), str(BASE)
    for variants, start, settings, message in (
        ((a, infinite), "", MergeSettings("linear"), r"inf\.pt: 'bert\.encoder\.layers\.2\.mlp\.Wo\.weight' holds NaN"),
        ((a, short), "", MergeSettings("linear"), r"'head\.norm\.weight' has shape \[5\] in .*short\.pt and \[64\]"),
        ((a, a), "", MergeSettings("linear"), "was given twice"),
        ((a, b, copy), "", MergeSettings("linear"), r"copy\.pt and .*ep0-ba8-rank0\.pt hold the same weights"),
        ((b, copy), a, MergeSettings("ties"), "hold the same weights"),
        ((a, b), "", MergeSettings("ties"), "give --base"),
        ((a, b), base, MergeSettings("ties", density=1.5), "density 1.5"),
        ((a, b), base, MergeSettings("ties", (1.0,)), "--weights: 1 for 2 variants"),
        ((a, b), base, MergeSettings("ties", (1.0, -1.0)), "must be positive"),
        ((a, b), "", MergeSettings("ema", decay=1.0), "must lie between 0 and 1"),
        ((a,), "", MergeSettings("linear"), "two or more"),
        ((a, str(tmp_path / "none.pt")), "", MergeSettings("linear"), "no such file"),
    ):  # fmt: skip
        for out in (tmp_path / "out", tmp_path / "out.pt"):
            with pytest.raises(UserError, match=message):
                merge_files(settings, variants, start, str(out))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy.pt", "inf.pt", "short.pt"]


def test_a_model_of_other_heads_is_another_model(tmp_path: Path) -> None:
    for name, heads in (("a", 2), ("b", 4)):
        config = EncoderConfig(768, 32, 48, 4, heads)
        weights = {n: v.detach() for n, v in new_model(config, heads).weights().items()}
        export(weights, config, ORIGINAL / "tokenizer", 256, tmp_path / name, card="")
    with pytest.raises(UserError, match="num_attention_heads is 4"):
        merge_files(MergeSettings("linear"), [str(tmp_path / n) for n in "ab"], "", str(tmp_path / "out"))


def test_options_of_another_method_are_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in (
        (["--method", "linear", "--density", "0.5"], "--density belongs to --method ties"),
        (["--method", "ema", "--weights", "1,2"], "--weights: a running average has none"),
        (["--method", "linear", "--weights", "1,two"], "--weights: could not convert"),
        (["--method", "linear", "--weights", "1,-1"], "--weights 1,-1: each must be above 0"),
        (["--method", "ties", "--density", "1.5"], "'--density': 1.5 is not in the range 0<x<=1"),
        (["--method", "ema", "--decay", "1"], "'--decay': 1.0 is not in the range 0<x<1"),
    ):
        line = [*options, str(A), str(B), "--out", str(tmp_path / "out.pt")]
        assert _exit_code(lambda line=line: cli(["merge", *line], standalone_mode=False)) == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
