"""What known GPUs, and a CPU's core, can do at most, as their makers state it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mmbert.errors import UserError


@dataclass(frozen=True)
class Device:
    """What computes. `name` is what `--gpu` takes; `words` all stand in the device's own name.

    peak_flops: operations a second, dense bf16; of the CPU, fp32 of one core. memory_bytes: of a GPU, 10^9 bytes a
    gigabyte of the data sheet; None for a CPU. bandwidth: bytes a second of that memory.
    all_reduce: bytes a second and GPU that a sum over all GPUs moves, within a node and between nodes.
    """

    name: str
    words: tuple[str, ...]
    peak_flops: float
    memory_bytes: float | None
    bandwidth: float
    all_reduce: tuple[float, float]

    @property
    def is_cpu(self) -> bool:
        return self.name == CPU


CPU = "cpu"
# Assumed, not measured: half of what the links carry (NVLink, InfiniBand or EFA of 400 Gb/s a GPU; PCIe and Ethernet).
_NVLINK_H, _NVLINK_A, _PCIE = (200e9, 100e9), (120e9, 25e9), (12e9, 6e9)


def _gpu(words: str, teraflops: float, gigabytes: float, bandwidth: float, links: tuple[float, float]) -> Device:
    """`bandwidth` in GB/s."""
    name = words.lower().replace(" ", "-")
    return Device(name, tuple(words.split()), 1e12 * teraflops, 1e9 * gigabytes, 1e9 * bandwidth, links)


# The first entry whose words all stand in a name is the one. NVIDIA's data sheets print operations with sparsity, twice
# this figure: H100 SXM 1,979, PCIe 1,513, NVL 1,671; H200 SXM 1,979, NVL 1,671; GH200 1,979; HGX B200 4,500 a GPU; A100
# 624; L40S 733; L40 362; L4 242; A10 250. NVIDIA's architecture papers for bf16 summed in fp32, with sparsity: RTX 4090
# 330, RTX 3090 142. AMD's for MI300X: 1,307 without sparsity.
GPUS = (
    _gpu("H100 PCIe", 756, 80, 2000, _PCIE),
    _gpu("H100 NVL", 835, 94, 3900, _PCIE),
    _gpu("H100", 989, 80, 3350, _NVLINK_H),
    _gpu("H200 NVL", 835, 141, 4800, _PCIE),
    _gpu("H200", 989, 141, 4800, _NVLINK_H),
    _gpu("GH200", 989, 96, 4000, _NVLINK_H),
    _gpu("B200", 2250, 180, 7700, _NVLINK_H),
    _gpu("A100 40GB", 312, 40, 1555, _NVLINK_A),
    _gpu("A100", 312, 80, 1935, _NVLINK_A),
    _gpu("L40S", 362, 48, 864, _PCIE),
    _gpu("L40", 181, 48, 864, _PCIE),
    _gpu("L4", 121, 24, 300, _PCIE),
    _gpu("A10", 125, 24, 600, _PCIE),
    _gpu("RTX 4090", 165, 24, 1008, _PCIE),
    _gpu("RTX 3090", 71, 24, 936, _PCIE),
    _gpu("MI300X", 1307, 192, 5300, _NVLINK_A),
)
# 82 to 90 GFLOP/s a core in fp32 were measured in matrix products with AVX2 (docs/performance-cpu.md).
_CORE = Device(CPU, (), 86e9, None, 10e9, (1e9, 1e9))


_OTHERS = {"MIG", "Laptop", "Ti", "SUPER", "D"}
_SLICE = re.compile(r"\d+[ABCQ]")


def find_device(device_name: str) -> Device | None:
    """By the name that torch.cuda.get_device_name gives, or `cpu`.

    None where it is not known: other GPUs, a slice of one (MIG, vGPU), and what has a known one's name and more to it.
    """
    if device_name == CPU:
        return _CORE
    words = re.split(r"[ -]", device_name)
    if _OTHERS & set(words) or any(_SLICE.fullmatch(word) for word in words):
        return None
    return next((gpu for gpu in GPUS if set(gpu.words) <= set(words)), None)


def get_device(name: str) -> Device:
    """By `--gpu`'s name, in any case, or the device's own. Raises UserError, with those known, for any other."""
    found = next((device for device in (*GPUS, _CORE) if device.name == name.lower()), None) or find_device(name)
    if found is None:
        known = ", ".join(sorted(gpu.name for gpu in GPUS))
        raise UserError(f"--gpu {name}: not known, so nothing is said of it; known are {known}, and {CPU} (its cores)")
    return found


def peak_bf16_flops(device_name: str) -> float | None:
    """Operations a second of a GPU, dense bf16, by the name that torch.cuda.get_device_name gives; None where
    `find_device` finds none."""
    found = find_device(device_name)
    return None if found is None or found.is_cpu else found.peak_flops
