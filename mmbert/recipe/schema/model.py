"""The sections `model` and `tokenizer`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from mmbert.recipe.schema.base import Section, Share


class Model(Section):
    """The encoder's shape. Defaults are what mmBERT small and base share."""

    vocab_size: int = Field(gt=8)
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0, description="width of the GLU; its input projection is twice this")
    num_hidden_layers: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    global_attn_every_n_layers: int = Field(3, gt=0)
    sliding_window: int = Field(128, gt=0, multiple_of=2, description="tokens seen by a local layer, half on each side")
    norm_eps: float = Field(1e-5, gt=0)
    embedding_dropout: Share = 0.0
    attention_output_dropout: Share = 0.1
    mlp_dropout: Share = 0.0
    initializer_range: float = Field(0.02, gt=0)
    pad_token_id: int = 0
    eos_token_id: int = 1
    bos_token_id: int = 2
    unk_token_id: int = 3
    mask_token_id: int = 4

    @model_validator(mode="after")
    def _shape(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if (self.hidden_size // self.num_attention_heads) % 2:
            raise ValueError("hidden_size / num_attention_heads must be even, because rotary embeddings turn pairs")
        if (self.num_hidden_layers - 1) % self.global_attn_every_n_layers:
            raise ValueError(
                f"num_hidden_layers - 1 = {self.num_hidden_layers - 1} is not a multiple of "
                f"global_attn_every_n_layers {self.global_attn_every_n_layers}; the last layer must attend globally"
            )
        ids = [self.pad_token_id, self.eos_token_id, self.bos_token_id, self.unk_token_id, self.mask_token_id]
        if len(set(ids)) != 5 or not all(0 <= i < self.vocab_size for i in ids):
            raise ValueError(f"the special token ids {ids} must differ and lie within vocab_size {self.vocab_size}")
        return self


class TrainedTokenizer(Section):
    """A byte-level BPE of `model.vocab_size` pieces, trained on the run's own curated text."""

    kind: Literal["bpe"]
    max_bytes_per_language: int = Field(
        200_000, gt=0, description="text taken from each language, so that large ones do not crowd out small ones"
    )
    prefix_space: bool = Field(
        False,
        description="a space in front of every text: a word alone (tagging) has the tokens it has in a sentence",
    )


class PretrainedTokenizer(Section):
    """A tokenizer from the Hugging Face hub, a local folder or a tokenizer.json."""

    kind: Literal["pretrained"]
    name: str = Field(min_length=1)
    revision: str = "main"


class CheckpointTokenizer(Section):
    """The tokenizer of the model that training goes on from."""

    kind: Literal["checkpoint"]
