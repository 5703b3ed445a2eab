"""What an object must be to be taken: its fields known and of their types, and the rules that no schema holds.

Kubernetes' own kinds are held to its published schemas (the package kubernetes-validate, strict), custom resources to
the lists in custom.py. Fields are always validated strictly (Kubernetes API Concepts, "Field validation": `Strict`),
also where a client asks for less: what a real server would drop with a warning is an error here.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

from tests.kubernetes.cluster import custom, errors
from tests.kubernetes.cluster.resources import JOB, POD, SERVICE, TRAIN_JOB, Kind
from tests.kubernetes.cluster.scheduler import quantity
from tests.kubernetes.cluster.store import Object, is_dns_label

SCHEMAS = "1.34.0"

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_LETTERS = 'must consist of lower case alphanumeric characters or "-"'
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")

_Cause = tuple[str, str]


def checked(kind: Kind, body: Any) -> Object:
    """A copy of what was sent. Raises ApiError: 400 where it is none of this kind, 422 where a rule is broken."""
    if not isinstance(body, dict):
        raise errors.bad_request("the object provided is unrecognized (must be of type object)")
    document = {"apiVersion": kind.api_version, "kind": kind.kind, **_without_nulls(copy.deepcopy(body))}
    for key, wanted in (("apiVersion", kind.api_version), ("kind", kind.kind)):
        if document[key] != wanted:
            raise errors.bad_request(f"the object provided has {key} {document[key]}, this place takes {wanted}")
    if kind.is_custom:
        if found := list(_custom_faults(kind, document)):
            raise errors.undecodable(kind, ", ".join(found))
    elif why := _schema_fault(document):
        raise errors.undecodable(kind, why)
    document.setdefault("metadata", {})
    if causes := list(_causes(kind, document)):
        raise errors.invalid(kind, document["metadata"].get("name", ""), causes)
    return document


def check_update(kind: Kind, present: Object, document: Object) -> None:
    """Jobs and pods keep most of their spec (API reference: "field is immutable"). Raises ApiError (422)."""
    free = {
        JOB: ("suspend", "parallelism", "activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished"),
        POD: ("activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds", "schedulingGates"),
        TRAIN_JOB: ("suspend", "runtimePatches"),
    }.get(kind)
    if free is None:
        return
    for key in {*present["spec"], *document["spec"]} - {*free}:
        if key in present["spec"] and present["spec"][key] != document["spec"].get(key, present["spec"][key]):
            raise errors.invalid(kind, document["metadata"]["name"], [(f"spec.{key}", "field is immutable")])
        document["spec"].setdefault(key, present["spec"].get(key))


def _without_nulls(value: Any) -> Any:
    """A null is no value (API conventions, "Optional vs. Required")."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _schema_fault(document: Object) -> str:
    """What a document's schema says against it; "" where nothing."""
    error = best_match(_validator(document["kind"], document["apiVersion"]).iter_errors(document))
    if error is None:
        return ""
    path = ".".join(str(part) for part in error.absolute_path)
    if found := re.search(r"\('(.+?)'.* (?:was|were) unexpected\)", error.message):
        return f'unknown field "{".".join(filter(None, [path, found.group(1)]))}"'
    return f"{path}: {error.message[:300]}"


@functools.cache
def _validator(kind: str, api_version: str) -> Draft202012Validator:
    """As kubernetes_validate.validate makes it for every document anew, which costs more than all else here."""
    folder = f"kubernetes-json-schema/v{SCHEMAS}-local-strict"
    name = f"{kind.lower()}-{re.sub(r'[.][^/]*', '', api_version).replace('/', '-')}.json"
    parts = [schema_contents(f"{folder}/{file}", SCHEMAS) for file in (name, "_definitions.json")]
    registry: Registry[Any] = Registry().with_resources([(part["$id"], Resource.from_contents(part)) for part in parts])
    return Draft202012Validator(parts[0], registry=registry)


def _custom_faults(kind: Kind, document: Object) -> Iterator[str]:
    for key in document.keys() - {"apiVersion", "kind", "metadata", "spec", "status"}:
        yield f'unknown field "{key}"'
    namespaced = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": document.get("metadata", {})}
    if why := _schema_fault(namespaced):
        yield why
    yield from _faults(custom.FIELDS[kind.kind], document.get("spec", {}), "spec")


_TYPES: dict[str, tuple[type, ...]] = {
    custom.TEXT: (str,), custom.INTEGER: (int,), custom.NUMBER: (int, float), custom.TRUTH: (bool,),
}  # fmt: skip


def _faults(wanted: Any, value: Any, path: str) -> Iterator[str]:
    if isinstance(wanted, tuple):
        yield from _core_faults(wanted[1], value, path)
    elif isinstance(wanted, dict):
        yield from _object_faults(wanted, value, path)
    elif isinstance(wanted, list):
        if not isinstance(value, list):
            yield f"{path}: must be a list"
            return
        for number, item in enumerate(value):
            yield from _faults(wanted[0], item, f"{path}[{number}]")
    elif wanted == custom.MAP:
        if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
            yield f"{path}: must hold texts by text"
    elif wanted != custom.ANY:
        is_other = isinstance(value, bool) and wanted != custom.TRUTH
        if is_other or not isinstance(value, _TYPES[wanted]):
            yield f"{path}: must be of type {wanted}"


def _object_faults(wanted: Any, value: Any, path: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path}: must be an object"
        return
    names = {name.rstrip("!"): name for name in wanted}
    for name in value.keys() - names.keys():
        yield f'unknown field "{path}.{name}"'
    for name, full in names.items():
        if name in value:
            yield from _faults(wanted[full], value[name], f"{path}.{name}")
        elif full.endswith("!"):
            yield f"{path}.{name}: Required value"


def _core_faults(what: str, value: Any, path: str) -> Iterator[str]:
    """Inside an object of Kubernetes' own that has such a part."""
    container: Object = {"name": "x", "image": "x"}
    spec: Object = {"containers": [container]}
    document: Object = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}
    if what == "pod template":
        document = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": value}
    elif what == "job template":
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}}
        document = {**job, **(value if isinstance(value, dict) else {"spec": value})}
    elif what == "service":
        document = value
    elif what in ("env", "volumeMounts", "resources", "container.securityContext"):
        container[what.rpartition(".")[2]] = value
    else:
        spec[what.rpartition(".")[2]] = value
    if why := _schema_fault(document):
        yield f"{path}: {why}"


def _causes(kind: Kind, document: Object) -> Iterator[_Cause]:
    yield from _meta_causes(kind, document["metadata"])
    if kind in (POD, JOB) and "spec" not in document:
        yield "spec", "Required value"
    elif kind is POD:
        yield from _pod_causes(document["spec"], "spec")
    elif kind is JOB:
        yield from _job_causes(document)
    if kind is SERVICE and not is_dns_label(document["metadata"].get("name", "x")):
        yield "metadata.name", "a DNS-1035 label must consist of lower case alphanumeric characters or '-'"


def _meta_causes(kind: Kind, meta: Object) -> Iterator[_Cause]:
    """Object Names and IDs; Labels and Selectors, "Syntax and character set"; Annotations."""
    name = meta.get("name") or meta.get("generateName", "").rstrip("-") + "x"
    if not meta.get("name") and not meta.get("generateName"):
        yield "metadata.name", "Required value: name or generateName is required"
    elif len(name) > 253 or not _NAME.fullmatch(name):
        yield "metadata.name", f'Invalid value: "{name}": a lowercase RFC 1123 subdomain {_LETTERS} or "."'
    if kind is TRAIN_JOB and (len(name) > 63 or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)):
        yield "metadata.name", "metadata.name must match RFC 1035 DNS label format"
    yield from _label_causes(meta.get("labels") or {}, "metadata.labels")
    for key in meta.get("annotations") or {}:
        if not _KEY.fullmatch(key):
            yield "metadata.annotations", f'Invalid value: "{key}": name part must consist of alphanumeric characters'


def _label_causes(labels: dict[str, str], path: str) -> Iterator[_Cause]:
    for key, value in labels.items():
        if not _KEY.fullmatch(key):
            yield path, f'Invalid value: "{key}": name part must consist of alphanumeric characters'
        if not _VALUE.fullmatch(value):
            why = 'a valid label must be empty or at most 63 alphanumeric characters, "-", "_" or "."'
            yield path, f'Invalid value: "{value}": {why}'


def _pod_causes(spec: Object, path: str) -> Iterator[_Cause]:
    """API reference, PodSpec, Container; Volumes; Resource Management for Pods and Containers."""
    for key in ("hostname", "subdomain"):
        if key in spec and not is_dns_label(spec[key]):
            yield f"{path}.{key}", f'Invalid value: "{spec[key]}": a lowercase RFC 1123 label {_LETTERS}'
    yield from _one_of(spec, "restartPolicy", ("Always", "OnFailure", "Never"), path)
    volumes = [volume["name"] for volume in spec.get("volumes") or ()]
    yield from _twice(volumes, f"{path}.volumes")
    yield from _twice([item["name"] for item in spec["containers"]], f"{path}.containers")
    for number, container in enumerate(spec["containers"]):
        yield from _container_causes(container, volumes, f"{path}.containers[{number}]")
    for number, item in enumerate(spec.get("tolerations") or ()):
        if item.get("operator", "Equal") == "Exists" and item.get("value"):
            why = "Invalid value: value must be empty when `operator` is 'Exists'"
            yield f"{path}.tolerations[{number}].operator", why
        yield from _one_of(item, "effect", _EFFECTS, f"{path}.tolerations[{number}]")
    if spec.get("activeDeadlineSeconds", 1) < 1:
        yield f"{path}.activeDeadlineSeconds", "Invalid value: must be between 1 and 2147483647"


def _container_causes(container: Object, volumes: list[str], path: str) -> Iterator[_Cause]:
    if not is_dns_label(container["name"]):
        yield f"{path}.name", f'Invalid value: "{container["name"]}": a lowercase RFC 1123 label {_LETTERS}'
    if not container.get("image", "").strip():
        yield f"{path}.image", "Required value"
    yield from _one_of(container, "terminationMessagePolicy", ("File", "FallbackToLogsOnError"), path)
    yield from _one_of(container, "imagePullPolicy", ("Always", "IfNotPresent", "Never"), path)
    for number, mount in enumerate(container.get("volumeMounts") or ()):
        if mount["name"] not in volumes:
            yield f"{path}.volumeMounts[{number}].name", f'Not found: "{mount["name"]}"'
    yield from _twice([mount["mountPath"] for mount in container.get("volumeMounts") or ()], f"{path}.volumeMounts")
    for number, item in enumerate(container.get("env") or ()):
        if not re.fullmatch(r"[ -<>-~]+", item["name"]):
            yield f"{path}.env[{number}].name", f'Invalid value: "{item["name"]}": a valid environment variable name'
        if item.get("value") and "valueFrom" in item:
            yield f"{path}.env[{number}].valueFrom", "Invalid value: may not be specified when `value` is not empty"
    yield from _resource_causes(container.get("resources") or {}, f"{path}.resources")


def _resource_causes(resources: Object, path: str) -> Iterator[_Cause]:
    """Resource Management, "Extended resources": whole numbers, requests as limits; and no request above a limit."""
    limits, wishes = resources.get("limits") or {}, resources.get("requests") or {}
    for name, amount in {**wishes, **limits}.items():
        try:
            is_whole = quantity(amount).denominator == 1
        except ValueError:
            yield path, f'Invalid value: "{amount}": quantities must match the regular expression'
            return
        is_extended = "/" in name
        if is_extended and not is_whole:
            yield f"{path}.limits[{name}]", "Invalid value: must be an integer"
        if is_extended and name not in limits:
            yield f"{path}.limits", f"Required value: Limit must be set for non overcommitable resources ({name})"
    for name, amount in wishes.items():
        if name not in limits:
            continue
        if quantity(amount) > quantity(limits[name]):
            why = f"must be less than or equal to {name} limit of {limits[name]}"
            yield f"{path}.requests", f'Invalid value: "{amount}": {why}'
        elif "/" in name and quantity(amount) != quantity(limits[name]):
            yield f"{path}.requests", f'Invalid value: "{amount}": must be equal to {name} limit of {limits[name]}'


def _job_causes(job: Object) -> Iterator[_Cause]:
    """Jobs, "Pod template", "Pod failure policy"; API reference, JobSpec."""
    spec = job["spec"]
    template = spec["template"].get("spec") or {"containers": []}
    if not template["containers"]:
        yield "spec.template.spec.containers", "Required value"
    yield from _pod_causes(template, "spec.template.spec")
    yield from _label_causes((spec["template"].get("metadata") or {}).get("labels") or {}, "spec.template.labels")
    if len(job["metadata"].get("name", "")) > 63:
        yield "metadata.name", "Invalid value: must be no more than 63 characters"
    if template.get("restartPolicy", "Always") not in ("Never", "OnFailure"):
        yield "spec.template.spec.restartPolicy", 'Required value: valid values: "OnFailure", "Never"'
    for key, least in (
        ("completions", 0), ("parallelism", 0), ("backoffLimit", 0), ("activeDeadlineSeconds", 0),
        ("ttlSecondsAfterFinished", 0),
    ):  # fmt: skip
        if spec.get(key, least) < least:
            yield f"spec.{key}", f"Invalid value: {spec[key]}: must be greater than or equal to {least}"
    if spec.get("completionMode") == "Indexed" and "completions" not in spec:
        yield "spec.completions", "Required value: when completion mode is Indexed"
    if "podFailurePolicy" in spec:
        yield from _policy_causes(spec["podFailurePolicy"], template)
        if spec.get("podReplacementPolicy", "Failed") != "Failed":
            yield "spec.podReplacementPolicy", 'Unsupported value: supported values: "Failed"'


def _policy_causes(policy: Object, template: Object) -> Iterator[_Cause]:
    path = "spec.podFailurePolicy"
    if template.get("restartPolicy") != "Never":
        yield f"{path}", 'Invalid value: only "Never" is supported for restartPolicy when podFailurePolicy is specified'
    names = {container["name"] for container in template.get("containers", ())}
    for number, rule in enumerate(policy["rules"]):
        here = f"{path}.rules[{number}]"
        yield from _one_of(rule, "action", ("Count", "FailIndex", "FailJob", "Ignore"), here)
        codes, conditions = rule.get("onExitCodes"), rule.get("onPodConditions")
        if bool(codes) == bool(conditions):
            yield here, "Invalid value: specifying one of OnExitCodes and OnPodConditions is required, and not both"
        if codes:
            yield from _exit_code_causes(codes, names, f"{here}.onExitCodes")


def _exit_code_causes(codes: Object, names: set[str], path: str) -> Iterator[_Cause]:
    yield from _one_of(codes, "operator", ("In", "NotIn"), path)
    values = codes.get("values") or []
    if codes.get("containerName", next(iter(names), "")) not in names:
        yield f"{path}.containerName", f'Invalid value: "{codes["containerName"]}": must be one of the container names'
    if not 1 <= len(values) <= 255:
        yield f"{path}.values", "Invalid value: must have 1 to 255 items"
    if values != sorted(set(values)):
        yield f"{path}.values", "Invalid value: must be ordered, and without duplicates"
    if codes["operator"] == "In" and 0 in values:
        yield f"{path}.values", "Invalid value: 0: must not be 0 for the In operator"


def _one_of(item: Object, key: str, allowed: tuple[str, ...], path: str) -> Iterator[_Cause]:
    if item.get(key, allowed[0]) not in allowed:
        told = ", ".join(f'"{value}"' for value in allowed)
        yield f"{path}.{key}", f'Unsupported value: "{item[key]}": supported values: {told}'


def _twice(names: list[str], path: str) -> Iterator[_Cause]:
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield path, f'Duplicate value: "{name}"'
