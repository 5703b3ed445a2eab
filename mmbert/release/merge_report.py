"""What a merge did to a model: sign conflict, agreement, kept share and change norms, by tensor, layer and kind."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

KINDS = ("embedding", "attention", "mlp", "norms", "head")
_LAYER = re.compile(r"\.layers\.(\d+)\.")


@dataclass
class TensorReport:
    """Counts of elements and squared L2 norms of one tensor, or of several added up.

    `kept`: changed by at least one variant after trimming. Of these, `conflicting`: pulled both up and down;
    `agreeing`: pulled one way by two variants or more. The rest was changed by one variant alone. Squared norms are of
    each variant's change against the base before trimming, and of the merged change.
    """

    name: str
    elements: int
    kept: int
    conflicting: int
    agreeing: int
    kept_by_variant: dict[str, int]
    squares: dict[str, float]
    merged_square: float

    @classmethod
    def empty(cls, name: str, elements: int, variants: Iterable[str]) -> TensorReport:
        names = list(variants)
        return cls(name, elements, 0, 0, 0, dict.fromkeys(names, 0), dict.fromkeys(names, 0.0), 0.0)

    def add(self, changes: Tensor, kept: Tensor, merged_change: Tensor) -> None:
        """A block of elements [n]: each variant's change before and after trimming, [variants, n], and the merged."""
        up, down = (kept > 0).sum(0), (kept < 0).sum(0)
        self.kept += int((up + down > 0).sum())
        self.conflicting += int(((up > 0) & (down > 0)).sum())
        self.agreeing += int((((up > 1) & (down == 0)) | ((down > 1) & (up == 0))).sum())
        for variant, change, stayed in zip(self.squares, changes, kept, strict=True):
            self.kept_by_variant[variant] += int(stayed.count_nonzero())
            self.squares[variant] += change.norm().item() ** 2
        self.merged_square += merged_change.norm().item() ** 2

    def to_json(self) -> dict[str, Any]:
        """Shares are of the elements; norms are L2."""
        return {
            "elements": self.elements,
            "kept_share": self.kept / self.elements,
            "sign_conflict_share": self.conflicting / self.elements,
            "agreement_share": self.agreeing / self.elements,
            "kept_shares": {variant: kept / self.elements for variant, kept in self.kept_by_variant.items()},
            "change_norms": {variant: math.sqrt(square) for variant, square in self.squares.items()},
            "merged_change_norm": math.sqrt(self.merged_square),
        }


def kind_of(name: str) -> str:
    """One of KINDS, of a weight's name in the model."""
    if "norm" in name:
        return "norms"
    if ".attn." in name:
        return "attention"
    if ".mlp." in name:
        return "mlp"
    return "embedding" if "embeddings" in name else "head"


def layer_of(name: str) -> str:
    """`embeddings`, a layer's number, or `head` (the final norm is part of it)."""
    found = _LAYER.search(name)
    return found[1] if found else "embeddings" if "embeddings" in name else "head"


def merge_report(settings: Mapping[str, Any], tensors: Sequence[TensorReport]) -> dict[str, Any]:
    """The content of `merge.json`: `settings`, then shares and norms of the whole model, by kind, by layer (and by kind
    in it) and by tensor. Without `tensors`, for a merge without a base, `settings` alone."""
    if not tensors:
        return dict(settings)
    kinds = {kind: [t for t in tensors if kind_of(t.name) == kind] for kind in KINDS}
    layers = {layer: [t for t in tensors if layer_of(t.name) == layer] for layer in _layers(tensors)}
    return {
        **settings,
        "total": _sum(tensors).to_json(),
        "kinds": {kind: _sum(found).to_json() for kind, found in kinds.items() if found},
        "layers": {layer: {**_sum(found).to_json(), "kinds": _by_kind(found)} for layer, found in layers.items()},
        "tensors": {tensor.name: tensor.to_json() for tensor in tensors},
    }


def _layers(tensors: Iterable[TensorReport]) -> list[str]:
    def place(layer: str) -> float:
        return float(layer) if layer.isdigit() else {"embeddings": -1.0}.get(layer, math.inf)

    return sorted({layer_of(tensor.name) for tensor in tensors}, key=place)


def _by_kind(tensors: Sequence[TensorReport]) -> dict[str, Any]:
    kinds = dict.fromkeys(kind_of(tensor.name) for tensor in tensors)
    return {kind: _sum([t for t in tensors if kind_of(t.name) == kind]).to_json() for kind in kinds}


def _sum(tensors: Sequence[TensorReport]) -> TensorReport:
    variants = list(tensors[0].squares)
    return TensorReport(
        name="",
        elements=sum(t.elements for t in tensors),
        kept=sum(t.kept for t in tensors),
        conflicting=sum(t.conflicting for t in tensors),
        agreeing=sum(t.agreeing for t in tensors),
        kept_by_variant={v: sum(t.kept_by_variant[v] for t in tensors) for v in variants},
        squares={v: sum(t.squares[v] for t in tensors) for v in variants},
        merged_square=sum(t.merged_square for t in tensors),
    )


def merge_table(report: Mapping[str, Any]) -> str:
    """The report by kind and by layer as text, a row each; empty for a report of settings alone."""
    if "total" not in report:
        return ""
    head = ["", "elements", "kept", "sign conflict", "agreement", "largest change", "merged change"]
    rows = [_row(kind, found) for kind, found in report["kinds"].items()]
    rows += [_row(f"layer {name}" if name.isdigit() else f"all of {name}", f) for name, f in report["layers"].items()]
    rows.append(_row("the model", report["total"]))
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = []
    for name, *figures in [head, *rows]:
        cells = [name.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(figures, widths[1:], strict=True))]
        lines.append("  ".join(cells))
    return "\n".join(lines)


def _row(name: str, found: Mapping[str, Any]) -> list[str]:
    shares = [f"{found[key]:.1%}" for key in ("kept_share", "sign_conflict_share", "agreement_share")]
    norms = [max(found["change_norms"].values()), found["merged_change_norm"]]
    return [name, f"{found['elements']:,}", *shares, *(f"{norm:.4g}" for norm in norms)]
