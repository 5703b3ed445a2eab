"""Merging models of one shape, weight by weight, in fp32.

Weights are dicts by name with every weight once (`checkpoints.load_weights`), so a tied decoder is merged once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

import torch
from torch import Tensor

from mmbert.errors import UserError

Weights = Mapping[str, Tensor]


class TensorReport(TypedDict):
    """What TIES did to one tensor. Shares are of its elements; norms are L2."""

    name: str
    kept_share: float  # changed by at least one variant after trimming
    sign_conflict_share: float  # pulled both up and down by the trimmed changes
    change_norms: dict[str, float]  # of each variant against the base, before trimming
    merged_change_norm: float


def ties(
    base: Weights, variants: Mapping[str, Weights], density: float, weights: Sequence[float]
) -> tuple[dict[str, Tensor], list[TensorReport]]:
    """TIES (Yadav et al. 2023, arXiv 2306.01708): trim, elect sign, disjoint mean, added to the base with lambda = 1.

    Of each variant's change the `density` largest by magnitude stay, a tensor at a time; a place's sign is that of the
    weighted sum of what stayed there; the merged change is the weighted mean over the variants that agree with it
    (divided by the sum of their weights alone). `weights` are in the variants' order. Returns the merged weights and a
    report by tensor. Raises UserError for variants that differ in names or shapes, or values that cannot be used.
    """
    if not 0 < density <= 1:
        raise UserError(f"merge.density {density} must be above 0 and at most 1")
    _check_shares(len(variants), weights)
    for variant, tensors in variants.items():
        _check_alike(tensors, base, f"variant '{variant}'", "the base")
    merged, report = {}, []
    for name in sorted(base):
        found = {variant: tensors[name].float() for variant, tensors in variants.items()}
        merged[name], line = _ties_tensor(name, base[name].float(), found, density, weights)
        report.append(line)
    return merged, report


def _ties_tensor(
    name: str, base: Tensor, variants: Mapping[str, Tensor], density: float, weights: Sequence[float]
) -> tuple[Tensor, TensorReport]:
    changes = {variant: value - base for variant, value in variants.items()}
    norms = {variant: change.norm().item() for variant, change in changes.items()}
    kept = [_trim(change, density) for change in changes.values()]
    elected = sum((w * change for w, change in zip(weights, kept, strict=True)), torch.zeros_like(base)).sign()
    total, mass = torch.zeros_like(base), torch.zeros_like(base)
    for weight, change in zip(weights, kept, strict=True):
        agrees = (change.sign() == elected) & (change != 0)
        total += weight * change * agrees
        mass += weight * agrees
    merged_change = torch.where(mass > 0, total / mass, 0.0)
    up = torch.stack([change > 0 for change in kept]).any(0)
    down = torch.stack([change < 0 for change in kept]).any(0)
    return base + merged_change, TensorReport(
        name=name,
        kept_share=(up | down).float().mean().item(),
        sign_conflict_share=(up & down).float().mean().item(),
        change_norms=norms,
        merged_change_norm=merged_change.norm().item(),
    )


def _trim(change: Tensor, density: float) -> Tensor:
    """The `density` largest changes by magnitude, at least one; places that tie with the smallest kept one stay too."""
    kept = max(1, round(density * change.numel()))
    if kept == change.numel():
        return change
    magnitudes = change.abs()
    threshold = magnitudes.flatten().kthvalue(change.numel() - kept + 1).values
    return torch.where(magnitudes >= threshold, change, 0.0)


def linear(variants: Sequence[Weights], weights: Sequence[float]) -> dict[str, Tensor]:
    """The weighted mean of the variants. Raises UserError as `ties` does."""
    _check_shares(len(variants), weights)
    for number, tensors in enumerate(variants[1:], start=2):
        _check_alike(tensors, variants[0], f"variant {number}", "the first")
    total = sum(weights)
    merged = {}
    for name in sorted(variants[0]):
        parts = [tensors[name].float() * (w / total) for w, tensors in zip(weights, variants, strict=True)]
        merged[name] = torch.stack(parts).sum(0)
    return merged


def ema(checkpoints: Sequence[Weights], decay: float) -> dict[str, Tensor]:
    """Exponentially weighted average of checkpoints, oldest first: average = decay x average + (1 - decay) x next.

    Raises UserError for no checkpoints, checkpoints that differ in names or shapes, or a decay outside 0 to 1.
    """
    if not checkpoints:
        raise UserError("merge: there is no checkpoint to average")
    if not 0 < decay < 1:
        raise UserError(f"merge.ema_decay {decay} must lie between 0 and 1")
    average = {name: checkpoints[0][name].float().clone() for name in sorted(checkpoints[0])}
    for number, checkpoint in enumerate(checkpoints[1:], start=2):
        _check_alike(checkpoint, average, f"checkpoint {number}", "the first")
        for name, value in average.items():
            value.lerp_(checkpoint[name].float(), 1 - decay)
    return average


def _check_shares(variants: int, weights: Sequence[float]) -> None:
    if not variants:
        raise UserError("merge.variants: there is nothing to merge")
    if len(weights) != variants:
        raise UserError(f"merge.weights: {len(weights)} weights for {variants} variants")
    for weight in weights:
        if not 0 < weight < float("inf"):
            raise UserError(f"merge.weights: {weight} must be positive")


def _check_alike(found: Weights, expected: Weights, who: str, than: str) -> None:
    for name in sorted({*found, *expected}):
        if name not in found or name not in expected:
            raise UserError(
                f"merge: '{name}' is missing in {who if name in expected else than}; these are different models"
            )
        if found[name].shape != expected[name].shape:
            shapes = f"{list(found[name].shape)} in {who} and {list(expected[name].shape)} in {than}"
            raise UserError(f"merge: '{name}' has shape {shapes}; these are different models")
