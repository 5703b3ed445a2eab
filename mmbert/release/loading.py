"""A checkpoint, a released model or an untrained model as the encoder that evaluation runs."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from mmbert.artifacts import Artifact
from mmbert.model import MaskedLanguageModel, config_from_recipe
from mmbert.recipe import Recipe
from mmbert.release.hugging_face import from_hugging_face_names
from mmbert.training import canonical

MODEL_WEIGHTS = "model.safetensors"


def load_encoder(recipe: Recipe, artifact: Artifact | None, cache: Path) -> MaskedLanguageModel:
    """In eval mode, with the rotary bases of the decay phase. Without an artifact, the seeded initial weights.

    Raises UserError where the weights do not fit the recipe's model.
    """
    model = MaskedLanguageModel(config_from_recipe(recipe.model, recipe.phases.decay.rope_theta), seed=recipe.seed)
    if artifact is not None and artifact.manifest.kind == "model":
        weights = from_hugging_face_names(load_file(artifact.fetch(MODEL_WEIGHTS, cache / "files")))
        model.load_state_dict(weights, strict=False)
    elif artifact is not None:
        canonical.load_weights(artifact.fetch(canonical.WEIGHTS, cache / "files"), model)
    return model.eval()
