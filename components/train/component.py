from __future__ import annotations

from typing import Annotated, Any, Literal

from components.contract import RECIPE_HELP, Input, component
from components.runtime import Work


def _fingerprinted(recipe: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Snapshots count in the decay phase alone; what a spike is, where spikes are not ignored.

    `stop` and `skip` make the same weights up to the batch that stops, so a phase that stopped can go on skipping.
    """
    kept = {key: value for key, value in recipe.items() if key != "merge.snapshots" or arguments["phase"] == "decay"}
    bad = dict(kept["training"]["bad_batches"])
    if bad.pop("spike") == "ignore":
        del bad["spike_sigmas"], bad["spike_window"]
    return kept | {"training": kept["training"] | {"bad_batches": bad}}


@component(
    produces="checkpoint",
    version=2,
    image="train",
    resources="train",
    reads=("seed", "model", "optimizer", "training", "evaluation.bits_per_byte_bytes_per_language", "merge.snapshots",
           *(f"phases.{{phase}}.{key}" for key in (
               "tokens", "max_seq_len", "mask_probability", "rope_theta", "learning_rate", "weight_decay", "schedule",
               "batch"))),
    operational=(
        *(f"training.{key}" for key in (
            "workers", "cache_gb", "log_every", "checkpoint_tokens", "keep_checkpoints", "permanent_checkpoint_tokens",
            "device", "attention", "compile", "bad_batches.nan", "bad_batches.max_skipped")),
        "phases.{phase}.batch.microbatch_size", "evaluation.bits_per_byte_bytes_per_language"),
    fingerprinted=_fingerprinted,
    distributed=True,
)  # fmt: skip
def train(
    work: Work,
    recipe: Annotated[str, RECIPE_HELP, Input("recipe")],
    phase: Annotated[Literal["pretrain", "extend", "decay"], "which phase to train"],
    mixture: Annotated[str, "URI of the phase's mixture", Input("mixture")],
    shards: Annotated[list[str], "URIs of all tokenized shards", Input("shards")],
    tokenizer: Annotated[str, "URI of the tokenizer", Input("tokenizer")],
    documents: Annotated[list[str], "URIs of curated documents; their held-out part is scored at the end",
                         Input("documents")],
    checkpoint: Annotated[str, "URI of the checkpoint to start from; without, from scratch", Input("checkpoint")] = "",
) -> None:  # fmt: skip
    """Train one phase from a checkpoint (or from scratch) on a mixture.

    The output holds `weights.safetensors`, `optimizer.safetensors` and `training_state.json`, from which the next phase
    starts; undigested beside them a Composer checkpoint, the training history and held-out bits per byte by language.
    A run that was killed goes on from its newest resume checkpoint.
    """
    from mmbert.training.deferred import signals_kept

    with signals_kept():
        from mmbert.training.phase import PhaseInputs, train_phase

    inputs = PhaseInputs(
        mixture=work.open(mixture, "mixture"),
        shards=[work.open(uri, "shards") for uri in shards],
        tokenizer=work.fetch_folders([tokenizer], "tokenizer")[0],
        held_out=work.fetch_folders(documents, "documents", "heldout/") if work.ranks.leads else [],
        start=work.open(checkpoint, "checkpoint") if checkpoint else None,
    )
    train_phase(
        work.recipe, phase, inputs, output=work.output, run=work.run, cache=work.cache, scratch=work.scratch,
        ranks=work.ranks,
    )  # fmt: skip
