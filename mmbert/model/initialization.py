"""Weights before training."""

from __future__ import annotations

import math

import torch
from torch import nn

from mmbert.model.config import EncoderConfig
from mmbert.model.head import MaskedLanguageModel


def new_model(config: EncoderConfig, seed: int, attention: str = "sdpa") -> MaskedLanguageModel:
    """An untrained model on the CPU; the same seed gives the same weights, and the global generator is left alone."""
    with torch.device("meta"):
        model = MaskedLanguageModel(config, attention)
    model = model.to_empty(device="cpu")
    model.decoder.weight = model.bert.embeddings.tok_embeddings.weight
    initialize(model, torch.Generator().manual_seed(seed))
    return model


@torch.no_grad()
def initialize(model: MaskedLanguageModel, generator: torch.Generator) -> None:
    """Megatron's full initialisation, as the original uses it: a normal cut off at two sigma, sigma
    `initializer_range`, and for
    the projections that write to the residual stream (both Wo) over sqrt(2 x layers); norms 1, the decoder's bias 0.
    """
    sigma = model.config.initializer_range
    residual_sigma = sigma / math.sqrt(2 * model.config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            std = residual_sigma if name.endswith("Wo.weight") else sigma
            nn.init.trunc_normal_(parameter, 0.0, std, -2 * std, 2 * std, generator=generator)
