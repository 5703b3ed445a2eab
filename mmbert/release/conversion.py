"""From a checkpoint artifact to a Hugging Face folder that passed the parity gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from mmbert.artifacts import Artifact
from mmbert.data.mixture import resolve_languages
from mmbert.data.tokenizer import read_tokenizer
from mmbert.evaluation.heldout import HeldOut, by_language, read_held_out
from mmbert.model.config import config_from_recipe
from mmbert.model.initialization import new_model
from mmbert.recipe import Recipe
from mmbert.release import checkpoints
from mmbert.release.hugging_face import check_parity, export
from mmbert.release.model_card import PhaseSummary, model_card
from mmbert.training import canonical

_PARITY_LANGUAGES = 24


def convert_checkpoint(
    recipe: Recipe, checkpoint: Artifact, tokenizer: Path, held_out: Sequence[Path], cache: Path, out: Path
) -> dict[str, float]:
    """Write the model into `out` and return the parity gate's figures.

    Raises UserError where the weights do not fit the recipe, or the exported model differs from the training model by
    more than `release.parity_tolerance`; then nothing may be released.
    """
    config = config_from_recipe(recipe.model, recipe.phases.decay.rope_theta)
    weights = checkpoints.load_weights(checkpoint.fetch(canonical.WEIGHTS, cache))
    documents = read_held_out(held_out)
    length = max(p.max_seq_len for p in (recipe.phases.pretrain, recipe.phases.extend, recipe.phases.decay))
    card = _card(recipe, checkpoint, documents, sum(w.numel() for w in weights.values()))
    export(weights, config, tokenizer, length, out, card=card)
    model = new_model(config, recipe.seed)
    model.load_weights(weights)
    report = check_parity(out, model.eval(), _samples(documents, tokenizer, length), recipe.release.parity_tolerance)
    return {f"parity.{name}": float(value) for name, value in asdict(report).items()}


def _samples(documents: HeldOut, tokenizer: Path, length: int) -> list[list[int]]:
    """Token ids of the first held-out document of languages spread over the alphabet, and one of full length."""
    encoder = read_tokenizer(tokenizer)
    languages = by_language(documents)
    chosen = sorted(languages)[:: max(1, len(languages) // _PARITY_LANGUAGES)]
    samples = [encoder.encode(languages[code][0].text).ids[:length] for code in chosen]
    long = [token for sample in samples for token in sample]
    return [*samples, long[:length]]


def _card(recipe: Recipe, checkpoint: Artifact, documents: HeldOut, parameters: int) -> str:
    available = by_language(documents)
    phases = [_summary(recipe, name, list(available)) for name in ("pretrain", "extend", "decay")]
    return model_card(
        name=recipe.release.model_name,
        description=recipe.description,
        licence="mit",
        languages=sorted(available),
        parameters=parameters,
        mask_token="<mask>",  # noqa: S106 - a token of the vocabulary
        phases=phases,
        data=[f"Source {name}: {len(languages)} languages" for name, languages in documents.items()],
        scores={},
        limits=[
            "Trained on the text named above and nothing else; judge it by the evaluation report of its run.",
            f"The longest context trained for is {recipe.phases.decay.max_seq_len:,} tokens.",
        ],
        lineage={"checkpoint": checkpoint.digest},
    )


def _summary(recipe: Recipe, phase: str, available: list[str]) -> PhaseSummary:
    settings = getattr(recipe.phases, phase)
    draws = list(settings.variants) if phase == "decay" else [""]
    languages: set[str] = set()
    for variant in draws:
        wanted = resolve_languages(recipe.mixture(phase, variant).languages, recipe.language_sets, available)
        languages |= set(wanted) & set(available)
    return PhaseSummary(
        name=phase,
        tokens=settings.tokens,
        max_seq_len=settings.max_seq_len,
        mask_probability=settings.mask_probability,
        languages=len(languages),
        temperature=settings.temperature,
        global_rope_theta=settings.rope_theta.global_attention,
    )
