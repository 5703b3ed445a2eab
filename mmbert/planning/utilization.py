"""The share of its peak that hardware reaches: from published runs, from what was given, or from runs of one's own."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mmbert.model.config import EncoderConfig
from mmbert.planning.gpus import Device
from mmbert.planning.ranges import Range, around
from mmbert.recipe.schema import PhaseTraining


@dataclass(frozen=True)
class Utilization:
    """Model FLOPs over time and peak of whole steps, and where that comes from.

    `processes`: of the run that it was seen in; what sums over more of them cost comes on top.
    """

    share: Range
    why: str
    processes: int


@dataclass(frozen=True)
class Measured:
    """A finished training run of this project: its summary in MLflow. `share`: of the peak of its devices."""

    run_id: str
    device: str
    hidden_size: int
    num_hidden_layers: int
    vocab_size: int
    max_seq_len: int
    processes: int
    share: float
    tokens_per_second: float
    planned_tokens_per_second: float | None


# Published trainings of encoders at 1,024 tokens on 8 (Ettin: 4) H100 or H200: utilisation by this project's count of
# FLOPs against 989 TFLOP/s. Tokens a second and GPU: mmBERT base 108k and small 434k (arXiv 2509.06888: 3T tokens in 40
# and 10 days), ModernBERT base 305k (arXiv 2412.13663: 1.7T tokens in 194 h), Ettin 150M 296k and 400M 146k (arXiv
# 2507.11412), NeoBERT 155k (a vendor's report).
PUBLISHED = {
    "mmBERT base": 0.12,
    "mmBERT small": 0.20,
    "Ettin 150M": 0.25,
    "NeoBERT": 0.255,
    "ModernBERT base": 0.26,
    "Ettin 400M": 0.34,
}
_WIDER_THAN_THESE_PRESETS = ("Ettin 400M",)
# Of this project's own step on two cores: 0.22 with the tiny model, 0.46 with mmBERT small (make bench-train).
_CPU = Range(0.16, 0.26, 0.46)
# A given figure is one number; lengths of documents and noise make some difference even so.
_GIVEN_REACH = 0.05


def published(device: Device) -> Utilization:
    """What nobody has measured yet: the range of published encoders."""
    if device.is_cpu:
        return Utilization(
            _CPU,
            "this project's training step on two cores of an AMD EPYC, from its tiny model to mmBERT small, with what "
            "other work on the machine took",
            1,
        )
    usual = [share for name, share in PUBLISHED.items() if name not in _WIDER_THAN_THESE_PRESETS]
    low, high = min(PUBLISHED, key=PUBLISHED.__getitem__), max(PUBLISHED, key=PUBLISHED.__getitem__)
    share = around(statistics.median(usual), PUBLISHED[low], PUBLISHED[high])
    where = "" if device.name in {"h100", "h200"} else f"; none of them ran on {device.name}"
    return Utilization(
        share,
        f"published encoder trainings on H100, from {low} ({PUBLISHED[low]:.0%}) to {high} ({PUBLISHED[high]:.0%}, a "
        f"wider model), {share.expected:.0%} in the middle of those as narrow as these{where}; not measured with this "
        "project",
        8,
    )


def given(share: float) -> Utilization:
    """As the user says."""
    reach = Range(share * (1 - _GIVEN_REACH), share, share * (1 + _GIVEN_REACH))
    return Utilization(reach, f"as given (--mfu {share:g}), 5% to each side", 8)


def calibrated(
    runs: Sequence[Measured], device: Device, config: EncoderConfig, settings: PhaseTraining
) -> Utilization | None:
    """From the runs on this kind of device that are most like this phase; None where there are none.

    Nearest first: the same model and sequence length, the same model, the model nearest in size. The further away, the
    wider the range (for a single run twice as wide), which never is narrower than what the runs themselves show.
    """
    here = [run for run in runs if run.device == device.name]
    shape = (config.hidden_size, config.num_hidden_layers, config.vocab_size)
    same = [run for run in here if (run.hidden_size, run.num_hidden_layers, run.vocab_size) == shape]
    exact = [run for run in same if run.max_seq_len == settings.max_seq_len]
    if exact:
        like, reach = exact, 0.1
        what = f"this model at {settings.max_seq_len:,} tokens"
    elif same:
        like, reach = _nearest(same, lambda run: run.max_seq_len, settings.max_seq_len), 0.2
        what = f"this model at {like[0].max_seq_len:,} tokens, the nearest length that ran"
    elif here:
        like, reach = _nearest(here, lambda run: run.hidden_size, config.hidden_size), 0.35
        what = f"another model, of hidden size {like[0].hidden_size}"
    else:
        return None
    if len(like) == 1:
        reach *= 2
    shares = [run.share for run in like]
    middle = statistics.median(shares)
    share = around(middle, min(*shares, middle * (1 - reach)), max(*shares, middle * (1 + reach)))
    spread = f"{min(shares):.1%} to {max(shares):.1%}"
    count = f"{len(like)} run{'s' if len(like) > 1 else ''} here"
    processes = round(statistics.median(run.processes for run in like))
    return Utilization(share, f"{count} on {device.name} of {what} ({spread})", processes)


def _nearest(runs: Sequence[Measured], size: Callable[[Measured], int], wanted: int) -> list[Measured]:
    """The runs of the size whose ratio to the wanted one is the smallest."""
    best = min((size(run) for run in runs), key=lambda one: max(one / wanted, wanted / one))
    return [run for run in runs if size(run) == best]
