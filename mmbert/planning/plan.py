"""The plan of a recipe on given hardware: each phase's time, memory and speed, and what the whole run takes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mmbert.errors import UserError
from mmbert.model.config import EncoderConfig, config_from_recipe
from mmbert.planning import cost, storage
from mmbert.planning.gpus import GPUS
from mmbert.planning.memory import Memory, largest_rows, memory_of
from mmbert.planning.ranges import Range
from mmbert.planning.throughput import Cluster, Speed, flops_a_token, rate_of
from mmbert.planning.utilization import Measured, Utilization, calibrated, given, published
from mmbert.recipe import Recipe
from mmbert.recipe.schema import PhaseTraining

PHASES = ("pretrain", "extend", "decay")
# What a step costs beside its work is assumed for the most part, and so bounded widely.
_OVERHEAD = {"low": 1.5, "expected": 1.0, "high": 1 / 1.5}


@dataclass(frozen=True)
class PhasePlan:
    """One phase, of the decay phase one variant. `mfu` is over all devices, idle ones included.

    `microbatch`: rows; `largest_microbatch`: what memory would hold; None where memory is not planned (a CPU).
    """

    name: str
    tokens: int
    max_seq_len: int
    flops_a_token: float
    microbatch: int
    largest_microbatch: int | None
    memory: Memory | None
    utilization: Utilization
    seconds: Range
    tokens_a_second_and_device: Range
    mfu: Range


@dataclass(frozen=True)
class Plan:
    """`seconds`, `tokens_a_second_and_device` and `mfu` are of the phases with one decay variant.

    `processes`: how many of the cluster's work; `lanes`: training.lanes, as it must be for them. `way`: how activations
    are counted (`mmbert.planning.memory`). `changes`: overrides that the plan assumes; `warnings`: what the reader
    should know first.
    """

    recipe: str
    cluster: Cluster
    processes: int
    lanes: int
    way: str
    phases: tuple[PhasePlan, ...]
    seconds: Range
    tokens_a_second_and_device: Range
    mfu: Range
    further_variants: int
    loader_workers: int
    checkpoints: storage.Checkpoints
    checkpoint_uploads: float
    shards: storage.Shards
    data: storage.DataWork
    gpu_hours: Range
    cost: cost.Cost | None
    changes: tuple[str, ...]
    warnings: tuple[str, ...]


def plan_run(
    recipe: Recipe,
    cluster: Cluster,
    *,
    mfu: float | None = None,
    price: float | None = None,
    runs: Sequence[Measured] = (),
) -> Plan:
    """`mfu`: the utilisation to plan with; else that of `runs` that are alike, else of published ones.

    Raises UserError where no GPU of the cluster holds the model with a single row of the longest phase.
    """
    fitting = _fitting(recipe, cluster)
    uses = {name: _utilization(recipe, name, cluster, mfu, runs) for name in PHASES}
    layouts = [_layout(recipe, cluster, processes, fitting, uses) for processes in _usable(recipe, cluster)]
    # Where summing over all of them takes longer than it saves, fewer are faster.
    on = min(layouts, key=lambda one: (sum(phase.seconds("expected") for phase in one), -one[0].used.processes))
    phases = tuple(one.plan(_way(recipe)) for one in on)
    processes, lanes = on[0].used.processes, on[0].lanes
    seconds = Range(*(sum(getattr(phase.seconds, end) for phase in phases) for end in ("low", "expected", "high")))
    tokens = sum(phase.tokens for phase in phases)
    flops = sum(phase.tokens * phase.flops_a_token for phase in phases)
    gpu_hours = seconds.through(lambda s: s / 3600 * cluster.devices)
    saved = storage.checkpoints(recipe, on[0].config)
    fastest = max(phase.tokens_a_second_and_device.high for phase in phases) * cluster.devices / processes
    workers = storage.loader_workers(fastest)
    return Plan(
        recipe=recipe.name,
        cluster=cluster,
        processes=processes,
        lanes=lanes,
        way=_way(recipe),
        phases=phases,
        seconds=seconds,
        tokens_a_second_and_device=seconds.through(lambda s: tokens / s / cluster.devices),
        mfu=seconds.through(lambda s: flops / s / cluster.devices / cluster.device.peak_flops),
        further_variants=len(recipe.phases.decay.variants) - 1,
        loader_workers=workers,
        checkpoints=saved,
        checkpoint_uploads=saved.resume * sum(p.tokens // recipe.training.checkpoint_tokens for p in phases),
        shards=storage.shards(recipe, on[0].used),
        data=storage.data_work(recipe),
        gpu_hours=gpu_hours,
        cost=cost.cost_of(gpu_hours, cluster, price),
        changes=tuple(_changes(recipe, on)),
        warnings=tuple(_warnings(recipe, cluster, processes, workers)),
    )


def planned_speed(
    config: EncoderConfig, settings: PhaseTraining, lanes: int, cluster: Cluster, runs: Sequence[Measured] = ()
) -> Range:
    """Tokens a second that a phase, as it stands, makes on all of a cluster's processes."""
    use = calibrated(runs, cluster.device, config, settings) or published(cluster.device)
    phase = _OnCluster("", config, settings, lanes, cluster, cluster, None, use).plan("")
    return phase.tokens_a_second_and_device.through(lambda speed: speed * cluster.devices)


@dataclass(frozen=True)
class _OnCluster:
    """A phase on the `used` processes of the `whole` cluster. `fits`: rows of a microbatch that memory holds."""

    name: str
    config: EncoderConfig
    settings: PhaseTraining
    lanes: int
    whole: Cluster
    used: Cluster
    fits: int | None
    use: Utilization

    def seconds(self, level: str) -> float:
        """At the `low`, `expected` or `high` of the utilisation."""
        seen_in = self.used.of(min(self.use.processes, self.used.processes))
        overhead = _OVERHEAD[level]
        rate = rate_of(getattr(self.use.share, level), self.config, self.settings, seen_in, overhead)
        speed = Speed(self.config, self.settings, self.used, self.microbatch, rate, overhead)
        return speed.phase_seconds(self.lanes)

    @property
    def microbatch(self) -> int:
        """The recipe's rows, or as many as memory holds; evenly spread, so that none only fills up."""
        batch = self.settings.batch
        most = min(batch.microbatch_size, self.fits or batch.microbatch_size)
        own = math.ceil(batch.global_batch_size / self.used.processes)
        return math.ceil(own / math.ceil(own / most))

    def plan(self, way: str) -> PhasePlan:
        settings, whole = self.settings, self.whole
        flops = flops_a_token(self.config, settings.max_seq_len, settings.mask_probability)
        seconds = Range(*(self.seconds(level) for level in ("high", "expected", "low")))
        needs = settings.max_seq_len, settings.mask_probability, self.microbatch
        memory = None if self.fits is None else memory_of(self.config, *needs, way, self.used.processes)
        return PhasePlan(
            name=self.name,
            tokens=settings.tokens,
            max_seq_len=settings.max_seq_len,
            flops_a_token=flops,
            microbatch=self.microbatch,
            largest_microbatch=self.fits,
            memory=memory,
            utilization=self.use,
            seconds=seconds,
            tokens_a_second_and_device=seconds.through(lambda s: settings.tokens / s / whole.devices),
            mfu=seconds.through(lambda s: settings.tokens * flops / s / whole.devices / whole.device.peak_flops),
        )


def _layout(
    recipe: Recipe, cluster: Cluster, processes: int, fitting: dict[str, int | None], uses: dict[str, Utilization]
) -> list[_OnCluster]:
    """The three phases on so many processes, with lanes and a batch warm-up that these can share evenly."""
    lanes = _lanes(recipe, processes)
    used = cluster.of(processes)
    return [
        _OnCluster(
            name, _config(recipe, name), _settings(recipe, name, lanes), lanes, cluster, used, fitting[name], uses[name]
        )
        for name in PHASES
    ]


def _settings(recipe: Recipe, name: str, lanes: int) -> PhaseTraining:
    settings: PhaseTraining = getattr(recipe.phases, name)
    batch = settings.batch
    if batch.warmup_from is None or batch.warmup_from % lanes == 0:
        return settings
    start = math.ceil(batch.warmup_from / lanes) * lanes
    return settings.model_copy(update={"batch": batch.model_copy(update={"warmup_from": start})})


def _changes(recipe: Recipe, on: Sequence[_OnCluster]) -> Iterator[str]:
    """Overrides with which the recipe becomes what was planned."""
    if on[0].lanes != recipe.training.lanes:
        yield f"training.lanes={on[0].lanes}"
    for phase in on:
        old, key = getattr(recipe.phases, phase.name).batch, f"phases.{phase.name}.batch"
        if phase.settings.batch.warmup_from != old.warmup_from:
            yield f"{key}.warmup_from={phase.settings.batch.warmup_from}"
        if phase.microbatch != old.microbatch_size:
            yield f"{key}.microbatch_size={phase.microbatch}"


def rescaled(recipe: Recipe, tokens: int) -> Recipe:
    """The recipe with so many tokens in its three phases, each with its share; warm-ups and decays shrink alike."""
    phases = {}
    factor = tokens / sum(getattr(recipe.phases, name).tokens for name in PHASES)
    for name in PHASES:
        phase = getattr(recipe.phases, name)
        batch = phase.batch.model_copy(update={"warmup_tokens": round(phase.batch.warmup_tokens * factor)})
        published = None if phase.published_tokens is None else round(phase.published_tokens * factor)
        phases[name] = phase.model_copy(
            update={"tokens": round(phase.tokens * factor), "published_tokens": published, "batch": batch}
        )
    return recipe.model_copy(update={"phases": recipe.phases.model_copy(update=phases)})


def _config(recipe: Recipe, phase: str) -> EncoderConfig:
    return config_from_recipe(recipe.model, getattr(recipe.phases, phase).rope_theta)


def _rows_in_common(recipe: Recipe) -> int:
    return math.gcd(*(getattr(recipe.phases, name).batch.global_batch_size for name in PHASES))


def _usable(recipe: Recipe, cluster: Cluster) -> list[int]:
    """Numbers of processes, up to the cluster's, that share every global batch evenly."""
    common = _rows_in_common(recipe)
    return [n for n in range(1, min(cluster.processes, common) + 1) if common % n == 0]


def _lanes(recipe: Recipe, processes: int) -> int:
    """The recipe's lanes, or the next number that the processes and every global batch allow."""
    common = _rows_in_common(recipe)
    allowed = [n for n in range(processes, common + 1, processes) if common % n == 0]
    lanes = recipe.training.lanes
    if lanes % processes == 0 or not allowed:
        return lanes
    return next((n for n in allowed if n >= lanes), allowed[-1])


def _way(recipe: Recipe) -> str:
    whole = recipe.training.compile is False or recipe.training.attention == "sdpa"
    return "eager" if whole else "compiled"


def _fitting(recipe: Recipe, cluster: Cluster) -> dict[str, int | None]:
    """Rows of a microbatch that fit, by phase; None where memory is not planned. Raises UserError where none does."""
    capacity = cluster.device.memory_bytes
    if capacity is None:
        return dict.fromkeys(PHASES)
    found: dict[str, int | None] = {}
    needed: dict[str, float] = {}
    way = _way(recipe)
    for name in PHASES:
        settings: PhaseTraining = getattr(recipe.phases, name)
        needs = _config(recipe, name), settings.max_seq_len, settings.mask_probability
        found[name] = largest_rows(*needs, way, cluster.processes, capacity)
        needed[name] = memory_of(*needs, 1, way, cluster.processes).total
    if all(found.values()):
        return found
    worst = max(needed, key=needed.__getitem__)
    would = ", ".join(
        f"{gpu.name} ({gpu.memory_bytes / 1e9:.0f} GB)"
        for gpu in GPUS
        if gpu.memory_bytes is not None and gpu.memory_bytes >= needed[worst]
    )
    without_rows = memory_of(_config(recipe, worst), 0, 0.0, 0, way, cluster.processes).total
    lower = "the model's size" if without_rows > capacity else f"phases.{worst}.max_seq_len or the model's size"
    raise UserError(
        f"{recipe.name} does not fit: one row of phases.{worst} ({getattr(recipe.phases, worst).max_seq_len:,} tokens) "
        f"needs {needed[worst] / 1e9:,.0f} GB, and a GPU of kind {cluster.device.name} has {capacity / 1e9:.0f} GB. "
        "Each holds the whole model, so more of them do not help. "
        + (f"It fits on {would}; or lower {lower}" if would else f"No GPU that is known here holds it; lower {lower}")
    )


def _utilization(
    recipe: Recipe, name: str, cluster: Cluster, mfu: float | None, runs: Sequence[Measured]
) -> Utilization:
    if mfu is not None:
        return given(mfu)
    seen = calibrated(runs, cluster.device, _config(recipe, name), getattr(recipe.phases, name))
    return seen or published(cluster.device)


def _warnings(recipe: Recipe, cluster: Cluster, processes: int, workers: int) -> list[str]:
    found = []
    if processes < cluster.processes:
        unit = "nodes" if cluster.device.is_cpu else "GPUs"
        found.append(
            f"{processes:,} of {cluster.processes:,} {unit} work, the others are idle (and paid): more would not be "
            f"faster, or do not share the global batches ({_rows_in_common(recipe):,} rows in common) evenly; "
            "phases.*.batch.global_batch_size says how many rows there are"
        )
    if not cluster.device.is_cpu and recipe.training.precision == "fp32":
        found.append("training.precision is fp32, and the plan is for bf16: on a GPU fp32 is many times slower")
    if workers > max(1, recipe.training.workers):
        found.append(f"training.workers is {recipe.training.workers}, and {workers} may be needed")
    return found
