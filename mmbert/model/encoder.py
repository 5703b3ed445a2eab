"""The encoder over packed segments: pre-norm layers, rotary positions, alternating global and local attention, GLU.

Parameter names and arithmetic are the original training code's, so that its checkpoints load. The first layer has no
attention norm, norms and projections have no bias, and the embedding has a norm of its own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own spelling
from torch import Tensor, nn

from mmbert.model.attention import Plan, attention_backend
from mmbert.model.config import EncoderConfig


class _GatedGelu(torch.autograd.Function):
    """gelu(first half) * second half, saving nothing but its input: half the memory traffic of the plain expression."""

    @staticmethod
    def forward(ctx: Any, projected: Tensor) -> Tensor:
        ctx.save_for_backward(projected)
        value, gate = projected.chunk(2, dim=-1)
        return F.gelu(value).mul_(gate)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (projected,) = ctx.saved_tensors
        value, gate = projected.chunk(2, dim=-1)
        grad = torch.empty_like(projected)
        grad_value, grad_gate = grad.chunk(2, dim=-1)
        torch.mul(F.gelu(value), grads[0], out=grad_gate)
        grad_value.copy_(torch.ops.aten.gelu_backward(grads[0] * gate, value))
        return grad


def gated_gelu(projected: Tensor) -> Tensor:
    """gelu(first half) * second half of [tokens, 2 x width]."""
    if torch.compiler.is_compiling():
        # A compiler fuses and recomputes by itself.
        value, gate = projected.chunk(2, dim=-1)
        return F.gelu(value) * gate
    gated: Tensor = _GatedGelu.apply(projected)  # type: ignore[no-untyped-call]
    return gated


def layer_norm(config: EncoderConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=False)


class Embeddings(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.norm = layer_norm(config)
        self.dropout = nn.Dropout(config.embedding_dropout)

    def forward(self, input_ids: Tensor, lookup: Tensor | None = None) -> Tensor:
        words = self.tok_embeddings(input_ids) if lookup is None else F.embedding(input_ids, lookup, sparse=True)
        embedded: Tensor = self.dropout(self.norm(words))
        return embedded


class Attention(nn.Module):
    def __init__(self, config: EncoderConfig, layer: int) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.window = None if config.is_global(layer) else config.sliding_window
        self.theta = config.global_rope_theta if config.is_global(layer) else config.local_rope_theta
        self.Wqkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.Wo = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.dropout = nn.Dropout(config.attention_output_dropout)

    def forward(self, hidden: Tensor, plan: Plan, rows: Tensor | None) -> Tensor:
        mixed = plan.attend(hidden, self.Wqkv.weight, self.heads, self.theta, self.window)
        if rows is not None:
            mixed = mixed.index_select(0, rows)
        projected: Tensor = self.dropout(self.Wo(mixed))
        return projected


class GatedMlp(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.Wi = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.Wo = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.dropout = nn.Dropout(config.mlp_dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        projected: Tensor = self.Wo(self.dropout(gated_gelu(self.Wi(hidden))))
        return projected


class Layer(nn.Module):
    def __init__(self, config: EncoderConfig, layer: int) -> None:
        super().__init__()
        self.attn_norm = layer_norm(config) if layer else nn.Identity()
        self.attn = Attention(config, layer)
        self.mlp_norm = layer_norm(config)
        self.mlp = GatedMlp(config)

    def forward(self, hidden: Tensor, plan: Plan, rows: Tensor | None = None) -> Tensor:
        """[tokens, width] -> the same; with `rows`, only these rows are computed past the attention and returned."""
        attended: Tensor = self.attn(self.attn_norm(hidden), plan, rows)
        hidden = attended + (hidden if rows is None else hidden.index_select(0, rows))
        output: Tensor = hidden + self.mlp(self.mlp_norm(hidden))
        return output


class Layers(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config, layer) for layer in range(config.num_hidden_layers))


class Encoder(nn.Module):
    """`attention` names a back end (`mmbert.model.attention`); it is no part of the configuration or the weights."""

    def __init__(self, config: EncoderConfig, attention: str = "sdpa") -> None:
        super().__init__()
        self.config = config
        self.attention = attention_backend(attention)
        self.embeddings = Embeddings(config)
        self.encoder = Layers(config)
        self.final_norm = layer_norm(config)

    def forward(
        self,
        input_ids: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        rows: Tensor | None = None,
        lookup: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [tokens, width] after the final norm; with `rows` [n], only [n, width] of these tokens.

        `input_ids` [tokens] int64; `cu_seqlens` [segments + 1] int32, from 0 to the number of tokens; `max_seqlen` at
        least the longest segment. Tokens see their own segment only, and positions restart in each. `lookup`
        stands in for the token embedding (`mmbert.model.tied`) and gets a sparse gradient.
        """
        hidden = self.embeddings(input_ids, lookup)
        plan = self.attention.plan(cu_seqlens, max_seqlen, hidden)
        for layer in self.encoder.layers[:-1]:
            hidden = layer(hidden, plan)
        hidden = self.encoder.layers[-1](hidden, plan, rows)
        normed: Tensor = self.final_norm(hidden)
        return normed
