"""From a checkpoint of elsewhere to a checkpoint artifact, from which `train` goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from mmbert.artifacts import ArtifactWriter
from mmbert.errors import UserError
from mmbert.model.config import config_from_recipe
from mmbert.recipe import Recipe
from mmbert.recipe.schema import PhaseTraining
from mmbert.release import checkpoints, sources
from mmbert.release.sources import TrainedModel
from mmbert.training import canonical

Then = Literal["continue", "next"]


def import_model(recipe: Recipe, phase: str, then: Then, uri: str, scratch: Path, output: ArtifactWriter) -> None:
    """Write weights, optimiser (where the source has one) and `training_state.json` of `phase` into `output`.

    `then` is "continue" where the phase is to be gone on with at the source's token count, "next" where it counts as
    done. Raises UserError where the source is refused or damaged, of another shape than the recipe's model, trained
    with other rotary bases than the phase's, or past the phase's tokens.
    """
    settings: PhaseTraining = getattr(recipe.phases, phase)
    found = sources.read(sources.fetch(uri, scratch / "source", optimizer=True), uri, optimizer=True)
    stated = {**checkpoints.shape_of(found.weights), **found.config}
    checkpoints.check_shape(stated, recipe.model, uri)
    checkpoints.check_weights(found.weights, config_from_recipe(recipe.model, settings.rope_theta), uri)
    _check_rope(found, recipe, phase, uri)
    clock = _clock(found, settings, phase, then, uri)
    _say_what_differs(found, recipe, settings, phase)

    checkpoints.save_weights(found.weights, scratch / canonical.WEIGHTS)
    output.add_file(canonical.WEIGHTS, scratch / canonical.WEIGHTS)
    if found.optimizer is not None:
        canonical.save_moments(scratch / canonical.OPTIMIZER, found.optimizer.moments, found.optimizer.steps)
        output.add_file(canonical.OPTIMIZER, scratch / canonical.OPTIMIZER)
    state = {
        "phase": phase,
        "variant": "",
        **clock,
        "finished": then == "next",
        "rope_theta": settings.rope_theta.model_dump(),
        "max_seq_len": settings.max_seq_len,
        "model": recipe.model.model_dump(),
    }
    canonical.save_state(scratch / canonical.STATE, state)
    output.add_file(canonical.STATE, scratch / canonical.STATE)
    output.outputs["label"] = f"imported {phase}"


def _check_rope(found: TrainedModel, recipe: Recipe, phase: str, uri: str) -> None:
    wanted = getattr(recipe.phases, phase).rope_theta
    for key, value in (("global_attention", wanted.global_attention), ("local_attention", wanted.local_attention)):
        stated = found.config.get(f"{key.partition('_')[0]}_rope_theta", value)
        if stated != value:
            raise UserError(
                f"{uri}: phases.{phase}.rope_theta.{key} is {value:,.0f} in the recipe, and the checkpoint was trained "
                f"with {stated:,.0f}; is it of another phase?"
            )


def _clock(found: TrainedModel, settings: PhaseTraining, phase: str, then: Then, uri: str) -> dict[str, int]:
    if found.clock is None:
        if then == "continue":
            raise UserError(f"{uri}: it does not say how far its phase had come; import it with --then next")
        return {"batches": 0, "rows": 0, "tokens": 0}
    clock = found.clock
    if then == "continue" and clock.tokens >= settings.tokens:
        raise UserError(
            f"{uri}: it is {clock.tokens:,} tokens into its phase, and phases.{phase}.tokens is {settings.tokens:,}: "
            "nothing is left to train; raise it, or import it with --then next"
        )
    # The original counts segments where this project counts rows, and padding among its tokens.
    rows = clock.tokens // settings.max_seq_len if found.by_original else clock.samples
    return {"batches": clock.batches, "rows": rows, "tokens": clock.tokens}


def _say_what_differs(found: TrainedModel, recipe: Recipe, settings: PhaseTraining, phase: str) -> None:
    """What the recipe overrides, told: the original ignored a new configuration's values on load."""
    if found.optimizer is None:
        print("it has no optimiser state: the next training starts a new one", flush=True)
        return
    pairs: list[tuple[str, Any, Any]] = [
        (f"phases.{phase}.learning_rate", settings.learning_rate, found.optimizer.peak_learning_rate),
        ("optimizer.betas", tuple(recipe.optimizer.betas), found.optimizer.betas),
        ("optimizer.eps", recipe.optimizer.eps, found.optimizer.eps),
    ]
    for key, ours, theirs in pairs:
        if theirs is not None and ours != theirs:
            print(f"{key}: the checkpoint was trained with {theirs}; the recipe's {ours} counts", flush=True)
