"""A checkpoint, a released model or an untrained model as the encoder that evaluation runs."""

from __future__ import annotations

from pathlib import Path

from mmbert.artifacts import Artifact
from mmbert.model.config import config_from_recipe
from mmbert.model.head import MaskedLanguageModel
from mmbert.model.initialization import new_model
from mmbert.recipe import Recipe
from mmbert.release import checkpoints
from mmbert.release.hugging_face import MODEL_WEIGHTS, from_hugging_face_names
from mmbert.training import canonical


def load_encoder(recipe: Recipe, artifact: Artifact | None, cache: Path) -> MaskedLanguageModel:
    """In eval mode, with the rotary bases of the decay phase. Without an artifact, the seeded initial weights.

    Raises UserError where the weights do not fit the recipe's model.
    """
    model = new_model(config_from_recipe(recipe.model, recipe.phases.decay.rope_theta), recipe.seed)
    if artifact is not None:
        released = artifact.manifest.kind == "model"
        weights = checkpoints.load_weights(artifact.fetch(MODEL_WEIGHTS if released else canonical.WEIGHTS, cache))
        if released:
            weights = from_hugging_face_names(weights)
        checkpoints.check_weights(weights, model.config, artifact.uri)
        model.load_weights(weights)
    return model.eval()
