"""One training phase: from a checkpoint and a mixture to the next checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from composer import Timestamp, Trainer
from composer.utils import dist
from tokenizers import Tokenizer

from mmbert.artifacts import Artifact, ArtifactWriter
from mmbert.errors import UserError
from mmbert.evaluation.heldout import by_language, read_held_out
from mmbert.evaluation.masked_bits_per_byte import masked_bits_per_byte, total_bits_per_byte
from mmbert.loader.loader import build_loader
from mmbert.loader.state import LoaderState
from mmbert.model.config import config_from_recipe
from mmbert.model.head import MaskedLanguageModel
from mmbert.model.initialization import new_model
from mmbert.recipe import Recipe
from mmbert.recipe.schema import PhaseTraining
from mmbert.tracking import ComponentRun
from mmbert.training import canonical, resume
from mmbert.training.callbacks import History, HistoryPoint, LearningRate, Resume, Snapshots
from mmbert.training.composer_model import ComposerEncoder, data_spec, tensors_of
from mmbert.training.data import loader_settings, mixture_streams
from mmbert.training.optimizer import StableAdamW, parameter_groups
from mmbert.training.schedules import lr_multiplier
from mmbert.training.start import PhaseClock, start_from

HISTORY = "history.json"
BITS_PER_BYTE = "bits_per_byte.json"
_PRECISION = {"fp32": "fp32", "bf16": "amp_bf16"}


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
    not fit the recipe, and for a loss that is no number.
    """
    settings: PhaseTraining = getattr(recipe.phases, phase)
    plan = inputs.mixture.read_json("mixture.json")
    if plan["phase"] != phase:
        raise UserError(f"{inputs.mixture.uri}: this mixture is for phase '{plan['phase']}', not '{phase}'")
    model = new_model(config_from_recipe(recipe.model, settings.rope_theta), recipe.seed)
    optimizer = _optimizer(recipe, settings, model)
    begin = PhaseClock()
    if inputs.start is not None:
        begin = start_from(inputs.start, phase, settings, recipe.model, model, optimizer, cache / "files")

    found = resume.fetch_newest(output.uri, scratch)
    files = found[1] if found else {}
    points = _points(files)
    history = History(run, recipe.training.log_every, settings.mask_probability, points)
    keeper = Resume(
        recipe.training.checkpoint_tokens,
        scratch,
        history,
        lambda batch, tokens, saved: resume.save(
            output.uri, output.attempt, batch, tokens, saved, recipe.training.keep_checkpoints
        ),
    )
    state = LoaderState.from_bytes(files["loader.bin"].read_bytes()) if files else None
    streams = mixture_streams(plan["rows"], inputs.shards)
    loader = build_loader(
        streams,
        loader_settings(recipe, phase, cache / "shards", begin.rows),
        rank=dist.get_global_rank(),
        world_size=dist.get_world_size(),
        workers=recipe.training.workers,
        state=state,
    )
    trainer = Trainer(
        model=ComposerEncoder(model),
        optimizers=optimizer,
        train_dataloader=data_spec(_Converted(loader)),
        max_duration=f"{settings.tokens}tok",
        device_train_microbatch_size=settings.batch.microbatch_size,
        accumulate_train_batch_on_tokens=True,
        precision=_PRECISION[recipe.training.precision],
        seed=recipe.seed,
        callbacks=[
            LearningRate(
                settings.learning_rate, lambda t: lr_multiplier(t, settings.schedule, settings.tokens), recipe.seed
            ),
            history,
            Snapshots(recipe.merge.snapshots if phase == "decay" else 1, settings.tokens, scratch),
            keeper,
        ],
        load_path=str(files["composer.pt"]) if files else None,
        spin_dataloaders=False,
        progress_bar=False,
        loggers=[],
    )
    keeper.trainer = trainer
    if not found:
        trainer.state.timestamp = Timestamp(batch=begin.batches, sample=begin.rows, token=begin.tokens)
    if found:
        print(f"going on from {found[0].uri}: batch {found[0].batch:,}, {found[0].tokens:,} tokens", flush=True)
    try:
        trainer.fit()
    finally:
        trainer.close()
    if dist.get_global_rank() == 0:
        _write(recipe, phase, plan, inputs, trainer, model, optimizer, history.points, output, run, scratch)


class _Converted:
    """The loader's batches as Composer takes them, without a `dataset`: its state travels with each batch."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.dataset = None
        self.batch_size = None

    def __iter__(self) -> Any:
        return (tensors_of(batch) for batch in self.loader)


def _optimizer(recipe: Recipe, settings: PhaseTraining, model: MaskedLanguageModel) -> StableAdamW:
    return StableAdamW(
        parameter_groups(model.named_parameters(), settings.weight_decay),
        lr=settings.learning_rate,
        betas=recipe.optimizer.betas,
        eps=recipe.optimizer.eps,
    )


def _points(files: dict[str, Path]) -> list[HistoryPoint]:
    if not files:
        return []
    return [HistoryPoint(**p) for p in json.loads(files["history.json"].read_text("utf-8"))]


def _write(
    recipe: Recipe,
    phase: str,
    plan: dict[str, Any],
    inputs: PhaseInputs,
    trainer: Trainer,
    model: MaskedLanguageModel,
    optimizer: torch.optim.Optimizer,
    points: list[HistoryPoint],
    output: ArtifactWriter,
    run: ComponentRun,
    scratch: Path,
) -> None:
    settings: PhaseTraining = getattr(recipe.phases, phase)
    timestamp = trainer.state.timestamp
    canonical.save_weights(scratch / canonical.WEIGHTS, model)
    canonical.save_optimizer(scratch / canonical.OPTIMIZER, model, optimizer)
    canonical.save_state(
        scratch / canonical.STATE,
        {
            "phase": phase,
            "variant": plan["variant"],
            "batches": int(timestamp.batch.value),
            "rows": int(timestamp.sample.value),
            "tokens": int(timestamp.token.value),
            "finished": True,
            "model": recipe.model.model_dump(),
            "rope_theta": settings.rope_theta.model_dump(),
            "max_seq_len": settings.max_seq_len,
        },
    )
    for name in (canonical.WEIGHTS, canonical.OPTIMIZER, canonical.STATE):
        output.add_file(name, scratch / name)
    for path in sorted(scratch.glob("snapshot-*.safetensors")):
        output.add_file(f"snapshots/{path.name}", path)
    composer_file = Path(trainer.save_checkpoint(str(scratch / "ep{epoch}-ba{batch}-rank{rank}.pt")))
    output.add_file(f"composer/{composer_file.name}", composer_file, digested=False)
    output.add_json(HISTORY, [asdict(p) for p in points], digested=False)
    output.add_json(BITS_PER_BYTE, _bits_per_byte(recipe, phase, inputs, model, run), digested=False)
    output.outputs["label"] = plan["variant"] or phase
    output.after_commit.append(lambda: resume.drop(output.uri))


def _bits_per_byte(
    recipe: Recipe, phase: str, inputs: PhaseInputs, model: MaskedLanguageModel, run: ComponentRun
) -> dict[str, Any]:
    """Held-out masked bits per byte by language at the phase's end, and over all."""
    settings: PhaseTraining = getattr(recipe.phases, phase)
    languages = masked_bits_per_byte(
        model,
        Tokenizer.from_file(str(inputs.tokenizer / "tokenizer.json")),
        by_language(read_held_out(inputs.held_out)),
        mask_token_id=recipe.model.mask_token_id,
        seed=recipe.seed,
        max_seq_len=settings.max_seq_len,
        max_bytes=recipe.evaluation.bits_per_byte_bytes_per_language,
    )
    overall = total_bits_per_byte(languages.values())
    run.log_metrics(
        {
            "masked_bits_per_byte": overall,
            **{f"masked_bits_per_byte.{n}": v.bits_per_byte for n, v in languages.items()},
        },
        step=settings.tokens,
    )
    return {
        "overall": overall,
        "languages": {
            n: {"bits": v.bits, "bytes": v.bytes, "bits_per_byte": v.bits_per_byte} for n, v in languages.items()
        },
    }
