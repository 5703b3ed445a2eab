"""infra/terraform without terraform: syntax (python-hcl2), documented variables, references that resolve, our rules.

No provider's schema is asked: a misspelt argument of a resource passes here, and `terraform validate` would find it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.checks.check import Check, Object, check

_REFERENCE = re.compile(r"(?<![.\w-])(?:(var|local|module)\.(\w+)|data\.(\w+)\.([\w-]+)|(aws_\w+)\.([\w-]+))")
_COMMENT = re.compile(r"(?m)(^|\s)#.*$")
_EVERYWHERE = "0.0.0.0/0"


@dataclass
class Module:
    """The blocks of a folder's files: by kind, then `name` or `type.name`."""

    blocks: dict[str, dict[str, Object]] = field(default_factory=dict)
    references: dict[str, set[str]] = field(default_factory=dict)
    """By file: what it refers to, as in `blocks`: `var.region`, `data.aws_x.y`, `aws_x.y`."""

    def of(self, kind: str) -> dict[str, Object]:
        return self.blocks.get(kind, {})

    def resources(self, kind: str) -> dict[str, Object]:
        return {name: body for name, body in self.of("resource").items() if name.startswith(f"{kind}.")}


def terraform_checks(folder: Path) -> Iterator[Check]:
    module = Module()
    for path in sorted(folder.glob("*.tf")):
        yield check("terraform", f"{path.name} parses", _read(path, module))
    yield check("terraform", "variables and outputs are documented", _documented(module))
    yield check("terraform", "references resolve", _resolved(module))
    yield check("terraform", "variables and locals are used", _used(module))
    for name, rule in RULES.items():
        yield check("terraform", name, rule(module))


def _read(path: Path, module: Module) -> Iterator[str]:
    text = path.read_text("utf-8")
    try:
        parsed = _parsed(text)
    except Exception as error:  # the parser's and its grammar library's own kinds
        yield f"{path.name}: {' '.join(str(error).split())[:300]}"
        return
    for kind, entries in parsed.items():
        for entry in entries if isinstance(entries, list) else [entries]:
            _add(module.blocks.setdefault(kind, {}), kind, entry)
    found = set()
    for match in _REFERENCE.finditer(_COMMENT.sub("", text)):
        kind, name, data_type, data_name, resource_type, resource_name = match.groups()
        if kind:
            found.add(f"{kind}.{name}")
        elif data_type:
            found.add(f"data.{data_type}.{data_name}")
        else:
            found.add(f"{resource_type}.{resource_name}")
    module.references[path.name] = found


@functools.cache
def _parsed(text: str) -> Object:
    import hcl2

    return dict(_plain(hcl2.loads(text)))


def _add(blocks: dict[str, Object], kind: str, entry: Object) -> None:
    if kind in ("resource", "data"):
        for resource_type, named in entry.items():
            blocks.update({f"{resource_type}.{name}": body for name, body in named.items()})
    elif kind == "terraform":
        blocks["terraform"] = entry
    else:
        blocks.update(entry)


def _plain(value: Any) -> Any:
    """hcl2's output without quotes around names and text, and without its own keys."""
    if isinstance(value, dict):
        return {_unquoted(key): _plain(inner) for key, inner in value.items() if not key.startswith("__")}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return _unquoted(value) if isinstance(value, str) else value


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text


def _documented(module: Module) -> Iterator[str]:
    for name, body in module.of("variable").items():
        yield from (f"variable {name} has no {key}" for key in ("description", "type") if not body.get(key))
    for name, body in module.of("output").items():
        if not body.get("description"):
            yield f"output {name} has no description"


def _defined(module: Module) -> set[str]:
    return {
        *(f"var.{name}" for name in module.of("variable")),
        *(f"local.{name}" for name in module.of("locals")),
        *(f"data.{name}" for name in module.of("data")),
        *module.of("resource"),
    }


def _resolved(module: Module) -> Iterator[str]:
    defined = _defined(module)
    for name, references in module.references.items():
        yield from (f"{name}: there is no {reference}" for reference in sorted(references - defined))


def _used(module: Module) -> Iterator[str]:
    used = set().union(*module.references.values()) if module.references else set()
    for reference in sorted(_defined(module) - used):
        if reference.startswith(("var.", "local.")):
            yield f"{reference} is used nowhere"


def _first(body: Object, key: str) -> Object:
    """A nested block, which the parser gives as a list."""
    inner = body.get(key)
    inner = inner[0] if isinstance(inner, list) and inner else inner
    return inner if isinstance(inner, dict) else {}


def _wanted(module: Module, kind: str, **values: Any) -> Iterator[str]:
    """Arguments that every resource of a kind must have."""
    for name, body in module.resources(kind).items():
        yield from (f"{name}: {key} must be {value}" for key, value in values.items() if body.get(key) != value)


def pinned_providers(module: Module) -> Iterator[str]:
    settings = module.of("terraform").get("terraform", {})
    if not settings.get("required_version"):
        yield "terraform.required_version is missing"
    for name, provider in _first(settings, "required_providers").items():
        if not (isinstance(provider, dict) and str(provider.get("version", "")).startswith("~>")):
            yield f"provider {name}: its version must be held by ~>"


def closed_buckets(module: Module) -> Iterator[str]:
    """Each bucket: no public access, encrypted, owned by the account, TLS only, and nothing deletes a full one."""
    closed = ("block_public_acls", "block_public_policy", "ignore_public_acls", "restrict_public_buckets")
    yield from _wanted(module, "aws_s3_bucket_public_access_block", **dict.fromkeys(closed, True))
    needed = (
        "aws_s3_bucket_public_access_block",
        "aws_s3_bucket_server_side_encryption_configuration",
        "aws_s3_bucket_ownership_controls",
        "aws_s3_bucket_versioning",
        "aws_s3_bucket_policy",
        "aws_s3_bucket_lifecycle_configuration",
    )
    if module.resources("aws_s3_bucket"):
        yield from (f"there is no {kind}" for kind in needed if not module.resources(kind))
    for name, body in module.resources("aws_s3_bucket").items():
        if body.get("force_destroy") is not False:
            yield f"{name}: force_destroy must be false"
    policies = {name: body for name, body in module.of("data").items() if "aws:SecureTransport" in str(body)}
    if module.resources("aws_s3_bucket") and not policies:
        yield "no bucket policy denies requests without TLS (aws:SecureTransport)"


def closed_networks(module: Module) -> Iterator[str]:
    for kind in ("aws_vpc_security_group_ingress_rule", "aws_security_group_rule", "aws_security_group"):
        for name, body in module.resources(kind).items():
            if _EVERYWHERE in str(body):
                yield f"{name}: it is open to {_EVERYWHERE}"
    yield from _wanted(module, "aws_subnet.public", map_public_ip_on_launch=False)


def safe_database(module: Module) -> Iterator[str]:
    yield from _wanted(
        module,
        "aws_db_instance",
        storage_encrypted=True,
        publicly_accessible=False,
        deletion_protection=True,
        skip_final_snapshot=False,
        manage_master_user_password=True,
    )
    for name, body in module.resources("aws_db_instance").items():
        if "password" in body:
            yield f"{name}: a password would stand in the state; RDS manages it (manage_master_user_password)"
        if not body.get("backup_retention_period"):
            yield f"{name}: backup_retention_period is missing"
    if module.resources("aws_db_instance") and "rds.force_ssl" not in str(module.resources("aws_db_parameter_group")):
        yield "no parameter group forces TLS (rds.force_ssl)"


def safe_cluster(module: Module) -> Iterator[str]:
    for name, body in module.resources("aws_eks_cluster").items():
        if "secrets" not in str(_first(body, "encryption_config").get("resources")):
            yield f"{name}: encryption_config must cover secrets"
        if not {"api", "audit", "authenticator"} <= set(map(str, body.get("enabled_cluster_log_types") or [])):
            yield f"{name}: enabled_cluster_log_types must have api, audit and authenticator"
        network = _first(body, "vpc_config")
        if network.get("endpoint_public_access") is True or _EVERYWHERE in str(network.get("public_access_cidrs")):
            yield f"{name}: its API must not be open to everybody"
        if _first(body, "access_config").get("authentication_mode") != "API":
            yield f"{name}: access_config.authentication_mode must be API"


def safe_nodes(module: Module) -> Iterator[str]:
    for name, body in module.resources("aws_launch_template").items():
        metadata = _first(body, "metadata_options")
        if metadata.get("http_tokens") != "required" or metadata.get("http_put_response_hop_limit") != 1:
            yield f"{name}: metadata_options must ask for tokens and allow one hop, or pods get the node's rights"
        if _first(_first(body, "block_device_mappings"), "ebs").get("encrypted") is not True:
            yield f"{name}: its volume must be encrypted"


_DISK_TAG = "k8s.io/cluster-autoscaler/node-template/resources/ephemeral-storage"


def found_nodes(module: Module) -> Iterator[str]:
    """What comes from zero says its disk to the autoscaler; GPU nodes say to NVIDIA's device plugin that they are."""
    for name, body in module.resources("aws_eks_node_group").items():
        if name != "aws_eks_node_group.system" and _DISK_TAG not in _plain(body.get("tags") or {}):
            yield f"{name}: its tags lack {_DISK_TAG}, or pods that ask for disk never bring a node"
        if "NVIDIA" in str(body.get("ami_type")) and _plain(body["labels"]).get("nvidia.com/gpu.present") != "true":
            yield f'{name}: its labels lack nvidia.com/gpu.present = "true", which the device plugin looks for'


def safe_registry(module: Module) -> Iterator[str]:
    yield from _wanted(module, "aws_ecr_repository", image_tag_mutability="IMMUTABLE")
    for name, body in module.resources("aws_ecr_repository").items():
        if _first(body, "image_scanning_configuration").get("scan_on_push") is not True:
            yield f"{name}: scan_on_push must be true"


def turning_keys(module: Module) -> Iterator[str]:
    yield from _wanted(module, "aws_kms_key", enable_key_rotation=True)


_NO_RESOURCES = re.compile(r"^(autoscaling|ec2|eks):(Describe|Get)")


def least_rights(module: Module) -> Iterator[str]:
    """Actions are named; all resources stand only where things are described, or under a condition."""
    for name, body in module.of("data").items():
        if not name.startswith("aws_iam_policy_document.") or name.endswith((".key", ".bucket")):
            continue
        statements = body.get("statement") or []
        for statement in statements if isinstance(statements, list) else [statements]:
            actions = [str(action) for action in statement.get("actions") or []]
            yield from (f"data.{name}: the action {one}" for one in actions if one.endswith("*"))
            everything = "*" in map(str, statement.get("resources") or [])
            if everything and not statement.get("condition") and not all(map(_NO_RESOURCES.match, actions)):
                yield f"data.{name}: {', '.join(actions)} on all resources"


def no_secret_values(module: Module) -> Iterator[str]:
    for name in module.resources("aws_secretsmanager_secret_version"):
        yield f"{name}: a secret's value would stand in the state; people put it"
    for name, body in module.of("variable").items():
        if re.search(r"password|token|secret", name):
            yield f"variable {name}: secrets do not go through terraform ({body.get('description')})"


RULES: dict[str, Callable[[Module], Iterable[str]]] = {
    "providers are pinned": pinned_providers,
    "buckets are closed": closed_buckets,
    "networks are closed": closed_networks,
    "the database is safe": safe_database,
    "the cluster is safe": safe_cluster,
    "nodes are safe": safe_nodes,
    "nodes are found": found_nodes,
    "the registry is safe": safe_registry,
    "keys are rotated": turning_keys,
    "rights are the least": least_rights,
    "secrets' values are elsewhere": no_secret_values,
}
