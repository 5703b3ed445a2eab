"""One training phase: from a checkpoint and a mixture to the next checkpoint."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from composer import Timestamp, Trainer

from mmbert import metrics
from mmbert.artifacts import Artifact, ArtifactWriter
from mmbert.errors import MmbertError, UserError
from mmbert.loader.loader import build_loader, lost_worker_explained
from mmbert.loader.state import LoaderState
from mmbert.model.config import config_from_recipe
from mmbert.model.initialization import new_model
from mmbert.ranks import Alone
from mmbert.recipe import Recipe
from mmbert.recipe.schema import PhaseTraining
from mmbert.tracking import ComponentRun
from mmbert.training import finish
from mmbert.training.callbacks import LearningRate
from mmbert.training.data import check_tokenizer, loader_settings, mixture_streams
from mmbert.training.execution import choose_execution
from mmbert.training.exported import Exported
from mmbert.training.forecast import log_plan_against_actual
from mmbert.training.groups import language_groups
from mmbert.training.guard import Guard
from mmbert.training.history import History, HistoryPoint
from mmbert.training.memory import loading_out_of_memory_explained, out_of_memory_explained
from mmbert.training.meter import Meter
from mmbert.training.resume import CheckpointStore, ResumePoint
from mmbert.training.saving import COMPOSER, HISTORY, LOADER, Checkpoints, Progress, Snapshots
from mmbert.training.schedules import lr_multiplier
from mmbert.training.start import PhaseClock, fetch_start, start_from
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


@loading_out_of_memory_explained()
def train_phase(
    recipe: Recipe,
    phase: str,
    inputs: PhaseInputs,
    *,
    output: ArtifactWriter,
    run: ComponentRun,
    cache: Path,
    scratch: Path,
    ranks: Alone,
) -> None:
    """Train `phase` of the recipe and write its files into `output`.

    All of `ranks` call it; process 0 alone writes. Goes on from the newest resume checkpoint of this piece of work if
    there is one. Raises UserError for inputs that do not fit the recipe, for a batch that the recipe's bad_batches stop
    at, and where memory runs out; InfrastructureError where checkpoints cannot be stored or fetched.
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
        ranks.once_a_node(functools.partial(fetch_start, inputs.start, cache / "files"))
        begin = start_from(inputs.start, phase, settings, recipe.model, model, optimizer, cache / "files")

    store = CheckpointStore(output, recipe.training.keep_checkpoints)
    ranks.before_force = store.wait
    found = _find_resume_point(store, scratch, ranks)
    points = _points(found.folder / HISTORY) if found else []
    streams = mixture_streams(plan["rows"], inputs.shards)
    meter = Meter(model, language_groups(streams))
    guard = Guard(
        recipe.training.bad_batches, meter, [f"{s.source}/{s.language}" for s in streams], phase, output.uri, scratch
    )
    history = History(run, recipe.training.log_every, settings.mask_probability, points, guard, model.config)
    save_state = functools.partial(
        finish.save_state, recipe=recipe, phase=phase, variant=plan["variant"], model=model, optimizer=optimizer
    )
    checkpoints = Checkpoints(
        store,
        recipe.training.checkpoint_tokens,
        recipe.training.permanent_checkpoint_tokens,
        scratch,
        history,
        save_state,
    )
    loader = build_loader(
        streams,
        loader_settings(recipe, phase, cache / "shards", begin.rows),
        rank=ranks.rank,
        world_size=ranks.size,
        workers=recipe.training.workers,
        state=LoaderState.from_bytes((found.folder / LOADER).read_bytes()) if found else None,
    )
    schedule = functools.partial(lr_multiplier, schedule=settings.schedule, phase_tokens=settings.tokens)
    callbacks = [
        LearningRate(settings.learning_rate, schedule, recipe.seed),
        meter,
        guard,
        history,
        Progress(recipe.training.log_every, settings.tokens),
        Snapshots(recipe.merge.snapshots if phase == "decay" else 1, settings.tokens, begin.tokens, scratch, model),
        checkpoints,
    ]
    if metrics.active():
        callbacks.append(Exported(history, recipe.training.checkpoint_tokens))
    trainer = phase_trainer(
        recipe, settings, model, optimizer, loader, callbacks, found.folder / COMPOSER if found else None, execution
    )
    checkpoints.trainer = trainer
    if not found:
        trainer.state.timestamp = Timestamp(batch=begin.batches, sample=begin.rows, token=begin.tokens)
    elif ranks.leads:
        print(f"going on from {found.uri}: batch {found.batch:,}, {found.tokens:,} tokens", flush=True)
    try:
        # A run killed after its last batch's resume checkpoint has nothing left to train, which `fit` refuses.
        if int(trainer.state.timestamp.token.value) < settings.tokens:
            with out_of_memory_explained(recipe, phase), lost_worker_explained():
                trainer.fit()
    except BaseException:
        _end_early(trainer, store, ranks)
        raise
    composer_file = trainer.save_checkpoint(str(scratch / "ep{epoch}-ba{batch}-rank{rank}.pt"))
    trainer.close()
    store.finish()
    if ranks.leads:
        save_state(scratch, trainer.state.timestamp)
        finish.write_checkpoint(scratch, Path(composer_file), plan["variant"] or phase, output)
        finish.write_history(history.points, output)
        log_plan_against_actual(model.config, settings, recipe.training.lanes, execution, history.points, ranks, run)
        finish.write_bits_per_byte(recipe, phase, inputs.tokenizer, inputs.held_out, model, output, run)


def _end_early(trainer: Trainer, store: CheckpointStore, ranks: Alone) -> None:
    """After an error, once the upload in flight has ended."""
    ranks.end()
    # Trainer.close waits for the other processes, which may have ended.
    trainer.engine.close()
    with contextlib.suppress(MmbertError):
        store.finish()


@dataclass(frozen=True)
class _Found:
    """A resume checkpoint, its files in a folder that all processes of this node see."""

    uri: str
    batch: int
    tokens: int
    folder: Path


def _find_resume_point(store: CheckpointStore, scratch: Path, ranks: Alone) -> _Found | None:
    """Process 0 chooses; one process of each other node fetches the same."""

    def choose() -> dict[str, Any] | None:
        newest = store.fetch_newest(scratch)
        return asdict(newest) if newest else None

    def fetch() -> str:
        if not ranks.leads:
            point.fetch(scratch)
        return str(scratch)

    chosen = ranks.agree(choose)
    if chosen is None:
        return None
    point = ResumePoint(**chosen)
    return _Found(point.uri, point.batch, point.tokens, Path(ranks.once_a_node(fetch)))


def _points(path: Path) -> list[HistoryPoint]:
    return [HistoryPoint(**p) for p in json.loads(path.read_text("utf-8"))]
