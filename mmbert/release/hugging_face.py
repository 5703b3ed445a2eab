"""A model as a Hugging Face folder that plain transformers load as ModernBERT, and the gate that compares the two."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmbert.errors import UserError
from mmbert.model.config import EncoderConfig
from mmbert.model.head import TIED_DECODER, MaskedLanguageModel
from mmbert.release.checkpoints import check_weights, save_weights
from mmbert.release.names import CONFIG, MODEL_WEIGHTS

_FULL, _SLIDING = "full_attention", "sliding_attention"
_MASK_EVERY = 7  # the parity gate masks this share of each sample


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
    rope = config.get("rope_parameters") or {}
    theta = (rope.get(_FULL) or {}).get("rope_theta", config.get("global_rope_theta"))
    local = (rope.get(_SLIDING) or {}).get("rope_theta", config.get("local_rope_theta"))
    if theta is None:
        raise UserError(f"{where}: its config.json has neither rope_parameters nor global_rope_theta")
    every = config.get("global_attn_every_n_layers", 3)
    kinds = [_FULL if n % every == 0 else _SLIDING for n in range(config["num_hidden_layers"])]
    if config.get("layer_types", kinds) != kinds:
        raise UserError(f"{where}: its config.json has layer_types that are not one global layer in every {every}")
    stated = {key: config[key] for key in (*_SAME_NAMES, *(k for k in _SPECIAL if config.get(k) is not None))}
    return {
        **stated,
        "global_attn_every_n_layers": every,
        "sliding_window": config["local_attention"],
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
    save_weights(to_hugging_face_names(weights), out_dir / MODEL_WEIGHTS)
    _write_json(out_dir / CONFIG, model_config(config, max_position_embeddings))
    _write_json(out_dir / "tokenizer.json", tokenizer)
    _write_json(out_dir / "tokenizer_config.json", tokenizer_config)
    _write_json(
        out_dir / "special_tokens_map.json", {k: v for k, v in tokenizer_config.items() if k.endswith("_token")}
    )
    (out_dir / "README.md").write_text(card, encoding="utf-8")


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


@dataclass(frozen=True)
class ParityReport:
    """Largest differences between the training model and the exported one, in fp32 on the CPU (see `check_parity`)."""

    samples: int
    tokens: int
    masked_tokens: int
    max_hidden_difference: float
    max_logit_difference: float


@torch.no_grad()
def check_parity(
    out_dir: Path, model: MaskedLanguageModel, tokenized_samples: Sequence[Sequence[int]], tolerance: float
) -> ParityReport:
    """Compare the folder, loaded by plain transformers and padded, with the training model, packed.

    `tokenized_samples` are token ids with bos and eos; every seventh token is masked here. Compared are the hidden
    states of all tokens and the logits of the masked ones; differences are relative where values are above 1. Raises
    UserError above `tolerance` (or for NaN), saying where the two start to differ; then it must not be released.
    """
    from transformers import AutoModelForMaskedLM

    samples = sorted((torch.tensor(list(sample)) for sample in tokenized_samples if len(sample)), key=len)
    if not samples:
        raise UserError("parity: there is no sample to compare on")
    with _without_progress_bar():
        exported = AutoModelForMaskedLM.from_pretrained(out_dir, dtype=torch.float32, attn_implementation="sdpa").eval()
    was_training = model.training
    model.eval()
    masked_places = [(torch.arange(len(sample)) % _MASK_EVERY == _MASK_EVERY // 2) for sample in samples]
    samples = [s.masked_fill(m, model.config.mask_token_id) for s, m in zip(samples, masked_places, strict=True)]
    packed, masked = torch.cat(samples), torch.cat(masked_places).nonzero().squeeze(1)
    lengths = [len(sample) for sample in samples]
    cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)

    ours, theirs = _Recorder(_blocks(model, "bert", "bert.encoder")), _Recorder(_blocks(exported, "model", "model"))
    with ours:
        hidden = model.encode(packed, cu_seqlens, max(lengths))
        logits = model.masked_logits(hidden, masked)
    reals = []
    with theirs:
        for batch in _alike(samples):
            real = torch.arange(len(batch[-1])) < torch.tensor([len(sample) for sample in batch])[:, None]
            padded = torch.full(real.shape, model.config.pad_token_id)
            padded[real] = torch.cat(batch)
            exported.model(input_ids=padded, attention_mask=real.long())
            reals.append(real)
    found = {
        name: torch.cat([output[real] for output, real in zip(outputs, reals, strict=True)])
        for name, outputs in theirs.outputs.items()
    }
    # Logits of every token of every sample would not fit into memory with a large vocabulary.
    exported_logits = exported.decoder(exported.head(found["final_norm"][masked]))
    whole = exported(input_ids=samples[0][None]).logits[0]
    exported_whole = exported.decoder(exported.head(found["final_norm"][: lengths[0]]))
    model.train(was_training)

    differences = {name: _difference(value[0], found[name]) for name, value in ours.outputs.items()}
    differences["logits"] = _difference(logits, exported_logits)
    differences["the whole of a sample's logits"] = _difference(exported_whole, whole)
    for name, difference in differences.items():
        if not difference <= tolerance:
            raise UserError(
                f"{out_dir}: the exported model differs from the training model, first at {name}, by {difference:.3g} "
                f"(tolerance {tolerance:.3g}; logits differ by {differences['logits']:.3g}); it must not be released"
            )
    return ParityReport(len(samples), len(packed), len(masked), differences["final_norm"], differences["logits"])


@contextlib.contextmanager
def _without_progress_bar() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _alike(samples: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Batches of samples, which are sorted by length, with little padding in each but some."""
    batch: list[Tensor] = []
    for sample in samples:
        if batch and len(sample) > 4 * len(batch[0]):
            yield batch
            batch = []
        batch.append(sample)
    yield batch


def _difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, over the largest value where that is above 1: rounding in fp32 grows with the values."""
    if not ours.numel():
        return 0.0
    return ((ours - theirs).abs().max() / ours.abs().max().clamp(min=1.0)).item()


def _blocks(model: nn.Module, body: str, layers: str) -> dict[str, nn.Module]:
    """The modules whose outputs are compared, in the order they run, under names that both models share."""
    stack = model.get_submodule(f"{layers}.layers")
    found = {"embeddings": model.get_submodule(f"{body}.embeddings")}
    found |= {f"layer {name}": layer for name, layer in stack.named_children()}
    return {**found, "final_norm": model.get_submodule(f"{body}.final_norm")}


class _Recorder:
    """Keeps what modules return while it is entered."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.modules = modules
        self.outputs: dict[str, list[Tensor]] = {}

    def __enter__(self) -> None:
        self._hooks = [module.register_forward_hook(self._keep(name)) for name, module in self.modules.items()]

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _keep(self, name: str) -> Any:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self.outputs.setdefault(name, []).append(output[0] if isinstance(output, tuple) else output)

        return keep
