"""Merging models of one shape, weight by weight, in fp32.

Weights are dicts by name with every weight once (`checkpoints.load_weights`), so a tied decoder is merged once. `ties`
and `linear` follow mergekit's definitions (0.1.5, with `normalize` on) operation by operation, and give its numbers to
the bit for fp32 tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mmbert import progress
from mmbert.errors import UserError
from mmbert.release.merge_report import TensorReport

Weights = Mapping[str, Tensor]

_BLOCK = 2**24  # elements worked on at once; the largest tensor, the embedding, has ten times as many


def ties(
    base: Weights, variants: Mapping[str, Weights], density: float, weights: Sequence[float]
) -> tuple[dict[str, Tensor], list[TensorReport]]:
    """TIES (Yadav et al. 2023, arXiv 2306.01708): trim, elect sign, disjoint mean, added to the base with lambda = 1.

    Of each variant's change the int(`density` x elements) largest by magnitude stay, at least one, a tensor at a time;
    of equal ones the first do. A place's sign is that of the weighted sum of what stayed there, up where it is 0; the
    merged change is the weighted mean over the variants that agree with it, divided by the sum of their weights alone.
    `weights` are in the variants' order. Returns the merged weights and a report by tensor. Raises UserError for
    variants that differ in names or shapes, or values that cannot be used.
    """
    if not 0 < density <= 1:
        raise UserError(f"density {density} must be above 0 and at most 1")
    _check_shares(len(variants), weights)
    for variant, tensors in variants.items():
        _check_alike(tensors, base, f"variant '{variant}'", "the base")
    merged, report = {}, []
    with progress.shown("merging", len(base), "tensors") as advance:
        for name in sorted(base):
            found = {variant: tensors[name] for variant, tensors in variants.items()}
            merged[name], line = _ties_tensor(name, base[name], found, density, weights)
            report.append(line)
            advance(1)
    return merged, report


def _ties_tensor(
    name: str, base: Tensor, variants: Mapping[str, Tensor], density: float, weights: Sequence[float]
) -> tuple[Tensor, TensorReport]:
    start = base.reshape(-1)
    flat = {variant: value.reshape(-1) for variant, value in variants.items()}
    trims = {variant: _Trim(value, start, density) for variant, value in flat.items()}
    shares = torch.tensor(weights, dtype=torch.float32)[:, None]
    merged = torch.empty_like(start, dtype=torch.float32)
    report = TensorReport.empty(name, start.numel(), variants)
    for begin in range(0, start.numel(), _BLOCK):
        block = slice(begin, begin + _BLOCK)
        origin = start[block].float()
        changes = torch.stack([value[block].float() - origin for value in flat.values()])
        kept = torch.stack([trim.kept(change) for trim, change in zip(trims.values(), changes, strict=True)])
        pulls = kept * shares
        agrees = pulls.sign() == torch.where(pulls.sum(0) >= 0, 1.0, -1.0)
        mass = (shares * agrees).sum(0)
        change = (pulls * agrees).sum(0) / mass.where(mass != 0, 1.0)
        merged[block] = origin + change
        report.add(changes, kept, change)
    return merged.reshape(base.shape), report


class _Trim:
    """Which elements of one variant's change stay; asked for them block after block, from the first on."""

    def __init__(self, value: Tensor, base: Tensor, density: float) -> None:
        self._smallest, self._ties = -1.0, 0
        kept = max(1, int(density * value.numel()))
        if kept < value.numel():
            magnitudes = (value.float() - base.float()).abs_().numpy()
            magnitudes.partition(value.numel() - kept)
            largest = magnitudes[value.numel() - kept :]
            self._smallest = float(largest[0])
            self._ties = kept - int((largest > self._smallest).sum())

    def kept(self, change: Tensor) -> Tensor:
        """The change where it stays, 0 elsewhere."""
        magnitudes = change.abs()
        stays = magnitudes > self._smallest
        if self._ties:
            tied = magnitudes == self._smallest
            tied &= tied.cumsum(0) <= self._ties
            self._ties -= int(tied.sum())
            stays |= tied
        return change.where(stays, 0.0)


def linear(variants: Sequence[Weights], weights: Sequence[float]) -> dict[str, Tensor]:
    """The weighted mean of the variants. Raises UserError as `ties` does."""
    _check_shares(len(variants), weights)
    for number, tensors in enumerate(variants[1:], start=2):
        _check_alike(tensors, variants[0], f"variant {number}", "the first")
    shares = torch.tensor(weights, dtype=torch.float32)
    merged = {}
    with progress.shown("merging", len(variants[0]), "tensors") as advance:
        for name in sorted(variants[0]):
            total = torch.zeros_like(variants[0][name], dtype=torch.float32)
            for share, tensors in zip(shares, variants, strict=True):
                total.addcmul_(tensors[name].float(), share)
            merged[name] = total.div_(shares.sum())
            advance(1)
    return merged


def ema(checkpoints: Sequence[Weights], decay: float) -> dict[str, Tensor]:
    """Exponentially weighted average of checkpoints, oldest first: average = decay x average + (1 - decay) x next.

    Raises UserError for no checkpoints, checkpoints that differ in names or shapes, or a decay outside 0 to 1.
    """
    if not checkpoints:
        raise UserError("merge: there is no checkpoint to average")
    if not 0 < decay < 1:
        raise UserError(f"decay {decay} must lie between 0 and 1")
    for number, checkpoint in enumerate(checkpoints[1:], start=2):
        _check_alike(checkpoint, checkpoints[0], f"checkpoint {number}", "the first")
    merged = {}
    with progress.shown("merging", len(checkpoints[0]), "tensors") as advance:
        for name in sorted(checkpoints[0]):
            average = checkpoints[0][name].float().clone()
            for checkpoint in checkpoints[1:]:
                average.lerp_(checkpoint[name].float(), 1 - decay)
            merged[name] = average
            advance(1)
    return merged


def changes(base: Weights, variants: Mapping[str, Weights], merged: Weights) -> list[TensorReport]:
    """The report by tensor of a merge that trims nothing."""
    report = []
    for name in sorted(base):
        start, end = base[name].reshape(-1), merged[name].reshape(-1)
        line = TensorReport.empty(name, start.numel(), variants)
        for begin in range(0, start.numel(), _BLOCK):
            block = slice(begin, begin + _BLOCK)
            origin = start[block].float()
            found = torch.stack([tensors[name].reshape(-1)[block].float() - origin for tensors in variants.values()])
            line.add(found, found, end[block] - origin)
        report.append(line)
    return report


def check_models(models: Mapping[str, Weights]) -> None:
    """Raises UserError unless the models have the same weights, in names and shapes, all finite, and no two are equal.

    Keys name the models in messages.
    """
    (first, expected), *others = models.items()
    for who, weights in others:
        _check_alike(weights, expected, who, first)
    for who, weights in models.items():
        for name in sorted(weights):
            if not torch.isfinite(weights[name]).all():
                raise UserError(f"{who}: '{name}' holds NaN or infinite values; take an earlier checkpoint")
    names = list(models)
    for number, who in enumerate(names):
        for other in names[:number]:
            if all(torch.equal(models[who][name], models[other][name]) for name in expected):
                raise UserError(f"merge: {who} and {other} hold the same weights; give each model once")


def _check_shares(variants: int, weights: Sequence[float]) -> None:
    if not variants:
        raise UserError("merge: there is nothing to merge")
    if len(weights) != variants:
        raise UserError(f"weights: {len(weights)} for {variants} variants; give one for each")
    for weight in weights:
        if not 0 < weight < float("inf"):
            raise UserError(f"weights: {weight} must be positive")


def _check_alike(found: Weights, expected: Weights, who: str, than: str) -> None:
    for name in sorted({*found, *expected}):
        if name not in found or name not in expected:
            raise UserError(
                f"merge: '{name}' is missing in {who if name in expected else than}; these are different models"
            )
        if found[name].shape != expected[name].shape:
            shapes = f"{list(found[name].shape)} in {who} and {list(expected[name].shape)} in {than}"
            raise UserError(f"merge: '{name}' has shape {shapes}; these are different models")
