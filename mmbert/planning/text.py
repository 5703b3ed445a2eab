"""A plan as text for people, and as plain values for programs (docs/planning.md describes both)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mmbert.planning.memory import Memory
from mmbert.planning.plan import PhasePlan, Plan
from mmbert.planning.ranges import Range

_DAY = 86_400
_NOT_COUNTED = "evaluation, failures and queues, start and compilation, saving (some seconds a checkpoint)"


def as_values(plan: Plan) -> dict[str, Any]:
    """Ranges are `{"low", "expected", "high"}`; bytes, seconds and dollars where a key does not say otherwise."""
    cluster = plan.cluster
    decay = plan.phases[-1]
    return {
        "recipe": plan.recipe,
        "gpu": cluster.device.name,
        "gpus": cluster.devices,
        "nodes": cluster.nodes,
        "processes": plan.processes,
        "activations": plan.way,
        "days": _values(_days(plan.seconds)),
        "tokens_per_second_per_gpu": _values(plan.tokens_a_second_and_device),
        "mfu": _values(plan.mfu),
        "phases": {phase.name: _phase_values(phase) for phase in plan.phases},
        "further_decay_variants": {"count": plan.further_variants, "days_each": _values(_days(decay.seconds))},
        "checkpoints": dataclasses.asdict(plan.checkpoints) | {"uploads": plan.checkpoint_uploads},
        "shards": dataclasses.asdict(plan.shards),
        "loader_workers_a_process": plan.loader_workers,
        "data": dataclasses.asdict(plan.data),
        "gpu_hours": _values(plan.gpu_hours),
        "cost": None
        if plan.cost is None
        else {
            "dollars": _values(plan.cost.dollars),
            "dollars_a_gpu_hour": plan.cost.price,
            "source": plan.cost.source,
        },
        "changes": list(plan.changes),
        "warnings": list(plan.warnings),
    }


def _phase_values(phase: PhasePlan) -> dict[str, Any]:
    memory = None
    if phase.memory is not None:
        memory = {name: value for name, value in dataclasses.asdict(phase.memory).items() if name != "rows"}
        memory["total"] = phase.memory.total
    return {
        "tokens": phase.tokens,
        "max_seq_len": phase.max_seq_len,
        "flops_per_token": phase.flops_a_token,
        "days": _values(_days(phase.seconds)),
        "tokens_per_second_per_gpu": _values(phase.tokens_a_second_and_device),
        "mfu": _values(phase.mfu),
        "mfu_assumed": _values(phase.utilization.share),
        "mfu_why": phase.utilization.why,
        "microbatch_rows": phase.microbatch,
        "largest_microbatch_rows": phase.largest_microbatch,
        "memory": memory,
    }


def _values(range_: Range) -> dict[str, float]:
    return dataclasses.asdict(range_)


def _days(seconds: Range) -> Range:
    return seconds.through(lambda value: value / _DAY)


def as_text(plan: Plan) -> str:
    return "\n".join(_lines(plan))


def _lines(plan: Plan) -> Iterator[str]:
    cluster = plan.cluster
    unit = "core" if cluster.device.is_cpu else "GPU"
    nodes = f"{cluster.nodes:,} node{'s' if cluster.nodes > 1 else ''}"
    what = f"{cluster.devices:,} cores" if cluster.device.is_cpu else f"{cluster.devices:,} x {cluster.device.name}"
    yield f"{plan.recipe} on {what} ({nodes}): {shown_time(plan.seconds)} for one decay variant"
    yield from (f"warning: {text}" for text in plan.warnings)
    if plan.changes:
        yield f"planned with --set {' --set '.join(plan.changes)}"
    yield ""
    yield from _phase_table(plan, unit)
    yield ""
    variants = f"{plan.further_variants}, each {shown_time(plan.phases[-1].seconds)} more"
    further = [["further decay variants", variants]] if plan.further_variants else []
    hours = [f"{unit}-hours", shown(plan.gpu_hours)]
    yield from table([*further, hours, ["cost", _cost(plan, unit)], ["not in it", _NOT_COUNTED]], right=False)
    yield ""
    for why in dict.fromkeys(phase.utilization.why for phase in plan.phases):
        of = [phase for phase in plan.phases if phase.utilization.why == why]
        names, share = ", ".join(phase.name for phase in of), of[0].utilization.share
        yield f"utilisation of {names}: {shown(share, percent)}% of {_peak(plan)}: {why}"
    yield ""
    if not cluster.device.is_cpu:
        yield from _memory_table(plan)
        yield ""
    yield from _data_lines(plan)


def _phase_table(plan: Plan, unit: str) -> Iterator[str]:
    header = ("phase", "tokens", "length", "GFLOP a token", f"tokens/s a {unit}", "utilisation, %", "time")
    rows = [
        (
            phase.name,
            count(phase.tokens),
            f"{phase.max_seq_len:,}",
            f"{phase.flops_a_token / 1e9:.3g}",
            shown(phase.tokens_a_second_and_device),
            shown(phase.mfu, percent),
            shown_time(phase.seconds),
        )
        for phase in plan.phases
    ]
    rows.append((
        "all", count(sum(p.tokens for p in plan.phases)), "", "", shown(plan.tokens_a_second_and_device),
        shown(plan.mfu, percent), shown_time(plan.seconds),
    ))  # fmt: skip
    yield from table([header, *rows])


def _memory_table(plan: Plan) -> Iterator[str]:
    parts = [field.name for field in dataclasses.fields(Memory) if field.name != "rows"]
    memories = [(phase, phase.memory) for phase in plan.phases if phase.memory is not None]
    capacity = (plan.cluster.device.memory_bytes or 0) / 1e9
    yield f"memory of a GPU, GB of {capacity:.0f}, {plan.way} (step takes the place of activations and loss)"
    rows = [[part.replace("_", " "), *(f"{getattr(m, part) / 1e9:.2f}" for _, m in memories)] for part in parts]
    rows.append(["at most", *(f"{memory.total / 1e9:.2f}" for _, memory in memories)])
    rows.append(["rows a microbatch", *(f"{phase.microbatch:,}" for phase, _ in memories)])
    rows.append(["the most that fit", *(f"{phase.largest_microbatch:,}" for phase, _ in memories)])
    yield from table([["part", *(phase.name for phase, _ in memories)], *rows])


def _data_lines(plan: Plan) -> Iterator[str]:
    saved, shards, data = plan.checkpoints, plan.shards, plan.data
    a_second = size(shards.read_bytes_a_node / plan.seconds.expected)
    curation = "none, all is tokenized" if data.curation_core_hours is None else shown(data.curation_core_hours)
    yield from table(
        [
            ["loader processes", f"{plan.loader_workers} a training process"],
            ["a checkpoint in S3", f"{size(saved.resume)}, {size(saved.resume_kept)} of them while a phase runs"],
            ["checkpoints that stay", f"{size(saved.artifacts)} of phases, {size(saved.permanent)} permanent ones"],
            ["checkpoints uploaded", f"{size(plan.checkpoint_uploads)} in all"],
            ["shards in S3", f"{size(shards.bytes)} for {count(shards.tokens)} tokens, {shards.objects:,} objects"],
            ["requests to write them", f"{shards.puts:,}"],
            ["read while training", f"{size(shards.read_bytes_a_node)} a node, {a_second} a second"],
            ["read by all nodes", f"{size(shards.read_bytes)}, {shards.gets:,} requests"],
            ["curation, core-hours", f"{curation} for {size(data.text_bytes)} of text"],
            ["tokenization, core-hours", shown(data.tokenization_core_hours)],
        ],
        right=False,
    )


def _cost(plan: Plan, unit: str) -> str:
    if plan.cost is None:
        return f"no price known; give one with --price DOLLARS, for an hour of one {unit}"
    return f"${shown(plan.cost.dollars)} at ${plan.cost.price:,.6g} a {unit}-hour: {plan.cost.source}"


def _peak(plan: Plan) -> str:
    peak = plan.cluster.device.peak_flops
    return f"{peak / 1e9:.0f} GFLOP/s a core" if plan.cluster.device.is_cpu else f"{peak / 1e12:.0f} TFLOP/s"


def shown(range_: Range, form: Callable[[float], str] | None = None) -> str:
    """`expected (low to high)`, in a few digits: more would be false."""
    write = form or few_digits
    return f"{write(range_.expected)} ({write(range_.low)} to {write(range_.high)})"


def shown_time(seconds: Range) -> str:
    for unit, length in (("days", _DAY), ("hours", 3600), ("minutes", 60)):
        if seconds.expected >= 1.5 * length:
            return f"{shown(seconds.through(lambda s: s / length))} {unit}"  # noqa: B023 - called at once
    return f"{shown(seconds)} seconds"


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def few_digits(value: float) -> str:
    return f"{float(f'{value:.2g}'):,.10g}" if value < 100 else f"{float(f'{value:.3g}'):,.0f}"


def count(tokens: float) -> str:
    for unit, size_ in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if tokens >= size_:
            return f"{float(f'{tokens / size_:.3g}'):,.10g}{unit}"
    return f"{tokens:g}"


def size(bytes_: float) -> str:
    for unit, length in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if bytes_ >= length:
            return f"{float(f'{bytes_ / length:.3g}'):,.10g} {unit}"
    return f"{bytes_:.0f} B"


def table(rows: Sequence[Sequence[str]], right: bool = True) -> Iterator[str]:
    """Columns as wide as they must be, the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [
            text.rjust(width) if right and column else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
