"""Resource profiles against an overlay: queues, priorities, runtime, account and nodes that a profile names exist."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml

from infra.checks.check import Check, Object, check, namespace_of, of_kind


def profile_check(path: Path, objects: list[Object]) -> Check:
    if not path.is_file():
        return check("profile", path.name, [f"{path} is missing"])
    section = (yaml.safe_load(path.read_text("utf-8")) or {}).get("kubernetes") or {}
    return check("profile", path.name, _faults(section, objects))


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
    used = [one["name"] for group in queues[settings["queue"]]["resourceGroups"] for one in group["flavors"]]
    labels = [flavors[flavor].get("nodeLabels") or {} for flavor in used]
    if not any(wanted.items() <= one.items() for one in labels):
        yield f"kubernetes.classes.{name}.node_selector is {wanted}; the flavors of its queue have nodes with {labels}"
