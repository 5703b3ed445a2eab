"""Groups of streams and of parameters, as training signals are told apart by them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Protocol

from torch import Tensor, nn

_OF_THE_REST = (("high", 0.5), ("middle", 0.9), ("low", 1.0))
"""Name of a group, and the share of the other languages' tokens at which it ends."""


class Stream(Protocol):
    @property
    def language(self) -> str: ...
    @property
    def weight(self) -> float: ...


def language_groups(streams: Sequence[Stream]) -> list[str]:
    """The group of each stream: `english`, `code`, or `high`, `middle`, `low` by the language's share of the tokens.

    The other languages are ranked by their share, the largest first; those within the first half of their tokens are
    `high`, those up to 90% `middle`, the rest `low`. A language belongs to the group in which its tokens begin.
    """
    shares: dict[str, float] = defaultdict(float)
    for stream in streams:
        shares[stream.language] += stream.weight
    groups = {"eng_Latn": "english", "code": "code"}
    rest = sorted((code for code in shares if code not in groups), key=lambda code: (-shares[code], code))
    total, before = sum(shares[code] for code in rest), 0.0
    for code in rest:
        groups[code] = next((name for name, end in _OF_THE_REST if before < end * total), "low")
        before += shares[code]
    return [groups[stream.language] for stream in streams]


def parameter_group(name: str) -> str:
    """`embeddings` (with the tied decoder and its bias), `attention`, `mlp`, `norms` or `head`, of a parameter."""
    if "norm" in name.rpartition(".")[0].rpartition(".")[2]:
        return "norms"
    if name.startswith("head."):
        return "head"
    if ".attn." in name:
        return "attention"
    if ".mlp." in name:
        return "mlp"
    return "embeddings"


def parameters_by_group(named_parameters: Iterable[tuple[str, nn.Parameter]]) -> list[tuple[str, Tensor]]:
    """The group of each parameter that is trained, and the parameter."""
    return [(parameter_group(name), parameter) for name, parameter in named_parameters if parameter.requires_grad]
