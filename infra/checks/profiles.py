"""Resource profiles against an overlay: what a profile names exists, and what it asks for fits nodes and quotas."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from infra.checks.check import Check, Object, check, namespace_of, of_kind

_GPU = "nvidia.com/gpu"
_UNITS = {"": 1.0, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
_GI = 2.0**30
_LEAST_USE = 0.75
"""How much of a node the pods of one class must be able to take of what they take most of."""


@dataclass(frozen=True)
class Pool:
    """Nodes of infra/terraform, by their label mmbert.dev/pool, at the most that there are."""

    nodes: int
    gives: Mapping[str, float]
    """What pods can have of one, memory and disks in bytes: less than the machine has, by what kubelet, kernel and
    daemons take."""


_CPU = {"cpu": 47, "memory": 180 * _GI, "ephemeral-storage": 850 * _GI}
POOLS = {
    "cpu": Pool(8, _CPU),
    "cpu-spot": Pool(32, _CPU),
    "h100": Pool(4, {"cpu": 190, "memory": 1950 * _GI, "ephemeral-storage": 25000 * _GI, _GPU: 8}),
}


def profile_check(path: Path, objects: list[Object]) -> Check:
    if not path.is_file():
        return check("profile", path.name, [f"{path} is missing"])
    profile = yaml.safe_load(path.read_text("utf-8")) or {}
    faults = [*_faults(profile.get("kubernetes") or {}, objects), *_sizes(profile, objects)]
    return check("profile", path.name, faults)


def quota_check(values: Path, objects: list[Object]) -> Check:
    """Airflow's tasks at once against how many objects a namespace takes: what waits for Kueue is there, suspended."""
    tasks = int(yaml.safe_load(values.read_text("utf-8"))["config"]["core"]["parallelism"])
    return check("profile", "tasks at once and quotas of objects", _too_few_objects(tasks, objects))


def _too_few_objects(tasks: int, objects: list[Object]) -> Iterator[str]:
    for item in of_kind(objects, "ResourceQuota"):
        if namespace_of(item) == "mmbert":
            for name, count in item["spec"]["hard"].items():
                if re.fullmatch(r"count/(jobs|trainjobs|rayjobs)\..+", name) and int(count) < tasks:
                    yield f"ResourceQuota: {name} is {count}; Airflow has {tasks} tasks at once (core.parallelism)"


def _faults(section: Object, objects: list[Object]) -> Iterator[str]:
    namespace = section.get("namespace", "mmbert")
    names = {
        kind: {item["metadata"]["name"] for item in of_kind(objects, kind) if namespace_of(item) in ("", namespace)}
        for kind in ("Namespace", "ServiceAccount", "ClusterTrainingRuntime", "LocalQueue", "PriorityClass")
    }

    def missing(kind: str, name: str, key: str) -> Iterator[str]:
        if name and name not in names[kind]:
            there = ", ".join(sorted(names[kind])) or "none"
            yield f"kubernetes.{key} is {name}; infra/kubernetes has no such {kind} ({there})"

    yield from missing("Namespace", namespace, "namespace")
    yield from missing("ServiceAccount", section.get("service_account", ""), "service_account")
    if section.get("training") == "trainer":
        yield from missing("ClusterTrainingRuntime", section.get("training_runtime", ""), "training_runtime")
    for name, settings in (section.get("classes") or {}).items():
        yield from missing("LocalQueue", settings.get("queue", ""), f"classes.{name}.queue")
        yield from missing("PriorityClass", settings.get("priority", ""), f"classes.{name}.priority")
        yield from _nodes(name, settings, objects)


def _nodes(name: str, settings: Object, objects: list[Object]) -> Iterator[str]:
    """A node selector must be one of the queue's flavors', or Kueue admits nothing."""
    wanted = settings.get("node_selector") or {}
    by_name = {item["metadata"]["name"]: item["spec"] for item in of_kind(objects, "ClusterQueue")}
    queues = {
        item["metadata"]["name"]: by_name.get(item["spec"]["clusterQueue"], {"resourceGroups": []})
        for item in of_kind(objects, "LocalQueue")
    }
    flavors = {item["metadata"]["name"]: item.get("spec") or {} for item in of_kind(objects, "ResourceFlavor")}
    if not wanted or settings.get("queue") not in queues:
        return
    used = [name for name, _ in _flavors(queues[settings["queue"]])]
    labels = [flavors[flavor].get("nodeLabels") or {} for flavor in used]
    if not any(wanted.items() <= one.items() for one in labels):
        yield f"kubernetes.classes.{name}.node_selector is {wanted}; the flavors of its queue have nodes with {labels}"


def _flavors(queue: Object) -> Iterator[tuple[str, dict[str, float]]]:
    """A ClusterQueue's flavors with their quotas."""
    for group in queue["resourceGroups"]:
        for flavor in group["flavors"]:
            yield flavor["name"], {one["name"]: _amount(one["nominalQuota"]) for one in flavor["resources"]}


def _amount(quantity: Any) -> float:
    number, unit = re.fullmatch(r"(\d+)([MGT]i)?", str(quantity)).groups("")  # type: ignore[union-attr]
    return float(number) * _UNITS[unit]


def _sizes(profile: Object, objects: list[Object]) -> Iterator[str]:
    """Pods of a class fill their nodes, one piece of work fits each flavor, and no quota admits more than fit."""
    classes = (profile.get("kubernetes") or {}).get("classes") or {}
    labels = {
        item["metadata"]["name"]: (item.get("spec") or {}).get("nodeLabels") or {}
        for item in of_kind(objects, "ResourceFlavor")
    }
    pools = {flavor: POOLS.get(found.get("mmbert.dev/pool", "")) for flavor, found in labels.items()}
    queues = {item["metadata"]["name"]: item["spec"] for item in of_kind(objects, "ClusterQueue")}
    for name in classes:
        share = {**classes.get(name.partition(".")[0], {}), **classes[name]}
        size, pods = _pod(profile, name, share), _pods(share)
        for flavor, quotas in _flavors(queues.get(share.get("queue", ""), {"resourceGroups": []})):
            pool = pools.get(flavor)
            if pool is not None:
                yield from (f"class {name}: {text}" for text in _fits(flavor, pool, quotas, size, pods))


def _pod(profile: Object, name: str, share: Object) -> dict[str, float]:
    def asked(section: str, default: Any) -> Any:
        values = profile.get(section) or {}
        return values.get(name, values.get(name.partition(".")[0], default))

    gpus = share.get("gpus", 0)
    processes = asked("processes", 1)
    size = {
        "cpu": asked("threads", 1) * (gpus if processes == "gpus" else processes),
        "memory": asked("memory", 0) * _GI,
        "ephemeral-storage": share.get("scratch", 20) * _GI,
        _GPU: gpus,
    }
    return {key: float(value) for key, value in size.items() if value}


def _pods(share: Object) -> int:
    """Of one piece of work: nodes, or Ray's workers and their head."""
    return int(share["ray"]["workers"] + 1 if "ray" in share else share.get("nodes", 1))


def _fits(flavor: str, pool: Pool, quotas: Mapping[str, float], size: Mapping[str, float], pods: int) -> Iterator[str]:
    on_a_node = int(min(pool.gives.get(key, 0) // amount for key, amount in size.items()))
    if not on_a_node:
        yield f"no pod of it fits a node of {flavor}"
        return
    used = max(on_a_node * amount / pool.gives[key] for key, amount in size.items())
    if used < _LEAST_USE:
        yield f"{on_a_node} of its pods use {used:.0%} of a node of {flavor}, and no more fit"
    admitted = int(min(quotas.get(key, 0) // amount for key, amount in size.items()))
    if admitted < pods:
        yield f"one piece of work has {pods} pods, and the quota of {flavor} admits {admitted}"
    if admitted > pool.nodes * on_a_node:
        yield f"the quota of {flavor} admits {admitted} of its pods, and {pool.nodes * on_a_node} fit its nodes"
