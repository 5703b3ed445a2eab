"""What a phase starts from: weights and optimiser of a checkpoint, and the clock where its own phase was broken off."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from composer.utils import dist

from mmbert.artifacts import Artifact
from mmbert.errors import UserError
from mmbert.model.head import MaskedLanguageModel
from mmbert.recipe.schema import Model, PhaseTraining
from mmbert.release import checkpoints
from mmbert.training import canonical
from mmbert.training.optimizer import StableAdamW


@dataclass(frozen=True)
class PhaseClock:
    """Where in a phase its training begins. `rows` are of max_seq_len tokens, padding counted."""

    batches: int = 0
    rows: int = 0
    tokens: int = 0


def fetch_start(artifact: Artifact, cache: Path) -> None:
    """Bring what `start_from` reads into the cache, so that the processes of a node need not each do so."""
    for name in (canonical.WEIGHTS, canonical.OPTIMIZER):
        if name in artifact.paths():
            artifact.fetch(name, cache)


def start_from(
    artifact: Artifact,
    phase: str,
    settings: PhaseTraining,
    section: Model,
    model: MaskedLanguageModel,
    optimizer: StableAdamW,
    cache: Path,
) -> PhaseClock:
    """Load weights and optimiser; the clock is the checkpoint's where it was saved within `phase`, else zero.

    Raises UserError where the checkpoint is of another model than the recipe's `section`, naming the key, is damaged,
    or lies in the middle of another phase.
    """
    held = artifact.paths()
    state = artifact.read_json(canonical.STATE) if canonical.STATE in held else {}
    checkpoints.check_shape(state.get("model", {}), section, artifact.uri)
    canonical.load_weights(artifact.fetch(canonical.WEIGHTS, cache), model)
    leads = dist.get_global_rank() == 0
    if canonical.OPTIMIZER in held:
        canonical.load_optimizer(artifact.fetch(canonical.OPTIMIZER, cache), model, optimizer)
    elif leads:
        print(f"{artifact.uri}: no optimiser state in this checkpoint; the optimiser starts afresh", flush=True)
    if state.get("finished", True):
        return PhaseClock()
    clock = PhaseClock(int(state["batches"]), int(state["rows"]), int(state["tokens"]))
    if state["phase"] != phase:
        raise UserError(
            f"{artifact.uri}: this checkpoint is {clock.tokens:,} tokens into phase '{state['phase']}'; train that "
            f"phase from it, or import it with --then next to start '{phase}'"
        )
    if clock.tokens >= settings.tokens:
        raise UserError(
            f"{artifact.uri}: this checkpoint is {clock.tokens:,} tokens into phase '{phase}', which has "
            f"{settings.tokens:,} (phases.{phase}.tokens); raise it, or import it with --then next"
        )
    if leads:
        print(
            f"{artifact.uri}: going on {clock.tokens:,} tokens into phase '{phase}'; its data are drawn from their "
            "beginning, since a checkpoint from elsewhere does not say which it had seen",
            flush=True,
        )
    return clock
