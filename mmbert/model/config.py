"""The encoder's configuration, as plain values."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

from mmbert.errors import UserError


class RopeTheta(Protocol):
    """The recipe's `rope_theta` section: the base of the rotary angles in each kind of layer."""

    @property
    def global_attention(self) -> float: ...

    @property
    def local_attention(self) -> float: ...


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Shape and constants of the encoder.

    `intermediate_size` is the width of the GLU (its input projection is twice this); `sliding_window` is in tokens,
    half on each side. Layers whose index is a multiple of `global_attn_every_n_layers` attend globally. Raises
    UserError where the values contradict each other.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    global_attn_every_n_layers: int = 3
    sliding_window: int = 128
    norm_eps: float = 1e-5
    embedding_dropout: float = 0.0
    attention_output_dropout: float = 0.1
    mlp_dropout: float = 0.0
    initializer_range: float = 0.02
    pad_token_id: int = 0
    eos_token_id: int = 1
    bos_token_id: int = 2
    unk_token_id: int = 3
    mask_token_id: int = 4
    global_rope_theta: float = 10_000.0
    local_rope_theta: float = 10_000.0

    def __post_init__(self) -> None:
        if self.hidden_size % (2 * self.num_attention_heads):
            raise UserError(
                f"hidden_size {self.hidden_size} must be an even multiple of num_attention_heads "
                f"{self.num_attention_heads}, because rotary embeddings turn pairs"
            )
        if self.sliding_window % 2:
            raise UserError(f"sliding_window {self.sliding_window} must be even: half lies on each side")
        for key in ("global_rope_theta", "local_rope_theta"):
            if getattr(self, key) <= 0:
                raise UserError(f"{key} {getattr(self, key)} must be positive")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def is_global(self, layer: int) -> bool:
        return layer % self.global_attn_every_n_layers == 0


def config_from_recipe(model: object, rope: RopeTheta) -> EncoderConfig:
    """The configuration of a phase: the recipe's `model` section (same names) with the phase's rotary bases."""
    thetas: dict[str, Any] = {"global_rope_theta": rope.global_attention, "local_rope_theta": rope.local_attention}
    names = [field.name for field in dataclasses.fields(EncoderConfig) if field.name not in thetas]
    return EncoderConfig(**{name: getattr(model, name) for name in names}, **thetas)
