"""Resource profiles: what each resource class gets, by phase. MMBERT_PROFILE names one, or a YAML file of
one's own; `laptop` is the default.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from components.contract import Component
from mmbert.errors import UserError

PROCESSES = "MMBERT_PROCESSES"
"""Where the profile's file is not: a number of processes, or gpus."""


@functools.cache
def _profile(name: str) -> dict[str, Any]:
    own = name.endswith(".yaml")
    path = Path(name) if own else resources.files(__package__).joinpath(f"{name}.yaml")
    if not path.is_file():
        raise UserError(
            f"MMBERT_PROFILE={name}: there is no such resource profile; give laptop, gpu, or a file of your own that "
            "ends in .yaml"
        )
    try:
        loaded = yaml.safe_load(path.read_text("utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"MMBERT_PROFILE={name}: it is no YAML ({' '.join(str(error).split())})") from error
    _check(name, loaded)
    return dict(loaded)


def _check(name: str, loaded: Any) -> None:
    if not isinstance(loaded, dict) or not isinstance(loaded.get("threads"), dict):
        raise UserError(f"MMBERT_PROFILE={name}: it needs 'threads', a number for each resource class (1 without)")
    for key, gib in (loaded.get("memory") or {}).items():
        if isinstance(gib, bool) or not isinstance(gib, int | float) or gib <= 0:
            raise UserError(f"MMBERT_PROFILE={name}: memory.{key} is {gib!r}; it must be a number of GiB above 0")
    for section in ("threads", "processes"):
        for key, count in (loaded.get(section) or {}).items():
            counted = isinstance(count, int) and count >= 1
            if not counted and not (section == "processes" and count == "gpus"):
                allowed = "a number from 1 on" + (", or gpus" if section == "processes" else "")
                raise UserError(f"MMBERT_PROFILE={name}: {section}.{key} is {count!r}; it must be {allowed}")


def threads(item: Component, arguments: Mapping[str, Any]) -> int:
    """CPU threads for a component; a class may say more by phase (`train.decay`)."""
    return int(_asked("threads", item, arguments)[1] or 1)


def processes(item: Component, arguments: Mapping[str, Any]) -> int:
    """Processes a node for a component; `gpus` in a profile is one a visible GPU."""
    count = os.environ.get(PROCESSES) or wanted_processes(item, arguments)
    return _gpus() if count == "gpus" else int(count)


def wanted_processes(item: Component, arguments: Mapping[str, Any]) -> str:
    """What the profile says of a component's processes, for PROCESSES."""
    return str(_asked("processes", item, arguments)[1] or 1)


def wants_gpus(item: Component, arguments: Mapping[str, Any]) -> bool:
    """Whether the profile gives a component GPUs: one a process, or as its `gpus` says."""
    return bool(_asked("processes", item, arguments)[1] == "gpus" or _asked("gpus", item, arguments)[1])


def memory(item: Component, arguments: Mapping[str, Any]) -> float | None:
    """The most memory that a component's container may have, in GiB; None where the profile sets no limit."""
    limit = _asked("memory", item, arguments)[1]
    return None if limit is None else float(limit)


def memory_key(item: Component, arguments: Mapping[str, Any]) -> str:
    """Where `memory` comes from, for people: the key and the profile."""
    return f"memory.{_asked('memory', item, arguments)[0]} of the profile {name()}"


def name() -> str:
    """A profile's name, or a file of one's own."""
    return os.environ.get("MMBERT_PROFILE", "laptop")


def _asked(section: str, item: Component, arguments: Mapping[str, Any]) -> tuple[str, Any]:
    """A section's key for a component's class, by phase where there is one, and its value; None where it has none."""
    classes = _profile(name()).get(section) or {}
    by_phase = f"{item.resources}.{arguments.get('phase', '')}"
    key = by_phase if by_phase in classes else item.resources
    return key, classes.get(key)


def _gpus() -> int:
    import torch

    count = torch.cuda.device_count()
    if count == 0:
        raise UserError(
            "the resource profile wants a process a GPU, and no GPU is visible here; set MMBERT_PROFILE=laptop"
        )
    return count


def own_threads() -> int:
    """How many cores this process was given: its launcher's share, or the whole machine."""
    return int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))


def environment(item: Component, arguments: Mapping[str, Any]) -> dict[str, str]:
    """Environment variables that give a process its share of the machine."""
    count = str(threads(item, arguments))
    pools = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
    # Threads that wait by spinning make a shared machine crawl: 15,000 tokens/s became 700 beside other work.
    return {**dict.fromkeys(pools, count), "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
