"""What a run costs: GPU-hours by a price that was given, or by one that is written down with its date."""

from __future__ import annotations

from dataclasses import dataclass

from mmbert.planning.ranges import Range
from mmbert.planning.throughput import Cluster

# An eighth of p5.48xlarge on demand, 55.04 an hour: infra/terraform/prices.csv, where it stands with the date.
_KNOWN = {"h100": (6.88, "AWS p5.48xlarge on demand in us-east-1, an eighth, seen 2026-11; check it (--price)")}


@dataclass(frozen=True)
class Cost:
    """US dollars for GPUs alone. `source` says whose price it is."""

    price: float
    source: str
    dollars: Range


def cost_of(gpu_hours: Range, cluster: Cluster, price: float | None) -> Cost | None:
    """None where no price was given and none is known. `price`: dollars an hour and GPU."""
    if price is not None:
        found = price, "as given (--price)"
    elif cluster.device.name in _KNOWN:
        found = _KNOWN[cluster.device.name]
    else:
        return None
    return Cost(*found, gpu_hours.through(lambda hours: hours * found[0]))
