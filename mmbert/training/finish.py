"""The end of a phase: its checkpoint, history and held-out scores, written into the artifact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from composer import Timestamp
from tokenizers import Tokenizer

from mmbert.artifacts import ArtifactWriter
from mmbert.evaluation.heldout import by_language, read_held_out
from mmbert.evaluation.masked_bits_per_byte import masked_bits_per_byte, total_bits_per_byte
from mmbert.model.head import MaskedLanguageModel
from mmbert.recipe import Recipe
from mmbert.recipe.schema import PhaseTraining
from mmbert.tracking import ComponentRun
from mmbert.training import canonical, resume
from mmbert.training.history import HistoryPoint

HISTORY = "history.json"
BITS_PER_BYTE = "bits_per_byte.json"


def save_state(
    folder: Path,
    timestamp: Timestamp,
    *,
    recipe: Recipe,
    phase: str,
    variant: str,
    model: MaskedLanguageModel,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write the canonical state at `timestamp` into a folder."""
    settings: PhaseTraining = getattr(recipe.phases, phase)
    canonical.save_weights(folder / canonical.WEIGHTS, model)
    canonical.save_optimizer(folder / canonical.OPTIMIZER, model, optimizer)
    canonical.save_state(
        folder / canonical.STATE,
        {
            "phase": phase,
            "variant": variant,
            "batches": int(timestamp.batch.value),
            "rows": int(timestamp.sample.value),
            "tokens": int(timestamp.token.value),
            "finished": int(timestamp.token.value) >= settings.tokens,
            "model": recipe.model.model_dump(),
            "rope_theta": settings.rope_theta.model_dump(),
            "max_seq_len": settings.max_seq_len,
        },
    )


def write_checkpoint(scratch: Path, composer_file: Path, label: str, output: ArtifactWriter) -> None:
    """Add the canonical state, the decay's snapshots and Composer's own checkpoint to `output`."""
    for name in (canonical.WEIGHTS, canonical.OPTIMIZER, canonical.STATE):
        output.add_file(name, scratch / name)
    for path in sorted(scratch.glob("snapshot-*.safetensors")):
        output.add_file(f"snapshots/{path.name}", path)
    output.add_file(f"composer/{composer_file.name}", composer_file, digested=False)
    output.outputs["label"] = label
    if permanent := resume.permanent_checkpoints(output.uri):
        output.outputs["permanent_checkpoints"] = permanent
    output.after_commit.append(lambda: resume.drop(output.uri))


def write_history(points: Sequence[HistoryPoint], output: ArtifactWriter) -> None:
    output.add_json(HISTORY, [asdict(p) for p in points], digested=False)


def write_bits_per_byte(
    recipe: Recipe,
    phase: str,
    tokenizer: Path,
    held_out: Sequence[Path],
    model: MaskedLanguageModel,
    output: ArtifactWriter,
    run: ComponentRun,
) -> None:
    """Held-out masked bits per byte by language at the phase's end, and over all."""
    settings: PhaseTraining = getattr(recipe.phases, phase)
    languages = masked_bits_per_byte(
        model,
        Tokenizer.from_file(str(tokenizer / "tokenizer.json")),
        by_language(read_held_out(held_out)),
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
    scores: dict[str, Any] = {
        n: {"bits": v.bits, "bytes": v.bytes, "bits_per_byte": v.bits_per_byte} for n, v in languages.items()
    }
    output.add_json(BITS_PER_BYTE, {"overall": overall, "languages": scores}, digested=False)
