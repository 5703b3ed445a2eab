"""What known GPUs can do at most: dense bf16 matrix products, as their makers state it."""

from __future__ import annotations

import re

# Words of the device's name, and TFLOP/s; the first entry whose words all stand in the name is the one. NVIDIA's data
# sheets print the figure with sparsity, twice this one: H100 SXM 1,979, PCIe 1,513, NVL 1,671; H200 SXM 1,979, NVL
# 1,671; GH200 1,979; HGX B200 4,500 a GPU; A100 624; L40S 733; L4 242. AMD's for MI300X: 1,307 without sparsity.
_PEAK_TFLOPS: tuple[tuple[tuple[str, ...], float], ...] = (
    (("H100", "PCIe"), 756.0),
    (("H100", "NVL"), 835.0),
    (("H100",), 989.0),
    (("H200", "NVL"), 835.0),
    (("H200",), 989.0),
    (("GH200",), 989.0),
    (("B200",), 2250.0),
    (("A100",), 312.0),
    (("L40S",), 362.0),
    (("L4",), 121.0),
    (("MI300X",), 1307.0),
)


def peak_bf16_flops(device_name: str) -> float | None:
    """Operations a second of a GPU, dense bf16, by the name that torch.cuda.get_device_name gives.

    None where it is not known: other GPUs, and a slice of one (MIG).
    """
    words = re.split(r"[ -]", device_name)
    if "MIG" in words:
        return None
    return next((1e12 * peak for needed, peak in _PEAK_TFLOPS if set(needed) <= set(words)), None)
