"""From a checkpoint of elsewhere to one from which `train` goes on: as a component, and as a command."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from mmbert.artifacts import ArtifactWriter, write_folder_manifest
from mmbert.data.tokenizer import TOKENIZER_FILE
from mmbert.errors import UserError
from mmbert.model.config import config_from_recipe
from mmbert.recipe import Recipe
from mmbert.recipe.schema import Model, PhaseTraining, RopeTheta
from mmbert.release import checkpoints, sources
from mmbert.release.folders import new_folder
from mmbert.release.sources import TrainedModel
from mmbert.training import canonical

Then = Literal["continue", "next"]


def import_model(recipe: Recipe, phase: str, then: Then, uri: str, scratch: Path, output: ArtifactWriter) -> None:
    """Write weights, optimiser (where the source has one) and `training_state.json` of `phase` into `output`.

    `then` is "continue" where the phase is to be gone on with at the source's token count, "next" where it counts as
    done. Raises UserError where the source is refused or damaged, of another shape than the recipe's model, trained
    with other rotary bases than the phase's, past the phase's tokens, or without the tokenizer that the recipe wants
    of it.
    """
    found = sources.read(sources.fetch(uri, scratch / "source", optimizer=True), uri, optimizer=True)
    state = _state_by_recipe(found, recipe, phase, then, uri)
    if recipe.tokenizer.kind == "checkpoint" and not _tokenizer(found, uri):
        raise UserError(
            f"{uri}: it carries no {TOKENIZER_FILE}; give the one that it was trained with: "
            "--set 'tokenizer={kind: pretrained, name: FOLDER}'"
        )
    made = scratch / "made"
    made.mkdir()
    _write(found, state, made, uri)
    for path in sorted(made.iterdir()):
        output.add_file(path.name, path)
    output.outputs["label"] = f"imported {phase}"


def import_to_folder(
    uri: str, out: str, recipe: Recipe | None, phase: str, then: Then, max_seq_len: int | None
) -> dict[str, Any]:
    """Write a model of any form of `sources` as a checkpoint artifact `out`, whole or not at all; its training state.

    `out` (a path or an s3:// URI) holds what the component's artifact does, and the source's `tokenizer.json` where it
    carries one. With a recipe the source must be of its model and phase, as in `import_model`; without one the source's
    own shape, rotary bases and context count, and `max_seq_len`, in tokens, is needed where it states no context.
    Raises UserError as `import_model` does, and where `out` holds anything.
    """
    with new_folder(out) as (folder, scratch):
        found = sources.read(sources.fetch(uri, scratch / "source", optimizer=True), uri, optimizer=True)
        if recipe is not None:
            state = _state_by_recipe(found, recipe, phase, then, uri)
        else:
            state = _state_by_itself(found, phase, then, max_seq_len, uri)
        folder.mkdir()
        _write(found, state, folder, uri)
        parameters = {"source": uri.rpartition("/")[2], "phase": phase, "then": then}
        write_folder_manifest(folder, "checkpoint", parameters, {"label": f"imported {phase}"})
        return state


def _state_by_recipe(found: TrainedModel, recipe: Recipe, phase: str, then: Then, uri: str) -> dict[str, Any]:
    settings: PhaseTraining = getattr(recipe.phases, phase)
    stated = {**checkpoints.shape_of(found.weights), **found.config}
    checkpoints.check_shape(stated, recipe.model, uri)
    checkpoints.check_weights(found.weights, config_from_recipe(recipe.model, settings.rope_theta), uri)
    _check_rope(found, recipe, phase, uri)
    clock = _clock(found, settings.max_seq_len, then, uri)
    if then == "continue" and clock["tokens"] >= settings.tokens:
        raise UserError(
            f"{uri}: it is {clock['tokens']:,} tokens into its phase, and phases.{phase}.tokens is "
            f"{settings.tokens:,}: nothing is left to train; raise it, or import it with --then next"
        )
    _say_what_differs(found, recipe, settings, phase)
    return _state(phase, then, clock, recipe.model, settings.rope_theta, settings.max_seq_len)


def _state_by_itself(found: TrainedModel, phase: str, then: Then, max_seq_len: int | None, uri: str) -> dict[str, Any]:
    stated = {**checkpoints.shape_of(found.weights), **found.config}
    if not {"num_attention_heads", "global_rope_theta", "local_rope_theta"} <= stated.keys():
        raise UserError(f"{uri}: it does not state its model's configuration; give the recipe with --recipe")
    length = max_seq_len or found.max_seq_len
    if not length:
        raise UserError(f"{uri}: it does not say the context that it was trained for; give --max-seq-len")
    try:
        model = Model(**{key: value for key, value in stated.items() if key in Model.model_fields})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{uri}: its model is not one that can be trained here: {key} {first['msg']}".strip()
        ) from error
    rope = RopeTheta(global_attention=stated["global_rope_theta"], local_attention=stated["local_rope_theta"])
    checkpoints.check_weights(found.weights, config_from_recipe(model, rope), uri)
    return _state(phase, then, _clock(found, length, then, uri), model, rope, length)


def _state(
    phase: str, then: Then, clock: Mapping[str, int], model: Model, rope: RopeTheta, max_seq_len: int
) -> dict[str, Any]:
    return {
        "phase": phase,
        "variant": "",
        **clock,
        "finished": then == "next",
        "rope_theta": rope.model_dump(),
        "max_seq_len": max_seq_len,
        "model": model.model_dump(),
    }


def _write(found: TrainedModel, state: dict[str, Any], folder: Path, uri: str) -> None:
    checkpoints.save_weights(found.weights, folder / canonical.WEIGHTS)
    if found.optimizer is not None:
        canonical.save_moments(folder / canonical.OPTIMIZER, found.optimizer.moments, found.optimizer.steps)
    else:
        print("it has no optimiser state: the next training starts a new one", flush=True)
    canonical.save_state(folder / canonical.STATE, state)
    if tokenizer := _tokenizer(found, uri):
        (folder / TOKENIZER_FILE).write_text(json.dumps(tokenizer, ensure_ascii=False), "utf-8")


def _tokenizer(found: TrainedModel, uri: str) -> dict[str, Any]:
    return found.tokenizer or sources.trained_tokenizer(uri)


def _check_rope(found: TrainedModel, recipe: Recipe, phase: str, uri: str) -> None:
    wanted = getattr(recipe.phases, phase).rope_theta
    for key, value in (("global_attention", wanted.global_attention), ("local_attention", wanted.local_attention)):
        stated = found.config.get(f"{key.partition('_')[0]}_rope_theta", value)
        if stated != value:
            raise UserError(
                f"{uri}: phases.{phase}.rope_theta.{key} is {value:,.0f} in the recipe, and the checkpoint was trained "
                f"with {stated:,.0f}; is it of another phase?"
            )


def _clock(found: TrainedModel, max_seq_len: int, then: Then, uri: str) -> dict[str, int]:
    if found.clock is None:
        if then == "continue":
            raise UserError(f"{uri}: it does not say how far its phase had come; import it with --then next")
        return {"batches": 0, "rows": 0, "tokens": 0}
    clock = found.clock
    # The original counts segments where this project counts rows, and padding among its tokens.
    rows = clock.tokens // max_seq_len if found.by_original else clock.samples
    return {"batches": clock.batches, "rows": rows, "tokens": clock.tokens}


def _say_what_differs(found: TrainedModel, recipe: Recipe, settings: PhaseTraining, phase: str) -> None:
    """What the recipe overrides, told: the original ignored a new configuration's values on load."""
    if found.optimizer is None:
        return
    pairs: list[tuple[str, Any, Any]] = [
        (f"phases.{phase}.learning_rate", settings.learning_rate, found.optimizer.peak_learning_rate),
        ("optimizer.betas", tuple(recipe.optimizer.betas), found.optimizer.betas),
        ("optimizer.eps", recipe.optimizer.eps, found.optimizer.eps),
    ]
    for key, ours, theirs in pairs:
        if theirs is not None and ours != theirs:
            print(f"{key}: the checkpoint was trained with {theirs}; the recipe's {ours} counts", flush=True)
