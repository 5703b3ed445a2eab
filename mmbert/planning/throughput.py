"""How long a phase takes: counted work over assumed or measured utilisation, and what every step costs besides."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from mmbert.model.config import EncoderConfig
from mmbert.planning.flops import step_flops
from mmbert.planning.gpus import Device
from mmbert.planning.memory import parameter_count
from mmbert.recipe.schema import PhaseTraining

GPUS_A_NODE = 8
# How many tokens a token sees in a global layer, as a share of max_seq_len. In rows packed as benchmarks/gpu_train.py
# packs them it is 0.69 at 1,024 (documents of 300 tokens, median) and 0.55 at 8,192 (1,000).
ATTENDED_SHARE = 0.6
# StableAdamW as written reads or writes 34 numbers of 4 bytes a weight.
_OPTIMIZER_BYTES = 34 * 4
# Assumed: what the host needs to start the kernels of a layer, forward and backward.
_LAUNCH_SECONDS_A_LAYER = 2e-4


@dataclass(frozen=True)
class Cluster:
    """`devices` are GPUs, or a CPU's cores, in all. A GPU has a process to itself; the cores of a node share one."""

    device: Device
    devices: int
    nodes: int

    @property
    def processes(self) -> int:
        return self.nodes if self.device.is_cpu else self.devices

    @property
    def peak_a_process(self) -> float:
        return self.device.peak_flops * self.devices / self.processes

    def of(self, processes: int) -> Cluster:
        """So many of its processes, on as few of its nodes as hold them."""
        a_node = math.ceil(self.processes / self.nodes)
        return replace(
            self, devices=processes * self.devices // self.processes, nodes=math.ceil(processes / a_node)
        )  # fmt: skip


@functools.lru_cache(maxsize=64)
def flops_a_token(config: EncoderConfig, max_seq_len: int, mask_probability: float) -> float:
    """Model FLOPs of training on a token of a phase's packed rows (`mmbert.planning.flops`)."""
    attended, segments = max(1, round(ATTENDED_SHARE * max_seq_len)), 1000
    tokens = attended * segments
    return step_flops(config, tokens, round(mask_probability * tokens), np.full(segments, attended)).total / tokens


def step_overhead(config: EncoderConfig, cluster: Cluster) -> float:
    """Seconds of a step beside forward and backward: the optimiser, and the sum of gradients over the processes.

    Gradients are fp32 and summed once a step, in a ring: 2 (n - 1) / n of their bytes over the slowest link.
    """
    weights = parameter_count(config)
    processes = cluster.processes
    cores = cluster.devices / processes
    link = cluster.device.all_reduce[cluster.nodes > 1]
    optimizer = _OPTIMIZER_BYTES * weights / (cluster.device.bandwidth * (cores if cluster.device.is_cpu else 1))
    return optimizer + 2 * (processes - 1) / processes * 4 * weights / link


@dataclass(frozen=True)
class Speed:
    """How fast one phase is computed. `rate`: model FLOPs a second and process, within forward and backward.

    `microbatch`: rows that a process computes at once. `overhead`: a factor of what is assumed beside that.
    """

    config: EncoderConfig
    settings: PhaseTraining
    cluster: Cluster
    microbatch: int
    rate: float
    overhead: float = 1.0

    def phase_seconds(self, lanes: int) -> float:
        """Of the whole phase, its batch warm-up in steps of `lanes` rows included.

        On a GPU the last microbatch of a process is filled up.
        """
        processes, microbatch, on_cpu = self.cluster.processes, self.microbatch, self.cluster.device.is_cpu
        row = self.settings.max_seq_len / self.rate
        row *= flops_a_token(self.config, self.settings.max_seq_len, self.settings.mask_probability)
        launch = self.overhead * self.config.num_hidden_layers * _LAUNCH_SECONDS_A_LAYER
        filled = max(launch, microbatch * row)
        beside = self.overhead * step_overhead(self.config, self.cluster)
        seconds = 0.0
        for rows, steps in batches(self.settings, lanes):
            own = math.ceil(rows / processes)
            seconds += steps * (beside + (own * row if on_cpu else math.ceil(own / microbatch) * filled))
        return seconds


def batches(settings: PhaseTraining, lanes: int) -> Iterator[tuple[int, float]]:
    """Rows of a global batch, and how many steps of a phase have so many (`mmbert.training.schedules`)."""
    batch, left = settings.batch, settings.tokens
    if batch.warmup_from is not None:
        left -= batch.warmup_tokens
        sizes = range(batch.warmup_from, batch.global_batch_size, lanes) or (batch.global_batch_size,)
        steps = batch.warmup_tokens / sum(sizes) / settings.max_seq_len
        yield from ((rows, steps) for rows in sizes)
    yield batch.global_batch_size, left / batch.global_batch_size / settings.max_seq_len


def rate_of(
    utilization: float, config: EncoderConfig, settings: PhaseTraining, cluster: Cluster, overhead: float = 1.0
) -> float:
    """What `Speed.rate` must be for whole steps of full batches on `cluster` to have this utilisation.

    `utilization`: model FLOPs over time and peak, as training logs it (`mfu`). `overhead` as of `Speed`.
    """
    tokens = settings.batch.global_batch_size * settings.max_seq_len / cluster.processes
    work = tokens * flops_a_token(config, settings.max_seq_len, settings.mask_probability)
    whole = work / (utilization * cluster.peak_a_process)
    # A step that is overhead for the most part says nothing of its rest.
    return work / max(whole / 2, whole - overhead * step_overhead(config, cluster))
