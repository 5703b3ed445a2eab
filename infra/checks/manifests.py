"""Kustomize's output against the schemas: Kubernetes' own (kubernetes-validate, strict), and our field lists of custom
resources.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml

from infra.checks import custom_resources, tools
from infra.checks.check import Check, Object, check, name_of

KUBERNETES = "1.34"
"""The version whose schemas count; infra/terraform's kubernetes_version."""


def build(overlay: Path) -> tuple[list[Object], Check]:
    """What `kubectl kustomize` makes of an overlay."""
    done = tools.run("kubectl", "kustomize", overlay)
    if done.returncode:
        return [], check("kustomize", overlay.name, [done.stderr.strip()])
    objects = documents(done.stdout)
    return objects, check("kustomize", overlay.name, _repeated(objects))


def documents(text: str) -> list[Object]:
    """The objects of a YAML text, read by the safe loader in C."""
    return [item for item in yaml.load_all(text, yaml.CSafeLoader) if item]


def schema_checks(where: str, objects: Iterable[Object]) -> Iterator[Check]:
    for item in objects:
        yield check("schema", f"{where}: {name_of(item)}", schema_faults(item))


def schema_faults(item: Object) -> list[str]:
    """What a strict API server would refuse in an object."""
    if custom_resources.is_custom(item):
        return custom_resources.faults(item)
    return core_faults(item)


def core_faults(item: Object) -> list[str]:
    """Faults of an object of Kubernetes' own, unknown fields among them."""
    import kubernetes_validate

    try:
        kubernetes_validate.validate(item, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        path = ".".join(str(part) for part in error.path)
        return [f"{path or 'the object'}: {error.message}"]
    except kubernetes_validate.SchemaNotFoundError:
        return [f"{item.get('apiVersion')} {item.get('kind')}: Kubernetes {KUBERNETES} has no such kind"]
    return []


def _repeated(objects: Iterable[Object]) -> list[str]:
    seen: set[str] = set()
    faults = []
    for name in map(name_of, objects):
        if name in seen:
            faults.append(f"{name} stands there twice")
        seen.add(name)
    return faults
