"""The released folder, loaded by plain transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, pipeline

from mmbert.errors import UserError
from mmbert.model.config import EncoderConfig
from mmbert.release.checkpoints import load_weights
from mmbert.release.hugging_face import export, from_hugging_face_names, to_hugging_face_names
from mmbert.release.model_card import PhaseSummary, model_card
from mmbert.release.parity import check_parity

ORIGINAL = Path(__file__).parent.parent / "fixtures" / "original"
CONFIG = EncoderConfig(768, 64, 96, 7, 4, global_rope_theta=160_000, local_rope_theta=10_000)
CARD = model_card(
    name="tiny-encoder",
    description="A small one.",
    licence="mit",
    languages=["deu_Latn", "nor_Latn", "deu_Latn"],
    parameters=1_000_000,
    mask_token="<mask>",
    phases=[PhaseSummary("pretrain", 2_300_000_000_000, 1024, 0.3, 60, 0.7, 8e-4, 10_000)],
    data=["Made-up words."],
    limits=["It knows no language."],
    lineage={"weights": "sha256:00"},
)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return load_weights(ORIGINAL / "ep0-ba8-rank0.pt")


@pytest.fixture(scope="module")
def folder(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("release") / "model"
    export(weights, CONFIG, ORIGINAL / "tokenizer", 512, out, card=CARD)
    return out


def samples(*lengths: int) -> dict[str, list[int]]:
    generator = torch.Generator().manual_seed(0)
    return {
        f"of {n}": [2, *torch.randint(5, 768, (n - 2,), generator=generator).tolist(), 1]
        for n in lengths or (3, 42, 132, 402)
    }


def test_exported_model_equals_the_training_model(folder: Path) -> None:
    report = check_parity(folder, CONFIG, samples(), 1e-4)
    assert report.max_logit_difference < 2e-5
    assert report.max_hidden_difference < 2e-5
    assert (report.samples, report.tokens, report.longest) == (4, 579, 402)
    assert report.logit_rows > 50


def test_the_gate_bounds_what_it_holds_and_still_compares_long_samples(folder: Path) -> None:
    """Padded to its longest, all of this would be 21,000 tokens; logits of every token would be 8,109 rows."""
    report = check_parity(folder, CONFIG, samples(9, 900, 1000, 2000, 4200), 1e-4)
    assert (report.longest, report.tokens) == (4200, 8109)
    assert report.logit_rows <= 3 * 64
    assert report.max_hidden_difference < 1e-4


def _theta(kind: str, theta: int) -> dict[str, object]:
    bases = {"full_attention": 160_000, "sliding_attention": 10_000, kind: theta}
    return {"rope_parameters": {name: {"rope_type": "default", "rope_theta": base} for name, base in bases.items()}}


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"classifier_activation": "relu"}, r"the logits, in sample 'of 3' \(3 tokens\), position 0"),
        ({"local_attention": 64}, r"layer 1, in sample 'of 42' \(42 tokens\), position 0"),
        ({"norm_eps": 0.1}, r"embeddings, in sample 'of 3' \(3 tokens\), position 0"),
        (_theta("full_attention", 10_000), r"layer 0, in sample 'of 3' \(3 tokens\), position 0"),
        (_theta("sliding_attention", 160_000), r"layer 1, in sample 'of 3' \(3 tokens\), position 0"),
    ],
)
def test_parity_gate_says_where_the_models_part(
    folder: Path, tmp_path: Path, change: dict[str, object], where: str
) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}), "utf-8")
    with pytest.raises(UserError, match=f"first at {where},"):
        check_parity(tmp_path, CONFIG, samples(), 1e-4)


def test_parity_gate_refuses_nan(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    stored = load_file(folder / "model.safetensors")
    save_file(
        {**stored, "decoder.bias": torch.full((768,), torch.nan)}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(UserError, match=r"first at the logits, .*position 0, by nan"):
        check_parity(tmp_path, CONFIG, samples(), 1e-4)


def test_parity_gate_names_a_tensor_that_transformers_load_otherwise(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    stored = load_file(folder / "model.safetensors")
    stored.pop("decoder.bias")
    save_file(stored, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"does not load 'decoder\.bias' as it stands in model\.safetensors"):
        check_parity(tmp_path, CONFIG, samples(), 1e-4)


def test_plain_transformers_load_everything(folder: Path, weights: dict[str, Tensor]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("w5 w6")["input_ids"] == [2, 5, 6, 1]
    assert tokenizer("w5", "w6")["input_ids"] == [2, 5, 1, 6, 1]
    assert set(tokenizer("w5")) == {"input_ids", "attention_mask"}
    names = {
        kind: getattr(tokenizer, f"{kind}_token_id") for kind in ("pad", "eos", "bos", "unk", "mask", "cls", "sep")
    }
    assert names == {"pad": 0, "eos": 1, "bos": 2, "unk": 3, "mask": 4, "cls": 2, "sep": 1}
    assert tokenizer.model_max_length == 512
    assert tokenizer.decode(tokenizer("w5 <mask>")["input_ids"], skip_special_tokens=True) == "w5"

    body, language_model = AutoModel.from_pretrained(folder), AutoModelForMaskedLM.from_pretrained(folder)
    assert type(body).__name__ == "ModernBertModel"
    assert body.config.max_position_embeddings == 512
    assert language_model.decoder.weight is language_model.model.embeddings.tok_embeddings.weight
    back = from_hugging_face_names(language_model.state_dict())
    assert {name: value.tolist() for name, value in back.items()} == {n: v.tolist() for n, v in weights.items()}
    assert pipeline("fill-mask", model=str(folder))("w5 <mask> w6", top_k=2)[0]["token_str"].startswith("w")


def test_export_is_the_same_to_the_byte(folder: Path, weights: dict[str, Tensor], tmp_path: Path) -> None:
    export(dict(reversed(weights.items())), CONFIG, ORIGINAL / "tokenizer", 512, tmp_path, card=CARD)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
    assert set(files) >= {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"}


def test_names_go_there_and_back(weights: dict[str, Tensor]) -> None:
    there = to_hugging_face_names(weights)
    assert "model.layers.3.attn.Wqkv.weight" in there
    assert from_hugging_face_names(there).keys() == weights.keys()


def test_wrong_input_writes_nothing(weights: dict[str, Tensor], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"tokenizer\.json: no such file"):
        export(weights, CONFIG, tmp_path, 512, out, card=CARD)
    tokenizer = json.loads((ORIGINAL / "tokenizer" / "tokenizer.json").read_text("utf-8"))
    tokenizer["added_tokens"].pop()
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    with pytest.raises(UserError, match="id 4, the model's mask token"):
        export(weights, CONFIG, tmp_path, 512, out, card=CARD)
    with pytest.raises(UserError, match="head"):
        export({**weights, "head.norm.weight": torch.full((64,), torch.inf)}, CONFIG, tmp_path, 512, out, card=CARD)
    assert not out.exists()


def test_card_is_read_by_the_hub_and_by_people() -> None:
    _, front, body = CARD.split("---\n", 2)
    assert yaml.safe_load(front)["language"] == ["deu", "nor"]
    assert "| pretrain | 2,300,000,000,000 | 1,024 | 30% | 60 | 0.7 | 0.0008 | 10,000 |" in body
