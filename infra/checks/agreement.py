"""What stands in two places and must be the same in both: terraform, kustomize's overlays, the launcher."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from infra.checks.check import Check, Object, check, namespace_of, of_kind


def agreement_checks(folder: Path, objects: list[Object]) -> Iterator[Check]:
    text = {path.name: path.read_text("utf-8") for path in folder.glob("*.tf")}
    yield check("agreement", "nodes' labels and Kueue's flavors", _labels(text.get("nodes.tf", ""), objects))
    yield check("agreement", "pods' roles and service accounts", _accounts(text.get("identity.tf", ""), objects))
    yield check(
        "agreement", "the VPC's addresses and network policies", _addresses(text.get("variables.tf", ""), objects)
    )


def rights_check(launcher: Path, objects: list[Object]) -> Check:
    """The launcher's role against what the launcher says that it needs: `RIGHTS`, a literal."""
    return check("agreement", "the launcher's role and its RIGHTS", _rights(launcher, objects))


def _rights(launcher: Path, objects: list[Object]) -> Iterator[str]:
    if not launcher.is_file():
        yield f"{launcher} is missing"
        return
    needed = _literal(launcher.read_text("utf-8"), "RIGHTS")
    if needed is None:
        yield f"{launcher.name}: RIGHTS is not there"
        return
    given = _given(objects)
    for key in sorted(needed.keys() | given.keys()):
        lacking = set(needed.get(key, ())) - given.get(key, set())
        unneeded = given.get(key, set()) - set(needed.get(key, ()))
        name = "/".join(filter(None, key))
        if lacking:
            yield f"Role mmbert-launcher lacks {', '.join(sorted(lacking))} of {name}"
        if unneeded:
            yield f"Role mmbert-launcher has {', '.join(sorted(unneeded))} of {name}, which the launcher does not need"


def _literal(module: str, name: str) -> dict[tuple[str, str], tuple[str, ...]] | None:
    """What an annotated name of a Python module is set to."""
    for node in ast.parse(module).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name and node.value is not None:
            return dict(ast.literal_eval(node.value))
    return None


def _given(objects: list[Object]) -> dict[tuple[str, str], set[str]]:
    given: dict[tuple[str, str], set[str]] = {}
    for item in of_kind(objects, "Role"):
        if item["metadata"]["name"] == "mmbert-launcher":
            for rule in item["rules"]:
                for key in itertools.product(rule["apiGroups"], rule["resources"]):
                    given.setdefault(key, set()).update(rule["verbs"])
    return given


def _labels(nodes: str, objects: list[Object]) -> Iterator[str]:
    there = set(re.findall(r'"mmbert\.dev/pool" = "([\w-]+)"', nodes))
    there |= set(re.findall(r"(?m)^    ([\w-]+) = \{\n      capacity_type", nodes))
    for item in of_kind(objects, "ResourceFlavor"):
        pool = ((item.get("spec") or {}).get("nodeLabels") or {}).get("mmbert.dev/pool")
        if pool not in there:
            name = item["metadata"]["name"]
            yield f"ResourceFlavor {name}: no node group has mmbert.dev/pool={pool} ({', '.join(sorted(there))})"


def _accounts(identity: str, objects: list[Object]) -> Iterator[str]:
    ours = {namespace_of(item) for item in of_kind(objects, "ServiceAccount")}
    there = {(namespace_of(item), item["metadata"]["name"]) for item in of_kind(objects, "ServiceAccount")}
    pairs = re.findall(r'namespace\s+= "([\w-]+)"\n\s+service_account\s+= "([\w-]+)"', identity)
    if not pairs:
        yield "identity.tf: no role is given to a service account"
    for namespace, account in pairs:
        if namespace in ours and (namespace, account) not in there:
            yield f"identity.tf: there is no ServiceAccount {namespace}/{account}"


def _addresses(variables: str, objects: list[Object]) -> Iterator[str]:
    found = re.search(r'variable "vpc_cidr" \{.*?default\s+= "([\d./]+)"', variables, re.DOTALL)
    cidr = found.group(1) if found else ""
    for item in of_kind(objects, "NetworkPolicy"):
        for rule in item["spec"].get("egress") or []:
            for peer in rule.get("to") or []:
                named = (peer.get("ipBlock") or {}).get("cidr", "")
                if named.startswith("10.") and named != cidr:
                    yield f"NetworkPolicy {item['metadata']['name']} opens {named}; variable vpc_cidr is {cidr}"
