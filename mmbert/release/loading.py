"""A checkpoint, a released model or an untrained model as the encoder that evaluation runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mmbert.artifacts import Artifact
from mmbert.model.config import EncoderConfig, config_from_recipe
from mmbert.model.head import TIED_DECODER, TOKEN_EMBEDDING, MaskedLanguageModel
from mmbert.model.initialization import new_model
from mmbert.recipe import Recipe
from mmbert.release import checkpoints
from mmbert.release.hugging_face import from_hugging_face_names
from mmbert.release.names import MODEL_WEIGHTS
from mmbert.training import canonical


def load_encoder(recipe: Recipe, artifact: Artifact | None, cache: Path) -> MaskedLanguageModel:
    """In eval mode, with the rotary bases of the decay phase. Without an artifact, the seeded initial weights.

    Raises UserError where the weights do not fit the recipe's model.
    """
    config = config_from_recipe(recipe.model, recipe.phases.decay.rope_theta)
    if artifact is None:
        return new_model(config, recipe.seed).eval()
    released = artifact.manifest.kind == "model"
    weights = checkpoints.load_weights(artifact.fetch(MODEL_WEIGHTS if released else canonical.WEIGHTS, cache))
    if released:
        weights = from_hugging_face_names(weights)
    checkpoints.check_weights(weights, config, artifact.uri)
    return model_of(weights, config)


def model_of(weights: Mapping[str, Tensor], config: EncoderConfig) -> MaskedLanguageModel:
    """A model in eval mode around these very tensors: nothing is copied, and no time goes into initial weights."""
    with torch.device("meta"):
        model = MaskedLanguageModel(config)
    model.load_state_dict({**weights, TIED_DECODER: weights[TOKEN_EMBEDDING]}, assign=True)
    model.decoder.weight = model.bert.embeddings.tok_embeddings.weight
    return model.eval()
