"""Pictures of a run for MLflow's artifact view: language shares, training curves, bits per byte across the decay."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mmbert.evaluation.report_data import ReportData

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_plots(data: ReportData, folder: Path) -> list[Path]:
    """Write `language_shares.png`, `training.png` and `decay.png` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"language_shares": _shares(data), "training": _training(data), "decay": _decay(data)}
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=110)
    return paths


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _shares(data: ReportData) -> Figure:
    figure = _figure(12, 4)
    axes = figure.subplots(1, len(data.phases), sharey=True, squeeze=False)[0]
    for axis, phase in zip(axes, data.phases, strict=True):
        shares = list(phase.language_shares().values())
        axis.semilogy(range(1, len(shares) + 1), shares, ".", markersize=4)
        axis.set(title=f"{phase.label}: {len(shares)} languages", xlabel="language, by share")
    axes[0].set_ylabel("share of the phase's tokens")
    return figure


def _training(data: ReportData) -> Figure:
    figure = _figure(12, 6)
    loss, rate = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    start = 0
    for phase in data.phases:
        tokens = [start + point.tokens_seen for point in phase.history]
        loss.plot(tokens, [point.loss for point in phase.history], label=phase.label)
        rate.plot(tokens, [point.learning_rate for point in phase.history])
        if phase.variant is None:
            start += phase.tokens
    loss.set(ylabel="loss (nats a masked token)")
    loss.legend()
    rate.set(ylabel="learning rate", xlabel="tokens trained on")
    return figure


def _decay(data: ReportData) -> Figure:
    figure = _figure(12, 4)
    axes = figure.subplots(1, max(1, len(data.variants)), sharex=True, sharey=True, squeeze=False)[0]
    before = data.trunk[-1].bits_per_byte
    for axis, variant in zip(axes, data.variants, strict=False):
        for new, colour, label in ((False, "tab:blue", "seen before"), (True, "tab:orange", "new to the decay")):
            codes = [c for c in variant.bits_per_byte if c in before and (c in data.new_languages) == new]
            points = [before[c] for c in codes], [variant.bits_per_byte[c] for c in codes]
            axis.scatter(*points, s=8, color=colour, label=label)
        axis.axline((3, 3), slope=1, color="grey", linewidth=0.8)
        axis.set(title=variant.label, xlabel="bits per byte before", ylabel="after")
    axes[0].legend()
    return figure
