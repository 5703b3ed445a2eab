"""A model as a Hugging Face folder that plain transformers load as ModernBERT."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from mmbert.errors import InfrastructureError, UserError
from mmbert.model.config import EncoderConfig
from mmbert.model.head import TIED_DECODER
from mmbert.release.checkpoints import check_weights, save_weights
from mmbert.release.names import CONFIG, MODEL_WEIGHTS

_FULL, _SLIDING = "full_attention", "sliding_attention"
# How texts written for other models name the mask token.
MASK_ALIAS = "[MASK]"


def to_hugging_face_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of transformers' ModernBertForMaskedLM; no value changes, and the tied decoder is left to transformers."""
    names = {name: re.sub(r"^bert\.(encoder\.)?", "model.", name) for name in weights if name != TIED_DECODER}
    return {new: weights[old] for old, new in names.items()}


def from_hugging_face_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of `to_hugging_face_names`."""
    layers = {
        name: re.sub(r"^model\.layers\.", "bert.encoder.layers.", name) for name in weights if name != TIED_DECODER
    }
    return {re.sub(r"^model\.", "bert.", new): weights[old] for old, new in layers.items()}


def model_config(config: EncoderConfig, max_position_embeddings: int) -> dict[str, Any]:
    """`config.json`, with the keys of transformers 5 (layer types, rotary parameters) and those of 4.48 to 4.57."""
    kinds = [_FULL if config.is_global(n) else _SLIDING for n in range(config.num_hidden_layers)]
    return {
        "architectures": ["ModernBertForMaskedLM"],
        "model_type": "modernbert",
        # Whose keys these are. Without it 4.57 takes any local tokenizer for a faulty one of Mistral's, and warns.
        "transformers_version": "5.0.0",
        "dtype": "float32",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "hidden_activation": "gelu",
        "max_position_embeddings": max_position_embeddings,
        "norm_eps": config.norm_eps,
        "norm_bias": False,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "mlp_dropout": config.mlp_dropout,
        "embedding_dropout": config.embedding_dropout,
        "initializer_range": config.initializer_range,
        "initializer_cutoff_factor": 2.0,
        "decoder_bias": True,
        "tie_word_embeddings": True,
        "classifier_activation": "gelu",
        "classifier_bias": False,
        "classifier_dropout": 0.0,
        "classifier_pooling": "mean",
        "deterministic_flash_attn": False,
        "sparse_prediction": False,
        "sparse_pred_ignore_index": -100,
        "local_attention": config.sliding_window,
        "global_attn_every_n_layers": config.global_attn_every_n_layers,
        "layer_types": kinds,
        "rope_parameters": {
            _FULL: {"rope_type": "default", "rope_theta": config.global_rope_theta},
            _SLIDING: {"rope_type": "default", "rope_theta": config.local_rope_theta},
        },
        "global_rope_theta": config.global_rope_theta,
        "local_rope_theta": config.local_rope_theta,
        "pad_token_id": config.pad_token_id,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "cls_token_id": config.bos_token_id,
        "sep_token_id": config.eos_token_id,
        "mask_token_id": config.mask_token_id,
    }


# Settings of a ModernBERT that change what it computes, and the one value of each that this project's encoder has.
_FIXED = {
    "model_type": "modernbert",
    "hidden_activation": "gelu",
    "classifier_activation": "gelu",
    "norm_bias": False,
    "attention_bias": False,
    "mlp_bias": False,
    "classifier_bias": False,
    "decoder_bias": True,
    "attention_dropout": 0.0,
    "tie_word_embeddings": True,
    "rope_scaling": None,
}
_SAME_NAMES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "norm_eps")
_SPECIAL = ("pad_token_id", "eos_token_id", "bos_token_id", "mask_token_id")


def described_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of `EncoderConfig` that a ModernBERT's `config.json` gives, of transformers 4.48 or later.

    Raises UserError naming the key where the model has parts that this project's encoder does not.
    """
    for key, value in _FIXED.items():
        if config.get(key, value) != value:
            raise UserError(f"{where}: its config.json has {key} {config[key]!r}; only {value!r} is supported")
    missing = [key for key in (*_SAME_NAMES, "local_attention") if key not in config]
    if missing:
        raise UserError(f"{where}: its config.json lacks {missing[0]}; is it a ModernBERT's?")
    try:
        return _described(config, where)
    except (ArithmeticError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{where}: its config.json has a wrong value: {error}") from error


def _described(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    rope = config.get("rope_parameters") or {}
    for kind, parameters in rope.items():
        if parameters.get("rope_type", "default") != "default":
            raise UserError(
                f"{where}: its config.json has rope_parameters.{kind}.rope_type {parameters['rope_type']!r}; "
                "only 'default' is supported"
            )
    theta = (rope.get(_FULL) or {}).get("rope_theta", config.get("global_rope_theta"))
    local = (rope.get(_SLIDING) or {}).get("rope_theta", config.get("local_rope_theta"))
    if theta is None:
        raise UserError(f"{where}: its config.json has neither rope_parameters nor global_rope_theta")
    layers, window = int(config["num_hidden_layers"]), int(config["local_attention"])
    if window < 2 or window % 2:
        raise UserError(f"{where}: its config.json has local_attention {window}; only an even one is supported")
    every = int(config.get("global_attn_every_n_layers") or 3)
    kinds = [_FULL if n % every == 0 else _SLIDING for n in range(layers)]
    if config.get("layer_types", kinds) != kinds:
        raise UserError(f"{where}: its config.json has layer_types that are not one global layer in every {every}")
    stated = {key: config[key] for key in (*_SAME_NAMES, *(k for k in _SPECIAL if config.get(k) is not None))}
    return {
        **stated,
        "global_attn_every_n_layers": every,
        "sliding_window": window,
        "embedding_dropout": config.get("embedding_dropout", 0.0),
        "mlp_dropout": config.get("mlp_dropout", 0.0),
        "global_rope_theta": float(theta),
        "local_rope_theta": float(theta if local in (None, -1) else local),
    }


def export(
    weights: Mapping[str, Tensor],
    config: EncoderConfig,
    tokenizer_dir: Path,
    max_position_embeddings: int,
    out_dir: Path,
    *,
    card: str,
) -> None:
    """Write `config.json`, `model.safetensors`, the tokenizer and the card (`README.md`); same input, same bytes.

    `max_position_embeddings` is the longest context trained for, in tokens. Raises UserError where the weights do not
    fit the configuration or are not finite, or where the folder has no `tokenizer.json` or one without the special
    tokens.
    """
    check_weights(weights, config, "export")
    tokenizer, tokenizer_config = _tokenizer_files(tokenizer_dir, config, max_position_embeddings)
    out_dir.mkdir(parents=True, exist_ok=True)
    named = to_hugging_face_names(weights)
    save_weights(named, out_dir / MODEL_WEIGHTS)
    _check_written(out_dir / MODEL_WEIGHTS, named)
    _write_json(out_dir / CONFIG, model_config(config, max_position_embeddings))
    _write_json(out_dir / "tokenizer.json", tokenizer)
    _write_json(out_dir / "tokenizer_config.json", tokenizer_config)
    _write_json(
        out_dir / "special_tokens_map.json", {k: v for k, v in tokenizer_config.items() if k.endswith("_token")}
    )
    (out_dir / "README.md").write_text(card, encoding="utf-8")


def _check_written(path: Path, weights: Mapping[str, Tensor]) -> None:
    with safe_open(path, "pt") as stored:
        for name, value in weights.items():
            if not torch.equal(stored.get_tensor(name), value):
                raise InfrastructureError(f"{path}: '{name}' reads otherwise than it was written; check the disk")


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _tokenizer_files(folder: Path, config: EncoderConfig, max_length: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """`tokenizer.json`, framing text with bos and eos as in training, and its `tokenizer_config.json`."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file; a release needs the tokenizer that the model was trained with")
    tokenizer = read_json(path)
    added = {token["id"]: token["content"] for token in tokenizer.get("added_tokens", [])}
    ids = {
        "pad": config.pad_token_id,
        "eos": config.eos_token_id,
        "bos": config.bos_token_id,
        "unk": config.unk_token_id,
        "mask": config.mask_token_id,
    }
    for kind, number in ids.items():
        if number not in added:
            raise UserError(
                f"{path}: no added token has id {number}, the model's {kind} token; is it another model's tokenizer?"
            )
    largest = max(vocabulary(tokenizer).values())
    if largest >= config.vocab_size:
        raise UserError(
            f"{path}: its largest id is {largest}, the model's vocab_size {config.vocab_size}; is it another model's "
            "tokenizer?"
        )
    tokens = {kind: added[number] for kind, number in ids.items()}
    for token in tokenizer["added_tokens"]:
        token["special"] = token["special"] or token["id"] in ids.values()
    tokenizer["post_processor"] = _framing(tokens["bos"], ids["bos"], tokens["eos"], ids["eos"])
    tokenizer["truncation"] = tokenizer["padding"] = None
    _name_mask(tokenizer, ids["mask"])
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **{f"{kind}_token": token for kind, token in tokens.items()},
        "cls_token": tokens["bos"],
        "sep_token": tokens["eos"],
    }
    return tokenizer, tokenizer_config


def _name_mask(tokenizer: dict[str, Any], number: int) -> None:
    """`[MASK]` in a text becomes the mask token too; no other text gets other ids, and the vocabulary stays.

    A second token of the same id would count in `len(tokenizer)`, by which scripts resize models. So the normalizer
    writes the one name for the other, and the mask token is looked for after that. Not done where `[MASK]` is a token,
    or where the normalizer changes the mask token's own name, as one that puts a space in front does.
    """
    if MASK_ALIAS in vocabulary(tokenizer):
        return
    mask = next(token for token in tokenizer["added_tokens"] if token["id"] == number)
    normalizer = tokenizer.get("normalizer")
    if normalizer and _normalized(normalizer, mask["content"]) != mask["content"]:
        return
    before = {"type": "Replace", "pattern": {"String": MASK_ALIAS}, "content": mask["content"]}
    after = normalizer["normalizers"] if normalizer and normalizer["type"] == "Sequence" else [normalizer]
    # A tokenizer that was released before has it already.
    others = [one for one in after if one and one != before]
    tokenizer["normalizer"] = {"type": "Sequence", "normalizers": [before, *others]}
    mask["normalized"] = True


def _normalized(normalizer: Mapping[str, Any], text: str) -> str:
    from tokenizers import Tokenizer

    empty = {"version": "1.0", "normalizer": normalizer, "model": {"type": "WordLevel", "vocab": {}, "unk_token": ""}}
    found: str = Tokenizer.from_str(json.dumps(empty)).normalizer.normalize_str(text)
    return found


def read_json(path: Path) -> dict[str, Any]:
    """Raises UserError where the file holds no JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: damaged or not JSON ({error}); fetch it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: a JSON object is needed here")
    return value


def vocabulary(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Token -> id of a `tokenizer.json`'s content; a Unigram model lists its pieces in the order of their ids."""
    model = tokenizer.get("model") or {}
    pieces = model.get("vocab") or {}
    listed = pieces if isinstance(pieces, Mapping) else {piece[0]: number for number, piece in enumerate(pieces)}
    return {**listed, **{token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])}}


def _framing(bos: str, bos_id: int, eos: str, eos_id: int) -> dict[str, Any]:
    def special(token: str) -> dict[str, Any]:
        return {"SpecialToken": {"id": token, "type_id": 0}}

    def text(name: str) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": 0}}

    single = [special(bos), text("A"), special(eos)]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, text("B"), special(eos)],
        "special_tokens": {t: {"id": t, "ids": [n], "tokens": [t]} for t, n in sorted(((bos, bos_id), (eos, eos_id)))},
    }
