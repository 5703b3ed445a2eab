"""Our values for Airflow's chart: against those of its keys that we use (infra/helm/chart-values.json); where
the chart is at hand, what it makes of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from infra.checks import manifests, policy, tools
from infra.checks.check import ROOT, Check, Object, check

FOLDER = ROOT / "infra" / "helm"
KEYS = FOLDER / "chart-values.json"
_TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "boolean": bool,
    "integer": int,
    "object": dict,
    "array": list,
    "null": type(None),
}
# The chart's own objects, which its values do not let us change: no Role is made, and quotas are the namespace's.
_POLICIES = ("pods are restricted", "secrets are references", "services are inner", "images are pinned")


def values_files(overlay: str) -> list[Path]:
    return [FOLDER / "airflow-values.yaml", FOLDER / f"airflow-values-{overlay}.yaml"]


def values_checks(overlay: str) -> Iterator[Check]:
    known = json.loads(KEYS.read_text("utf-8"))["keys"]
    for path in values_files(overlay):
        values = yaml.safe_load(path.read_text("utf-8"))
        yield check("helm", path.name, _unknown(values, known, ""))


def _unknown(values: Mapping[str, Any], known: Mapping[str, list[str]], above: str) -> Iterator[str]:
    """Keys that the chart does not have, or that are of another type."""
    for key, value in values.items():
        path = f"{above}{key}"
        if path in known:
            wanted = tuple(_TYPES[name] for name in known[path])
            if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
                yield f"{path} is {value!r}; the chart wants {' or '.join(known[path])}"
        elif isinstance(value, Mapping) and any(name.startswith(f"{path}.") for name in known):
            yield from _unknown(value, known, f"{path}.")
        else:
            yield f"{path}: the chart has no such value (or it is not listed in {KEYS.name})"


def chart_checks(chart: Path, overlay: str) -> Iterator[Check]:
    """What the chart makes of our values: schemas, and those of our policies that its values decide."""
    flags = [part for path in values_files(overlay) for part in ("--values", path)]
    lint = tools.run("helm", "lint", chart, *flags)
    yield check("helm", f"{overlay}: lint", [lint.stdout[-2000:]] if lint.returncode else [])
    done = tools.run("helm", "template", "airflow", chart, "--namespace", "airflow", *flags)
    yield check("helm", f"{overlay}: template", [done.stderr.strip()] if done.returncode else [])
    objects = manifests.documents(done.stdout)
    yield from manifests.schema_checks(f"airflow {overlay}", objects)
    for name in _POLICIES:
        yield check("policy", f"airflow {overlay}: {name}", policy.RULES[name](objects))
    yield check("policy", f"airflow {overlay}: no rights of the chart's", _rights(objects))


def _rights(objects: list[Object]) -> Iterator[str]:
    for item in objects:
        if item["kind"] in ("Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"):
            yield f"{item['kind']} {item['metadata']['name']}: rights are infra/kubernetes' to give (rbac.create)"
