"""The original training code's model configuration, as its checkpoints carry it, in this project's terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmbert.errors import UserError

# Settings of the original that change what the model computes or what it is made of, and the one value of each that
# this project's encoder has. A key that is absent has it too: older checkpoints have fewer keys.
_FIXED: dict[str, Any] = {
    "attention_layer": "rope",
    "attn_out_bias": False,
    "attn_qkv_bias": False,
    "attention_probs_dropout_prob": 0.0,
    "bert_layer": "prenorm",
    "decoder_bias": True,
    "embed_norm": True,
    "embedding_layer": "sans_pos",
    "final_norm": True,
    "head_pred_act": "gelu",
    "head_pred_bias": False,
    "head_pred_norm": True,
    "hidden_act": "gelu",
    "initial_attention_layer": None,
    "initial_bert_layer": None,
    "initial_mlp_layer": None,
    "mlp_in_bias": False,
    "mlp_layer": "glu",
    "mlp_out_bias": False,
    "normalization": "layernorm",
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "skip_first_prenorm": True,
}
_ROLES = ("pad", "eos", "bos", "unk", "mask")


def described_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of `EncoderConfig` that an original configuration gives; special ids but pad's are the tokenizer's.

    `layer_norm_eps` is stale there and `norm_kwargs` counts; a local theta of -1 is the global one. Raises UserError
    naming the key where the model has parts that this project's encoder does not.
    """
    for key, value in _FIXED.items():
        if config.get(key, value) != value:
            raise UserError(f"{where}: its model has {key} {config[key]!r}; only {value!r} is supported")
    norm = config.get("norm_kwargs") or {}
    if not isinstance(norm, Mapping) or norm.get("bias", True):
        raise UserError(f"{where}: its model has norm_kwargs.bias true (or unset, which is true); only false is known")
    try:
        head_dim = config["hidden_size"] // config["num_attention_heads"]
        if config.get("rotary_emb_dim") not in (None, head_dim):
            raise UserError(
                f"{where}: its model has rotary_emb_dim {config['rotary_emb_dim']}; only the heads' whole width, "
                f"{head_dim}, is supported"
            )
        theta, local = float(config["rotary_emb_base"]), float(config.get("local_attn_rotary_emb_base", -1))
        return {
            **{k: int(config[k]) for k in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")},
            "num_attention_heads": int(config["num_attention_heads"]),
            "global_attn_every_n_layers": int(config["global_attn_every_n_layers"]),
            "sliding_window": int(config["sliding_window"]),
            "norm_eps": float(norm.get("eps", 1e-5)),
            "embedding_dropout": float(config.get("embed_dropout_prob", 0.0)),
            "attention_output_dropout": float(config.get("attn_out_dropout_prob", 0.0)),
            "mlp_dropout": float(config.get("mlp_dropout_prob", 0.0)),
            "initializer_range": float(config.get("init_std", 0.02)),
            "pad_token_id": int(config.get("pad_token_id", 0)),
            "global_rope_theta": theta,
            "local_rope_theta": theta if local == -1 else local,
        }
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where}: its model configuration lacks a key or has a wrong value: {error}") from error


def special_token_ids(tokenizer_files: Mapping[str, Any]) -> dict[str, int]:
    """`<role>_token_id` of the special tokens that a tokenizer's files name, given by name (`special_tokens_map.json`
    or else `tokenizer_config.json`, and `tokenizer.json`) with their content."""
    named = tokenizer_files.get("special_tokens_map.json") or tokenizer_files.get("tokenizer_config.json") or {}
    added = (tokenizer_files.get("tokenizer.json") or {}).get("added_tokens", [])
    numbers = {token["content"]: token["id"] for token in added}
    found = {}
    for role in _ROLES:
        token = named.get(f"{role}_token")
        content = token["content"] if isinstance(token, Mapping) else token
        if content in numbers:
            found[f"{role}_token_id"] = int(numbers[content])
    return found
