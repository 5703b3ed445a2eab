"""Resource profiles: what each resource class gets, by phase. MMBERT_PROFILE names one, or a YAML file of
one's own, or is a profile itself (JSON), where no file is; `laptop` is the default.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, cast, get_args

import yaml

from components.contract import Component, ResourceClass
from components.profiles.cluster import Cluster, Share, parsed
from mmbert.errors import UserError

PROCESSES = "MMBERT_PROCESSES"
"""Where the profile's file is not: a number of processes, or gpus."""


_ITSELF = "{"
_ON_RAY = "curate"
_BY_CLASS = ("threads", "processes", "gpus", "memory")
_SECTIONS = (*_BY_CLASS, "kubernetes")
_PHASES = ("pretrain", "extend", "decay")


@functools.cache
def _profile(name: str) -> dict[str, Any]:
    if name.startswith(_ITSELF):
        return _checked(name, name)
    own = name.endswith(".yaml")
    path = Path(name) if own else resources.files(__package__).joinpath(f"{name}.yaml")
    if not path.is_file():
        raise _wrong(
            name, "there is no such resource profile; give laptop, gpu, dev, prod, or a file of your own that ends in "
            ".yaml"
        )  # fmt: skip
    return _checked(name, path.read_text("utf-8"))


def _checked(name: str, text: str) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise _wrong(name, f"it is no YAML ({' '.join(str(error).split())})") from error
    if not isinstance(loaded, dict) or not isinstance(loaded.get("threads"), dict):
        raise _wrong(name, "it needs 'threads', a number for each resource class (1 without)")
    for key in loaded.keys() - set(_SECTIONS):
        raise _wrong(name, f"{key}: there is no such section; it has {', '.join(_SECTIONS)}")
    _check_classes(name, loaded)
    if "kubernetes" in loaded:
        loaded["kubernetes"] = parsed(loaded["kubernetes"], functools.partial(_wrong, name))
    return dict(loaded)


def _check_classes(name: str, loaded: Mapping[str, Any]) -> None:
    for section in _BY_CLASS:
        for key in loaded.get(section) or {}:
            _check_class(name, section, str(key))
    for key, gib in (loaded.get("memory") or {}).items():
        if isinstance(gib, bool) or not isinstance(gib, int | float) or gib <= 0:
            raise _wrong(name, f"memory.{key} is {gib!r}; it must be a number of GiB above 0")
    for section in ("threads", "processes"):
        for key, count in (loaded.get(section) or {}).items():
            counted = isinstance(count, int) and count >= 1
            if not counted and not (section == "processes" and count == "gpus"):
                allowed = "a number from 1 on" + (", or gpus" if section == "processes" else "")
                raise _wrong(name, f"{section}.{key} is {count!r}; it must be {allowed}")


def _check_class(name: str, section: str, key: str) -> None:
    classes = get_args(ResourceClass)
    resources, _, phase = key.partition(".")
    if resources not in classes or (phase and phase not in _PHASES):
        allowed = f"{', '.join(classes)}, or one of them by phase (train.decay)"
        raise _wrong(name, f"{section}.{key}: there is no such resource class; there are {allowed}")


def _wrong(name: str, what: str) -> UserError:
    return UserError(f"MMBERT_PROFILE={'{...}' if name.startswith(_ITSELF) else name}: {what}")


def shown_name() -> str:
    """What a profile is called in messages."""
    return "of the pipeline" if name().startswith(_ITSELF) else name()


def cluster() -> Cluster:
    """The profile's section `kubernetes`. Raises UserError where it has none."""
    found = _profile(name()).get("kubernetes")
    if found is None:
        raise _wrong(name(), "it has no section 'kubernetes'; give dev, prod, or a file of your own that has one")
    return cast(Cluster, found)


def has_cluster() -> bool:
    """Whether the profile speaks of a cluster."""
    return _profile(name()).get("kubernetes") is not None


def share(item: Component, arguments: Mapping[str, Any]) -> Share:
    """What a component gets on the cluster; where the profile has no section `kubernetes`, nothing in particular."""
    found = _profile(name()).get("kubernetes")
    return found.share(item.resources, str(arguments.get("phase", ""))) if found else Share()


def nodes(item: Component, arguments: Mapping[str, Any]) -> int:
    """How many nodes of a cluster do a component's work together."""
    return share(item, arguments).nodes if item.distributed else 1


def ray_workers(item: Component, arguments: Mapping[str, Any]) -> int:
    """Workers of the Ray cluster that a component's work is done on; 0 where it is done without."""
    return share(item, arguments).ray_workers if item.name == _ON_RAY else 0


def as_text() -> str:
    """The profile itself, for MMBERT_PROFILE where its file is not."""
    given = name()
    if given.startswith(_ITSELF):
        return given
    _profile(given)
    path = Path(given) if given.endswith(".yaml") else resources.files(__package__).joinpath(f"{given}.yaml")
    return json.dumps(yaml.safe_load(path.read_text("utf-8")))


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
    return f"memory.{_asked('memory', item, arguments)[0]} of the profile {shown_name()}"


def name() -> str:
    """A profile's name, a file of one's own, or a profile itself."""
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
