"""Fields of custom resources, from their makers' own sources.

*Unverified on a cluster*: a list can lack a field or a rule that the real webhook has; it does catch misspelt fields,
wrong types and unknown values.

Sources: Kueue's apis/kueue/v1beta2 (clusterqueue_types.go, resourceflavor_types.go, topology_types.go,
localqueue_types.go); Kubeflow Trainer's pkg/apis/trainer/v1alpha1/trainingruntime_types.go; JobSet's
api/jobset/v1alpha2/jobset_types.go; External Secrets' API reference (external-secrets.io/v1); the Prometheus Operator's
API reference (monitoring.coreos.com/v1). Parts that are Kubernetes' own (pod templates, Jobs) go through its schemas.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema

from infra.checks.check import Object

Schema = dict[str, Any]


def _object(required: str = "", **fields: Schema) -> Schema:
    """An object with these fields and no others; `required` names fields, with blanks between."""
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": fields,
        "required": required.split(),
    }


def _list(items: Schema, least: int = 0) -> Schema:
    return {"type": "array", "items": items, "minItems": least}


def _one_of(*values: str) -> Schema:
    return {"enum": list(values)}


_ANY: Schema = {}
_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_TRUTH: Schema = {"type": "boolean"}
_LABELS: Schema = {"type": "object", "additionalProperties": _TEXT}
_QUANTITY: Schema = {
    "anyOf": [
        _COUNT,
        {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?([eE][0-9]+|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"},
    ]
}
_NAME: Schema = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"}
_LABEL_NAME: Schema = {
    "type": "string",
    "pattern": r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?"
    r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]$",
}
_SELECTOR = _object(matchLabels=_LABELS, matchExpressions=_list(_ANY))
_EFFECT = _one_of("NoSchedule", "PreferNoSchedule", "NoExecute")
_STOP = _one_of("None", "Hold", "HoldAndDrain")

_TOPOLOGY = _object("levels", levels=_list(_object("nodeLabel", nodeLabel=_LABEL_NAME), 1))
_RESOURCE_FLAVOR = _object(
    nodeLabels=_LABELS,
    nodeTaints=_list(_object("key effect", key=_LABEL_NAME, value=_TEXT, effect=_EFFECT)),
    tolerations=_list(
        _object(
            key=_LABEL_NAME,
            operator=_one_of("Equal", "Exists"),
            value=_TEXT,
            effect=_EFFECT,
            tolerationSeconds=_COUNT,
        )
    ),
    topologyName=_NAME,
    resourceWeights={"type": "object", "additionalProperties": _QUANTITY},
)
_LOCAL_QUEUE = _object(
    "clusterQueue", clusterQueue=_NAME, stopPolicy=_STOP, fairSharing=_object(weight=_QUANTITY), wallTimePolicy=_ANY
)
_TRY = _one_of("MayStopSearch", "TryNextFlavor")
_CLUSTER_QUEUE = _object(
    "resourceGroups",
    resourceGroups=_list(
        _object(
            "coveredResources flavors",
            coveredResources=_list(_LABEL_NAME, 1),
            flavors=_list(
                _object(
                    "name resources",
                    name=_NAME,
                    resources=_list(
                        _object(
                            "name nominalQuota",
                            name=_LABEL_NAME,
                            nominalQuota=_QUANTITY,
                            borrowingLimit=_QUANTITY,
                            lendingLimit=_QUANTITY,
                        ),
                        1,
                    ),
                ),
                1,
            ),
        )
    ),
    cohortName=_NAME,
    queueingStrategy=_one_of("StrictFIFO", "BestEffortFIFO"),
    namespaceSelector=_SELECTOR,
    flavorFungibility=_object(
        whenCanBorrow=_TRY,
        whenCanPreempt=_TRY,
        preference=_one_of("BorrowingOverPreemption", "PreemptionOverBorrowing"),
    ),
    preemption=_object(
        reclaimWithinCohort=_one_of("Never", "LowerPriority", "Any"),
        borrowWithinCohort=_object(policy=_one_of("Never", "LowerPriority"), maxPriorityThreshold={"type": "integer"}),
        withinClusterQueue=_one_of("Never", "LowerPriority", "LowerOrNewerEqualPriority"),
    ),
    admissionChecksStrategy=_ANY,
    stopPolicy=_STOP,
    fairSharing=_object(weight=_QUANTITY),
    admissionScope=_ANY,
    concurrentAdmissionPolicy=_ANY,
)
# `numProcPerNode` is left out: Trainer has none since 2.2.
_TRAINING_RUNTIME = _object(
    "template",
    mlPolicy=_object(numNodes=_COUNT, torch=_object(), mpi=_ANY, flux=_ANY),
    podGroupPolicy=_ANY,
    template=_object(
        "spec",
        metadata=_object(labels=_LABELS, annotations=_LABELS),
        spec=_object(
            "replicatedJobs",
            replicatedJobs=_list(
                _object(
                    "name template",
                    name=_NAME,
                    groupName=_TEXT,
                    replicas=_COUNT,
                    dependsOn=_list(_ANY),
                    # A batch/v1 Job's; checked as one.
                    template=_object("spec", metadata=_object(labels=_LABELS, annotations=_LABELS), spec=_ANY),
                ),
                1,
            ),
            network=_object(enableDNSHostnames=_TRUTH, subdomain=_NAME, publishNotReadyAddresses=_TRUTH),
            successPolicy=_object("operator", operator=_one_of("All", "Any"), targetReplicatedJobs=_list(_TEXT)),
            failurePolicy=_object(
                maxRestarts=_COUNT,
                restartStrategy=_one_of("Recreate", "BlockingRecreate", "InPlaceRestart"),
                rules=_list(
                    _object(
                        "name action",
                        name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
                        action=_one_of(
                            "FailJobSet",
                            "RestartJobSet",
                            "RestartJobSetAndIgnoreMaxRestarts",
                            "RestartJob",
                            "RestartJobAndIgnoreMaxRestarts",
                        ),
                        # The reasons of a Job's condition Failed (batch/v1), the only ones that JobSet's webhook takes.
                        onJobFailureReasons=_list(
                            _one_of(
                                "BackoffLimitExceeded",
                                "DeadlineExceeded",
                                "FailedIndexes",
                                "MaxFailedIndexesExceeded",
                                "PodFailurePolicy",
                            )
                        ),
                        onJobFailureMessagePatterns=_list(_TEXT),
                        targetReplicatedJobs=_list(_TEXT),
                    )
                ),
            ),
            startupPolicy=_ANY,
            suspend=_TRUTH,
            coordinator=_ANY,
            managedBy=_TEXT,
            ttlSecondsAfterFinished=_COUNT,
            volumeClaimPolicies=_ANY,
        ),
    ),
)
_STORE_REFERENCE = _object("name", kind=_one_of("SecretStore", "ClusterSecretStore"), name=_NAME)
_REMOTE = _object(
    "key",
    key=_TEXT,
    property=_TEXT,
    version=_TEXT,
    metadataPolicy=_one_of("None", "Fetch"),
    conversionStrategy=_one_of("Default", "Unicode"),
    decodingStrategy=_one_of("Auto", "Base64", "Base64URL", "None"),
)
_EXTERNAL_SECRET = _object(
    "secretStoreRef target",
    refreshInterval={"type": "string", "pattern": "^([0-9]+(h|m|s))+$"},
    refreshPolicy=_one_of("CreatedOnce", "Periodic", "OnChange"),
    secretStoreRef=_STORE_REFERENCE,
    target=_object(
        name=_NAME,
        creationPolicy=_one_of("Owner", "Orphan", "Merge", "None"),
        deletionPolicy=_one_of("Delete", "Merge", "Retain"),
        immutable=_TRUTH,
        template=_ANY,
    ),
    data=_list(_object("secretKey remoteRef", secretKey=_TEXT, remoteRef=_REMOTE)),
    dataFrom=_list(_object(extract=_REMOTE, find=_ANY, rewrite=_ANY, sourceRef=_ANY)),
)
_SECRET_STORE = _object(
    "provider",
    controller=_TEXT,
    refreshInterval=_COUNT,
    retrySettings=_object(maxRetries=_COUNT, retryInterval=_TEXT),
    conditions=_list(_object(namespaces=_list(_NAME), namespaceSelector=_SELECTOR, namespaceRegexes=_list(_TEXT))),
    provider=_object(
        "aws",
        aws=_object(
            "service region",
            service=_one_of("SecretsManager", "ParameterStore"),
            region=_TEXT,
            role=_TEXT,
            externalID=_TEXT,
            auth=_ANY,
        ),
    ),
)
_RULE = _object(
    "expr",
    alert=_TEXT,
    record=_TEXT,
    expr={"type": ["string", "integer"]},
    labels=_LABELS,
    annotations=_LABELS,
    keep_firing_for=_TEXT,
    **{"for": _TEXT},
)
_PROMETHEUS_RULE = _object(
    groups=_list(
        _object(
            "name",
            name=_TEXT,
            interval=_TEXT,
            rules=_list(_RULE),
            labels=_LABELS,
            limit=_COUNT,
            query_offset=_TEXT,
            partial_response_strategy=_TEXT,
        )
    )
)

_POD_MONITOR = _object(
    "selector podMetricsEndpoints",
    selector=_SELECTOR,
    namespaceSelector=_object(any=_TRUTH, matchNames=_list(_NAME)),
    jobLabel=_TEXT,
    podTargetLabels=_list(_TEXT),
    podMetricsEndpoints=_list(
        _object(
            port=_TEXT,
            path=_TEXT,
            interval=_TEXT,
            scrapeTimeout=_TEXT,
            scheme=_TEXT,
            honorLabels=_TRUTH,
            relabelings=_ANY,
            metricRelabelings=_ANY,
        ),
        1,
    ),
)

SPECS: dict[tuple[str, str], Schema] = {
    ("kueue.x-k8s.io/v1beta2", "Topology"): _TOPOLOGY,
    ("kueue.x-k8s.io/v1beta2", "ResourceFlavor"): _RESOURCE_FLAVOR,
    ("kueue.x-k8s.io/v1beta2", "LocalQueue"): _LOCAL_QUEUE,
    ("kueue.x-k8s.io/v1beta2", "ClusterQueue"): _CLUSTER_QUEUE,
    ("trainer.kubeflow.org/v1alpha1", "ClusterTrainingRuntime"): _TRAINING_RUNTIME,
    ("external-secrets.io/v1", "ExternalSecret"): _EXTERNAL_SECRET,
    ("external-secrets.io/v1", "ClusterSecretStore"): _SECRET_STORE,
    ("monitoring.coreos.com/v1", "PrometheusRule"): _PROMETHEUS_RULE,
    ("monitoring.coreos.com/v1", "PodMonitor"): _POD_MONITOR,
}
_OPTIONAL = {"ResourceFlavor"}
"""Kinds that need no spec."""


def is_custom(item: Object) -> bool:
    """Kubernetes' own groups have no dot, or end in .k8s.io without a subdomain like Kueue's."""
    group = str(item.get("apiVersion", "")).rpartition("/")[0]
    return "." in group and not re.fullmatch(r"[a-z]+(\.authorization)?\.k8s\.io", group)


def faults(item: Object) -> list[str]:
    """What our list of a custom resource's fields refuses."""
    key = (str(item.get("apiVersion")), str(item.get("kind")))
    if key not in SPECS:
        return [f"{key[0]} {key[1]}: its fields are not listed in infra/checks/custom_resources.py"]
    extra = sorted(item.keys() - {"apiVersion", "kind", "metadata", "spec"})
    found = [f"{name}: there is no such field" for name in extra]
    if "spec" not in item and key[1] in _OPTIONAL:
        return found
    validator = jsonschema.Draft202012Validator(
        {"type": "object", "properties": {"spec": SPECS[key]}, "required": ["spec"]}
    )
    found += [
        f"{'.'.join(map(str, error.absolute_path)) or 'the object'}: {error.message}"
        for error in validator.iter_errors(item)
    ]
    return found or [text for rule in _RULES.get(key[1], ()) for text in rule(item["spec"])]


def _queue_rules(spec: Object) -> Iterator[str]:
    for group in spec["resourceGroups"]:
        for flavor in group["flavors"]:
            listed = [resource["name"] for resource in flavor["resources"]]
            if listed != group["coveredResources"]:
                yield f"flavor {flavor['name']}: its resources must be the covered ones, in their order"
    if "cohortName" not in spec and "borrowingLimit" in str(spec):
        yield "borrowingLimit: it needs a cohortName"


def _flavor_rules(spec: Object) -> Iterator[str]:
    if "topologyName" in spec and not spec.get("nodeLabels"):
        yield "topologyName: at least one nodeLabel is needed with it"


def _topology_rules(spec: Object) -> Iterator[str]:
    levels = [level["nodeLabel"] for level in spec["levels"]]
    if len(set(levels)) < len(levels):
        yield "levels: each label once"
    if "kubernetes.io/hostname" in levels[:-1]:
        yield "levels: kubernetes.io/hostname can only be the last"


def _runtime_rules(spec: Object) -> Iterator[str]:
    from infra.checks.manifests import core_faults

    for job in spec["template"]["spec"]["replicatedJobs"]:
        whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": job["name"]}, **job["template"]}
        whole["metadata"] = {"name": job["name"], **(job["template"].get("metadata") or {})}
        yield from (f"replicatedJobs {job['name']}: {text}" for text in core_faults(whole))


_RULES: dict[str, tuple[Callable[[Object], Iterator[str]], ...]] = {
    "ClusterQueue": (_queue_rules,),
    "ResourceFlavor": (_flavor_rules,),
    "Topology": (_topology_rules,),
    "ClusterTrainingRuntime": (_runtime_rules,),
}
