"""One training phase: from a checkpoint and a mixture to the next checkpoint."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from composer import Timestamp
from composer.utils import dist

from mmbert.artifacts import Artifact, ArtifactWriter
from mmbert.errors import UserError
from mmbert.loader.loader import build_loader
from mmbert.loader.state import LoaderState
from mmbert.model.config import config_from_recipe
from mmbert.model.initialization import new_model
from mmbert.recipe import Recipe
from mmbert.recipe.schema import PhaseTraining
from mmbert.tracking import ComponentRun
from mmbert.training import finish, resume
from mmbert.training.callbacks import LearningRate, Resume, Snapshots
from mmbert.training.data import check_tokenizer, loader_settings, mixture_streams
from mmbert.training.execution import choose_execution
from mmbert.training.groups import language_groups
from mmbert.training.guard import Guard
from mmbert.training.history import History, HistoryPoint
from mmbert.training.memory import out_of_memory_explained
from mmbert.training.meter import Meter
from mmbert.training.schedules import lr_multiplier
from mmbert.training.start import PhaseClock, start_from
from mmbert.training.trainer import phase_optimizer, phase_trainer


@dataclass(frozen=True)
class PhaseInputs:
    """The artifacts and folders that a phase reads."""

    mixture: Artifact
    shards: Sequence[Artifact]
    tokenizer: Path
    held_out: Sequence[Path]
    start: Artifact | None
    """None: from scratch."""


def train_phase(
    recipe: Recipe,
    phase: str,
    inputs: PhaseInputs,
    *,
    output: ArtifactWriter,
    run: ComponentRun,
    cache: Path,
    scratch: Path,
) -> None:
    """Train `phase` of the recipe and write its files into `output`.

    Goes on from the newest resume checkpoint of this piece of work if there is one. Raises UserError for inputs that do
    not fit the recipe, for a batch that the recipe's bad_batches stop at, and where memory runs out.
    """
    settings: PhaseTraining = getattr(recipe.phases, phase)
    plan = inputs.mixture.read_json("mixture.json")
    if plan["phase"] != phase:
        raise UserError(f"{inputs.mixture.uri}: this mixture is for phase '{plan['phase']}', not '{phase}'")
    check_tokenizer(inputs.tokenizer, recipe.model)
    execution = choose_execution(recipe.training)
    model = new_model(config_from_recipe(recipe.model, settings.rope_theta), recipe.seed, execution.attention)
    optimizer = phase_optimizer(recipe, settings, model)
    begin = PhaseClock()
    if inputs.start is not None:
        begin = start_from(inputs.start, phase, settings, recipe.model, model, optimizer, cache / "files")

    found = resume.fetch_newest(output.uri, scratch)
    files = found[1] if found else {}
    points = _points(files)
    streams = mixture_streams(plan["rows"], inputs.shards)
    meter = Meter(model, language_groups(streams))
    guard = Guard(
        recipe.training.bad_batches, meter, [f"{s.source}/{s.language}" for s in streams], phase, output.uri, scratch
    )
    history = History(run, recipe.training.log_every, settings.mask_probability, points, guard, model.config)
    keeper = Resume(
        recipe.training.checkpoint_tokens,
        scratch,
        history,
        lambda batch, tokens, saved: resume.save(
            output.uri, output.attempt, batch, tokens, saved, recipe.training.keep_checkpoints
        ),
    )
    state = LoaderState.from_bytes(files["loader.bin"].read_bytes()) if files else None
    loader = build_loader(
        streams,
        loader_settings(recipe, phase, cache / "shards", begin.rows),
        rank=dist.get_global_rank(),
        world_size=dist.get_world_size(),
        workers=recipe.training.workers,
        state=state,
    )
    schedule = functools.partial(lr_multiplier, schedule=settings.schedule, phase_tokens=settings.tokens)
    callbacks = [
        LearningRate(settings.learning_rate, schedule, recipe.seed),
        meter,
        guard,
        history,
        Snapshots(recipe.merge.snapshots if phase == "decay" else 1, settings.tokens, scratch),
        keeper,
    ]
    trainer = phase_trainer(recipe, settings, model, optimizer, loader, callbacks, files.get("composer.pt"), execution)
    keeper.trainer = trainer
    if not found:
        trainer.state.timestamp = Timestamp(batch=begin.batches, sample=begin.rows, token=begin.tokens)
    if found:
        print(f"going on from {found[0].uri}: batch {found[0].batch:,}, {found[0].tokens:,} tokens", flush=True)
    try:
        with out_of_memory_explained(recipe, phase):
            trainer.fit()
    finally:
        trainer.close()
    if dist.get_global_rank() == 0:
        finish.write_checkpoint(recipe, phase, plan["variant"], trainer, model, optimizer, output, scratch)
        finish.write_history(history.points, output)
        finish.write_bits_per_byte(recipe, phase, inputs.tokenizer, inputs.held_out, model, output, run)


def _points(files: dict[str, Path]) -> list[HistoryPoint]:
    if not files:
        return []
    return [HistoryPoint(**p) for p in json.loads(files["history.json"].read_text("utf-8"))]
