"""What our manifests must keep to, beyond what the API takes. A rule is a function over all objects of an overlay."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from infra.checks.check import Check, Object, check, matches, name_of, namespace_of, of_kind

_SECRET_NAME = re.compile(r"(PASSWORD|SECRET|TOKEN|_KEY|_URI|CONN)$")
_NO_SECRETS = {"MLFLOW_TRACKING_URI"}
_FORBIDDEN = {"secrets", "pods/exec", "pods/attach", "pods/portforward", "serviceaccounts/token", "nodes"}
_POWERS = {"*", "escalate", "bind", "impersonate"}
_CLUSTER_KINDS = ("ClusterRole", "ClusterRoleBinding")
_DEFAULT_DENY = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def policy_checks(where: str, objects: list[Object]) -> Iterator[Check]:
    for name, rule in RULES.items():
        yield check("policy", f"{where}: {name}", rule(objects))


def pod_templates(objects: Iterable[Object]) -> Iterator[tuple[str, str, Object]]:
    """Name, namespace and pod template of everything that makes pods."""
    for item in objects:
        spec = item.get("spec") or {}
        if item.get("kind") in ("Deployment", "StatefulSet", "DaemonSet", "Job"):
            yield name_of(item), namespace_of(item), spec["template"]
        elif item.get("kind") == "CronJob":
            yield name_of(item), namespace_of(item), spec["jobTemplate"]["spec"]["template"]
        elif item.get("kind") == "ClusterTrainingRuntime":
            for job in spec["template"]["spec"]["replicatedJobs"]:
                yield name_of(item), "mmbert", job["template"]["spec"]["template"]


def containers(template: Object) -> list[Object]:
    spec = template["spec"]
    return [*(spec.get("initContainers") or []), *spec["containers"]]


def restricted_pods(objects: list[Object]) -> Iterator[str]:
    """The standard `restricted` (Kubernetes' documentation, Pod Security Standards), and a read-only root."""
    for name, _, template in pod_templates(objects):
        pod = template["spec"]
        security = pod.get("securityContext") or {}
        shared = [key for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key)]
        yield from (f"{name}: {key} is set" for key in shared)
        yield from (
            f"{name}: volume {volume['name']} is a hostPath"
            for volume in pod.get("volumes") or []
            if "hostPath" in volume
        )
        for container in containers(template):
            own = {**security, **(container.get("securityContext") or {})}
            yield from (f"{name}: container {container['name']}: {text}" for text in _container_faults(own))


def _container_faults(security: Object) -> Iterator[str]:
    if security.get("runAsNonRoot") is not True:
        yield "runAsNonRoot must be true"
    if security.get("runAsUser") == 0:
        yield "runAsUser is 0"
    if (security.get("seccompProfile") or {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield "seccompProfile must be RuntimeDefault"
    if security.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation must be false"
    if security.get("privileged"):
        yield "it is privileged"
    capabilities = security.get("capabilities") or {}
    if "ALL" not in (capabilities.get("drop") or []) or capabilities.get("add"):
        yield "capabilities must drop ALL and add none"
    if security.get("readOnlyRootFilesystem") is not True:
        yield "readOnlyRootFilesystem must be true"


def restricted_namespaces(objects: list[Object]) -> Iterator[str]:
    for item in of_kind(objects, "Namespace"):
        if (item["metadata"].get("labels") or {}).get("pod-security.kubernetes.io/enforce") != "restricted":
            yield f"{name_of(item)}: it does not enforce pod security 'restricted'"


def closed_networks(objects: list[Object]) -> Iterator[str]:
    """Each namespace denies all traffic by default, and no policy opens every address for every port."""
    policies = of_kind(objects, "NetworkPolicy")
    closed = {namespace_of(item) for item in policies if item["spec"] == _DEFAULT_DENY}
    for item in of_kind(objects, "Namespace"):
        if item["metadata"]["name"] not in closed:
            yield f"{name_of(item)}: no NetworkPolicy denies everything by default"
    for item in policies:
        for direction in ("ingress", "egress"):
            for rule in item["spec"].get(direction) or []:
                yield from (f"{name_of(item)}: {text}" for text in _openness(direction, rule))


def _openness(direction: str, rule: Object) -> Iterator[str]:
    peers = rule.get("from" if direction == "ingress" else "to")
    if not peers:
        yield f"{direction} is open for all"
    for peer in peers or []:
        everywhere = (peer.get("ipBlock") or {}).get("cidr") == "0.0.0.0/0"
        if everywhere and not rule.get("ports"):
            yield f"{direction} is open for all ports of all addresses"
        if everywhere and "169.254.0.0/16" not in (peer["ipBlock"].get("except") or []):
            yield f"{direction} reaches the node's metadata (169.254.169.254)"


def least_rights(objects: list[Object]) -> Iterator[str]:
    """No role for the whole cluster, no wildcard, nothing that reads secrets or enters pods."""
    yield from (f"{name_of(item)}: rights in the whole cluster" for item in of_kind(objects, *_CLUSTER_KINDS))
    for item in of_kind(objects, "Role"):
        for rule in item["rules"]:
            if "*" in rule["apiGroups"] or "*" in rule["resources"]:
                yield f"{name_of(item)}: a wildcard in {rule}"
            yield from (f"{name_of(item)}: the verb {verb}" for verb in rule["verbs"] if verb in _POWERS)
            yield from (f"{name_of(item)}: rights to {one}" for one in rule["resources"] if one in _FORBIDDEN)


def tokens(objects: list[Object]) -> Iterator[str]:
    """A pod has a token of the cluster only where its account has a role."""
    with_roles = {
        (subject.get("namespace"), subject["name"])
        for binding in of_kind(objects, "RoleBinding")
        for subject in binding["subjects"]
    }
    accounts = {(namespace_of(item), item["metadata"]["name"]): item for item in of_kind(objects, "ServiceAccount")}
    for key, item in accounts.items():
        if key not in with_roles and item.get("automountServiceAccountToken") is not False:
            yield f"{name_of(item)}: it has no role, so automountServiceAccountToken must be false"
    for name, namespace, template in pod_templates(objects):
        account = template["spec"].get("serviceAccountName")
        if (namespace, account) not in accounts:
            yield f"{name}: there is no ServiceAccount {namespace}/{account}"


def no_secret_values(objects: list[Object]) -> Iterator[str]:
    """Secrets are references: no Secret with data, no variable with the value of one."""
    yield from (f"{name_of(item)}: a Secret with its values" for item in of_kind(objects, "Secret"))
    for name, _, template in pod_templates(objects):
        for container in containers(template):
            for variable in container.get("env") or []:
                secret = _SECRET_NAME.search(variable["name"]) and variable["name"] not in _NO_SECRETS
                if secret and variable.get("value"):
                    yield f"{name}: {variable['name']} is written out; refer to a Secret"
    for item in of_kind(objects, "ConfigMap"):
        for key in item.get("data") or {}:
            if _SECRET_NAME.search(key) and key not in _NO_SECRETS:
                yield f"{name_of(item)}: {key} belongs into a Secret"


def bounded(objects: list[Object]) -> Iterator[str]:
    """Memory asked for is memory allowed; each namespace has a quota and defaults. A TrainJob says its own sizes."""
    for name, _, template in pod_templates(item for item in objects if item["kind"] != "ClusterTrainingRuntime"):
        for container in containers(template):
            resources = container.get("resources") or {}
            asked = (resources.get("requests") or {}).get("memory")
            if asked is None or asked != (resources.get("limits") or {}).get("memory"):
                yield f"{name}: container {container['name']}: memory's request and limit must be there and equal"
    for kind in ("ResourceQuota", "LimitRange"):
        there = {namespace_of(item) for item in of_kind(objects, kind)}
        for item in of_kind(objects, "Namespace"):
            if item["metadata"]["name"] not in there:
                yield f"{name_of(item)}: it has no {kind}"


def inner_services(objects: list[Object]) -> Iterator[str]:
    for item in of_kind(objects, "Service"):
        if item["spec"].get("type", "ClusterIP") != "ClusterIP":
            yield f"{name_of(item)}: it is open to the outside ({item['spec']['type']})"


def references(objects: list[Object]) -> Iterator[str]:
    """What is named is there: roles, queues, flavors, topologies, priorities, config maps, secrets' sources."""
    named = {(item["kind"], namespace_of(item), item["metadata"]["name"]) for item in objects}
    for by, kind, namespace, name in (*_named_by_objects(objects), *_named_by_pods(objects)):
        if (kind, namespace, name) not in named:
            yield f"{by}: there is no {kind} {name}"
    yield from _selectors(objects)


_Named = tuple[str, str, str, str]
"""Who names it; kind, namespace and name of what is named."""


def _named_by_objects(objects: list[Object]) -> Iterator[_Named]:
    for item in objects:
        by, spec = name_of(item), item.get("spec") or {}
        if item["kind"] == "RoleBinding":
            yield by, item["roleRef"]["kind"], namespace_of(item), item["roleRef"]["name"]
            for subject in item["subjects"]:
                yield by, subject["kind"], subject.get("namespace", ""), subject["name"]
        elif item["kind"] == "LocalQueue":
            yield by, "ClusterQueue", "", spec["clusterQueue"]
        elif item["kind"] == "ClusterQueue":
            for group in spec["resourceGroups"]:
                yield from ((by, "ResourceFlavor", "", flavor["name"]) for flavor in group["flavors"])
        elif item["kind"] == "ResourceFlavor" and "topologyName" in spec:
            yield by, "Topology", "", spec["topologyName"]
        elif item["kind"] == "ExternalSecret":
            yield by, spec["secretStoreRef"]["kind"], "", spec["secretStoreRef"]["name"]


def _named_by_pods(objects: list[Object]) -> Iterator[_Named]:
    for by, namespace, template in pod_templates(objects):
        if "priorityClassName" in template["spec"]:
            yield by, "PriorityClass", "", template["spec"]["priorityClassName"]
        for container in containers(template):
            for variable in container.get("env") or []:
                source = (variable.get("valueFrom") or {}).get("configMapKeyRef")
                if source:
                    yield by, "ConfigMap", namespace, source["name"]


def _selectors(objects: list[Object]) -> Iterator[str]:
    """Services and budgets of ours choose pods of ours; those of the namespace mmbert are the launcher's pods too."""
    pods = [
        (namespace, (template.get("metadata") or {}).get("labels") or {})
        for _, namespace, template in pod_templates(objects)
    ]
    for item in of_kind(objects, "Service", "PodDisruptionBudget"):
        selector = item["spec"].get("selector") or {}
        wanted = selector if item["kind"] == "PodDisruptionBudget" else {"matchLabels": selector}
        if not any(namespace == namespace_of(item) and matches(wanted, labels) for namespace, labels in pods):
            yield f"{name_of(item)}: it chooses no pod"


def failure_policy(objects: list[Object]) -> Iterator[str]:
    """Training's: disruptions and stopped ranks do not count, bugs and wrong input end it at once, in this order."""
    wanted = [
        ("Ignore", "DisruptionTarget"),
        ("Ignore", [130]),
        ("FailJob", [1, 2, 137]),
    ]
    for item in of_kind(objects, "ClusterTrainingRuntime"):
        template = item["spec"]["template"]["spec"]
        reasons = {
            reason: rule["action"]
            for rule in template["failurePolicy"]["rules"]
            for reason in rule.get("onJobFailureReasons", [])
        }
        if reasons.get("PodFailurePolicy") != "FailJobSet":
            yield f"{name_of(item)}: failurePolicy must fail the set at PodFailurePolicy"
        if "ttlSecondsAfterFinished" in template:
            yield f"{name_of(item)}: ttlSecondsAfterFinished: Trainer up to 2.3 starts what failed again after it"
        if template["failurePolicy"].get("restartStrategy") != "BlockingRecreate":
            yield f"{name_of(item)}: restartStrategy must be BlockingRecreate, or two attempts' pods meet"
        for job in template["replicatedJobs"]:
            spec = job["template"]["spec"]
            found = [(rule["action"], _condition(rule)) for rule in spec["podFailurePolicy"]["rules"]]
            if found != wanted:
                yield f"{name_of(item)}: podFailurePolicy is {found}; it must be {wanted}"
            if spec["template"]["spec"].get("restartPolicy") != "Never":
                yield f"{name_of(item)}: restartPolicy must be Never"


def _condition(rule: Object) -> Any:
    if "onExitCodes" in rule:
        return rule["onExitCodes"]["values"]
    return ",".join(condition["type"] for condition in rule["onPodConditions"])


def pinned_images(objects: list[Object]) -> Iterator[str]:
    """By digest, or by a tag that is no moving one."""
    for name, _, template in pod_templates(objects):
        for container in containers(template):
            image = container["image"]
            tag = image.rpartition("/")[2].partition(":")[2]
            if "@sha256:" not in image and (not tag or tag == "latest"):
                yield f"{name}: image {image} has neither digest nor tag"


RULES: dict[str, Callable[[list[Object]], Iterable[str]]] = {
    "pods are restricted": restricted_pods,
    "namespaces are restricted": restricted_namespaces,
    "networks are closed": closed_networks,
    "rights are the least": least_rights,
    "tokens are for those with rights": tokens,
    "secrets are references": no_secret_values,
    "memory and objects are bounded": bounded,
    "services are inner": inner_services,
    "what is named is there": references,
    "training's failure policy": failure_policy,
    "images are pinned": pinned_images,
}
