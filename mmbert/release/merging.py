"""The recipe's merge over checkpoint artifacts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from mmbert.artifacts import Artifact, ArtifactWriter
from mmbert.errors import UserError
from mmbert.recipe.schema import Merge
from mmbert.release import merge
from mmbert.release.checkpoints import load_weights, save_weights
from mmbert.training import canonical

SNAPSHOTS = "snapshots/"


def merge_checkpoints(
    settings: Merge, checkpoints: Sequence[Artifact], base: Artifact, cache: Path, scratch: Path, output: ArtifactWriter
) -> None:
    """Merge the chosen variants into `weights.safetensors`, with a report by tensor where the method gives one.

    Raises UserError where a chosen variant is not among the checkpoints, or where two of them are the same.
    """
    by_label = {str(c.outputs["label"]): c for c in checkpoints}
    if len(by_label) < len(checkpoints) or len(set(settings.variants)) < len(settings.variants):
        raise UserError("merge: a decay variant was given twice")
    chosen = settings.variants or tuple(by_label)
    for name in chosen:
        if name not in by_label:
            raise UserError(f"merge.variants: no checkpoint of '{name}' was given; there are {', '.join(by_label)}")
    variants = {name: load_weights(by_label[name].fetch(canonical.WEIGHTS, cache)) for name in chosen}
    weights = [settings.weights.get(name, 1.0) for name in chosen]
    if settings.method == "ema":
        merged = merge.ema(_snapshots(by_label, chosen, cache), settings.ema_decay)
    elif settings.method == "linear":
        merged = merge.linear(list(variants.values()), weights)
    else:
        start = load_weights(base.fetch(canonical.WEIGHTS, cache))
        merged, report = merge.ties(start, variants, settings.density, weights)
        output.add_json("merge.json", report)
    save_weights(merged, scratch / canonical.WEIGHTS)
    output.add_file(canonical.WEIGHTS, scratch / canonical.WEIGHTS)


def _snapshots(by_label: dict[str, Artifact], chosen: Sequence[str], cache: Path) -> list[dict[str, Tensor]]:
    """The weights kept during the decay of one variant, oldest first, its end last."""
    if len(chosen) != 1:
        raise UserError(f"merge.method ema averages the checkpoints of one variant; merge.variants names {len(chosen)}")
    artifact = by_label[chosen[0]]
    paths = [*artifact.paths(SNAPSHOTS), canonical.WEIGHTS]
    return [load_weights(artifact.fetch(path, cache)) for path in paths]
