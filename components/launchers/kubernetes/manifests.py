"""The objects that are created for a piece of work, as plain dicts. Nothing here talks to a cluster.

Sources: Kubernetes' API reference (Job v1 batch, Pod v1 core) and its pages "Jobs" and "Pod Security Standards";
Kubeflow Trainer 2.2, trainjob_types.go; KubeRay 1.4, rayjob_types.go and raycluster_types.go; Kueue, "Run A TrainJob"
and "Topology Aware Scheduling".
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components import code, images, profiles
from components.contract import Component
from components.environment import CONFIG_MAP, SECRET, SECRETS, SETTINGS
from components.launchers import work
from components.planning import Plan
from components.profiles.cluster import QUEUE_LABEL, Cluster, Share, size
from mmbert import storage
from mmbert.errors import UserError
from mmbert.ranks import GRACE, STOPPED

Object = dict[str, Any]

WORK_LABEL = "mmbert.dev/work"
WAITER = "mmbert.dev/waiter"
"""The annotation that says whose the object is: who started it, or met it last."""
PART_LABEL = "mmbert.dev/part"
INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
HEAD, SUBMITTER = "head", "submitter"
CONTAINER = "node"
"""The container's name; of a TrainJob's, Trainer wants it so."""
PORT = 29500
"""Where torch's processes meet."""
METRICS_PORT = 9464
"""Where Prometheus looks for metrics; MMBERT_METRICS_PORT of the config map, which turns them on, must be the same."""
GPU = "nvidia.com/gpu"
_USER = 10001
"""The images' (docker/Dockerfile)."""
_KEPT_SECONDS = 24 * 3600
_PASSED = ("MMBERT_AIRFLOW_TASK", "MMBERT_DEBUG", "MMBERT_QUIET", "MMBERT_USER", "MMBERT_WORKFLOW_RUN")
_PROGRAM = ["/usr/local/bin/dumb-init", "--"]
_FINAL = (1, 2, work.KILLED)
"""Exit codes after which another try would end the same: a bug, wrong input, out of memory."""


@dataclass(frozen=True)
class Kind:
    """A kind of object that holds a piece of work."""

    group: str
    version: str
    plural: str
    kind: str
    comes_with: str = ""
    """What has to be installed on the cluster for it."""

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}"


JOB = Kind("batch", "v1", "jobs", "Job")
TRAIN_JOB = Kind("trainer.kubeflow.org", "v1alpha1", "trainjobs", "TrainJob", "Kubeflow Trainer")
JOB_SET = Kind("jobset.x-k8s.io", "v1alpha2", "jobsets", "JobSet")
"""What Trainer makes of a TrainJob, under its name."""
RAY_JOB = Kind("ray.io", "v1", "rayjobs", "RayJob", "KubeRay")


@dataclass(frozen=True)
class Manifests:
    kind: Kind
    item: Object
    service: Object | None = None
    """A Service that `item` owns, where its pods have to find each other."""
    note: str = ""
    """What of the profile does not count for it, for people."""

    @property
    def name(self) -> str:
        return str(self.item["metadata"]["name"])

    @property
    def labels(self) -> Mapping[str, str]:
        return dict(self.item["metadata"]["labels"])


def manifests(plan: Plan, arguments: Sequence[str], root: str) -> Manifests:
    """What is created to run `mmbert` with these arguments: one object, and a Service where nodes meet by it.

    Raises UserError for a profile without a section `kubernetes`, an image without a digest, and for files of this
    machine, which pods do not see.
    """
    _check_places(plan, root)
    item, cluster = plan.component, profiles.cluster()
    share, nodes = profiles.share(item, plan.arguments), profiles.nodes(item, plan.arguments)
    made = _Made(plan, list(arguments), cluster, share, _image(item.image))
    if profiles.ray_workers(item, plan.arguments):
        return Manifests(RAY_JOB, _ray_job(made))
    if nodes > 1 and cluster.training == "trainer":
        return Manifests(TRAIN_JOB, _train_job(made), note=_not_counted(made))
    return Manifests(JOB, _job(made, nodes), _service(made) if nodes > 1 else None)


def check(item: Component, root: str) -> None:
    """Raise UserError for what can be seen to be wrong before the work is planned, which asks the store."""
    _check_root(root)
    profiles.cluster()
    _image(item.image)


@dataclass(frozen=True)
class _Made:
    """What all objects for a piece of work are made of."""

    plan: Plan
    arguments: list[str]
    cluster: Cluster
    share: Share
    image: str

    @property
    def name(self) -> str:
        # The store's address is the namespace's, whoever launches from wherever.
        return work.object_name(self.plan)

    @property
    def labels(self) -> dict[str, str]:
        return {
            "app.kubernetes.io/name": "mmbert",
            "app.kubernetes.io/component": self.plan.component.name,
            "app.kubernetes.io/managed-by": "mmbert",
            WORK_LABEL: work.digest(self.plan),
        }

    @property
    def annotations(self) -> dict[str, str]:
        run = os.environ.get("MMBERT_WORKFLOW_RUN", "")
        of_run = {"mmbert.dev/workflow-run": run} if run else {}
        return {"mmbert.dev/fingerprint": self.plan.fingerprint, "mmbert.dev/uri": self.plan.uri, **of_run}

    @property
    def given(self) -> Mapping[str, Any]:
        """What the profile says of its class itself, by key."""
        return self.cluster.given(self.plan.component.resources, str(self.plan.arguments.get("phase", "")))

    @property
    def command_line(self) -> str:
        return shlex.join(["mmbert", *self.arguments])


def _check_root(root: str) -> None:
    if not storage.is_s3(root):
        raise UserError(f"--root {root}: pods see no folder of this machine; give an s3:// prefix (MMBERT_ROOT)")


def _check_places(plan: Plan, root: str) -> None:
    _check_root(root)
    if files := work.local_files(plan):
        raise UserError(
            f"{', '.join(files)}: pods see no file of this machine; put it into the object store (s3://) and name it "
            "there, in the arguments or the recipe"
        )


def _image(target: str) -> str:
    name = images.image_name(target)
    if not images.has_digest(name):
        raise UserError(
            f"image {name} has no digest, and pods run by digest only; set MMBERT_IMAGE_{target.upper()} to "
            f"REGISTRY/mmbert-{target}@sha256:... with all of its 64 digits"
        )
    return name


def _metadata(made: _Made) -> Object:
    queue = {QUEUE_LABEL: made.share.queue} if made.share.queue else {}
    return {
        "name": made.name,
        "namespace": made.cluster.namespace,
        "labels": {**made.labels, **queue},
        "annotations": made.annotations,
    }


def _job(made: _Made, nodes: int) -> Object:
    share = made.share
    pod = _pod(made, [_container(made, made.arguments)])
    spec: Object = {
        "completions": nodes,
        "parallelism": nodes,
        # In an Indexed Job each node's pod counts.
        "backoffLimit": share.restarts * nodes,
        "podFailurePolicy": _failure_policy(),
        "ttlSecondsAfterFinished": _KEPT_SECONDS,
        "template": {"metadata": _pod_metadata(made), "spec": pod},
    }
    if share.deadline_hours is not None:
        spec["activeDeadlineSeconds"] = int(share.deadline_hours * 3600)
    if nodes > 1:
        spec["completionMode"] = "Indexed"
        pod["subdomain"] = made.name
        pod["containers"][0]["env"] += [
            {"name": "NNODES", "value": str(nodes)},
            {"name": "NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": f"metadata.annotations['{INDEX_LABEL}']"}}},
            # Jobs, "Indexed Job": pods are called by the Job's name and their index.
            {"name": "MASTER_ADDR", "value": f"{made.name}-0.{made.name}"},
            {"name": "MASTER_PORT", "value": str(PORT)},
        ]
    return {"apiVersion": JOB.api_version, "kind": JOB.kind, "metadata": _metadata(made), "spec": spec}


def _failure_policy() -> Object:
    """What is tried again without counting, and what fails at once; the first rule that fits counts."""
    return {
        "rules": [
            # Preempted, drained, evicted by the node, or the node is lost.
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            # A rank that stopped because another one was stopped.
            {"action": "Ignore", "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": [STOPPED]}},
            {
                "action": "FailJob",
                "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": list(_FINAL)},
            },
        ]
    }


def _service(made: _Made) -> Object:
    """Gives the pods of an Indexed Job names of their own; who creates it makes the Job its owner."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": made.name, "namespace": made.cluster.namespace, "labels": made.labels},
        "spec": {
            "clusterIP": "None",
            "selector": {WORK_LABEL: made.labels[WORK_LABEL]},
            # They look for each other before they are ready.
            "publishNotReadyAddresses": True,
            "ports": [{"name": "rendezvous", "port": PORT}],
        },
    }


def _train_job(made: _Made) -> Object:
    """What a TrainJob can say; the rest of its pods (restarts, security, priority, grace) is its runtime's.

    A container of a TrainJob has 128 arguments at most, and lists of shards have more: they are one text.
    """
    share, cluster = made.share, made.cluster
    if share.scratch_class:
        raise UserError(
            f"kubernetes.classes.{made.plan.component.resources}.scratch_class of the profile {profiles.shown_name()}: "
            f"a TrainJob's volumes are its runtime's; put it into {cluster.training_runtime}, or set "
            "kubernetes.training to job"
        )
    placed: Object = {
        "serviceAccountName": cluster.service_account,
        "volumes": _volumes(share),
        **_placement(made),
    }
    patch = {"metadata": _pod_metadata(made), "spec": placed}
    spec: Object = {
        "runtimeRef": {
            "apiGroup": TRAIN_JOB.group,
            "kind": "ClusterTrainingRuntime",
            "name": cluster.training_runtime,
        },
        "trainer": {
            "numNodes": share.nodes,
            "image": made.image,
            "command": [*_PROGRAM, "sh", "-c", f"exec {made.command_line}"],
            "env": _variables(made, _runtime_grace(made)),
            "resourcesPerNode": _resources(made),
        },
        "runtimePatches": [
            {
                "manager": "mmbert.dev/launcher",
                "trainingRuntimeSpec": {
                    "template": {
                        "spec": {"replicatedJobs": [{"name": CONTAINER, "template": {"spec": {"template": patch}}}]}
                    }
                },
            }
        ],
    }
    if share.deadline_hours is not None:
        spec["activeDeadlineSeconds"] = int(share.deadline_hours * 3600)
    return {"apiVersion": TRAIN_JOB.api_version, "kind": TRAIN_JOB.kind, "metadata": _metadata(made), "spec": spec}


OUR_RUNTIME: Mapping[str, Any] = {"restarts": 20, "priority": "mmbert-training", "grace_seconds": 600}
"""By the profile's keys: what a TrainJob cannot say, as infra/kubernetes/base/training-runtime.yaml says it."""


def _is_our_runtime(made: _Made) -> bool:
    return made.cluster.training_runtime == Cluster.training_runtime


def _runtime_grace(made: _Made) -> int:
    return int(OUR_RUNTIME["grace_seconds"]) if _is_our_runtime(made) else made.share.grace_seconds


def _not_counted(made: _Made) -> str:
    """Of what a TrainJob cannot say: that a profile says it all the same, and otherwise than the runtime."""
    same = OUR_RUNTIME if _is_our_runtime(made) else {}
    ignored = [key for key in OUR_RUNTIME if key in made.given and made.given[key] != same.get(key)]
    if not ignored:
        return ""
    return (
        f"{', '.join(ignored)} of kubernetes.classes.{made.plan.component.resources} (profile {profiles.shown_name()}) "
        f"do not count: a TrainJob's are those of its ClusterTrainingRuntime {made.cluster.training_runtime}"
    )


def _ray_job(made: _Made) -> Object:
    """A Ray cluster for this piece of work: its head runs the driver, and a pod submits it and shows what it prints."""
    share = made.share
    spec: Object = {
        "entrypoint": made.command_line,
        "submissionMode": "K8sJobMode",
        # KubeRay knows no exit codes: another cluster would be started for wrong input too.
        "backoffLimit": 0,
        "submitterConfig": {"backoffLimit": 0},
        "submitterPodTemplate": _ray_template(made, SUBMITTER),
        "shutdownAfterJobFinishes": True,
        "rayClusterSpec": {
            "headGroupSpec": {
                "rayStartParams": {"dashboard-host": "0.0.0.0"},  # noqa: S104 - within the pod's own network
                "template": _ray_template(made, HEAD),
            },
            "workerGroupSpecs": [
                {
                    "groupName": "workers",
                    "replicas": share.ray_workers,
                    "minReplicas": share.ray_workers,
                    "maxReplicas": share.ray_workers,
                    "rayStartParams": {},
                    "template": _ray_template(made, "worker"),
                }
            ],
        },
    }
    if share.deadline_hours is not None:
        spec["activeDeadlineSeconds"] = int(share.deadline_hours * 3600)
    return {"apiVersion": RAY_JOB.api_version, "kind": RAY_JOB.kind, "metadata": _metadata(made), "spec": spec}


def _ray_template(made: _Made, part: str) -> Object:
    """A pod of a Ray cluster. KubeRay writes the command of head, workers and submitter; Ray writes below /tmp."""
    container = _container(made, [])
    del container["args"], container["command"]
    container["name"] = f"ray-{part}"
    container["env"] = [*container["env"], {"name": "MMBERT_EXECUTOR", "value": "ray"}]
    container["volumeMounts"] = [*container["volumeMounts"], {"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108
    if part != HEAD:
        # The head runs the component.
        del container["ports"]
    if part == SUBMITTER:
        container["resources"] = {
            "requests": {"cpu": "500m", "memory": "1Gi", "ephemeral-storage": "1Gi"},
            "limits": {"memory": "1Gi"},
        }
    else:
        # KubeRay's own probes call wget, which the images do not have.
        probe = {"exec": {"command": ["sh", "-c", _RAY_PROBE]}, "periodSeconds": 30, "timeoutSeconds": 20}
        container |= {"livenessProbe": {**probe, "failureThreshold": 10}, "readinessProbe": {**probe}}
    pod = _pod(made, [container])
    pod["volumes"] = [*pod["volumes"], {"name": "tmp", "emptyDir": {}}]
    metadata = _pod_metadata(made)
    metadata["labels"] = {**metadata["labels"], PART_LABEL: part}
    return {"metadata": metadata, "spec": pod}


_RAY_PROBE = 'ray health-check --address "${FQ_RAY_IP:-127.0.0.1}:6379"'


def _pod_metadata(made: _Made) -> Object:
    annotations = dict(made.annotations)
    if made.share.queue:
        for how, key in made.share.topology.items():
            annotations[f"kueue.x-k8s.io/podset-{how}-topology"] = key
    return {"labels": made.labels, "annotations": annotations}


def _pod(made: _Made, containers: list[Object]) -> Object:
    share, cluster = made.share, made.cluster
    pod: Object = {
        "restartPolicy": "Never",
        "serviceAccountName": cluster.service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": share.grace_seconds,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": containers,
        "volumes": _volumes(share),
        **_placement(made),
    }
    if share.priority:
        pod["priorityClassName"] = share.priority
    return pod


def _placement(made: _Made) -> Object:
    """Which nodes: what may stand in a pod and in a TrainJob's patch alike."""
    share, placed = made.share, dict[str, Any]()
    if share.node_selector:
        placed["nodeSelector"] = dict(share.node_selector)
    if share.tolerations:
        placed["tolerations"] = [dict(one) for one in share.tolerations]
    if made.cluster.image_pull_secret:
        placed["imagePullSecrets"] = [{"name": made.cluster.image_pull_secret}]
    if share.topology and not share.queue:
        placed["affinity"] = {"podAffinity": _beside(share.topology, made.labels[WORK_LABEL])}
    return placed


def _beside(topology: Mapping[str, str], digest: str) -> Object:
    """All pods of the work within one value of a node label, for the scheduler; with a queue Kueue sees to it."""
    ((how, key),) = topology.items()
    term = {"topologyKey": key, "labelSelector": {"matchLabels": {WORK_LABEL: digest}}}
    if how == "required":
        return {"requiredDuringSchedulingIgnoredDuringExecution": [term]}
    return {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]}


def _volumes(share: Share) -> list[Object]:
    disk: Object = {"emptyDir": {"sizeLimit": size(share.scratch)}}
    if share.scratch_class:
        claim = {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": share.scratch_class,
            "resources": {"requests": {"storage": size(share.scratch)}},
        }
        disk = {"ephemeral": {"volumeClaimTemplate": {"spec": claim}}}
    memory = {"emptyDir": {"medium": "Memory", "sizeLimit": size(share.shared_memory)}}
    return [{"name": "work", **disk}, {"name": "shm", **memory}]


def _container(made: _Made, arguments: list[str]) -> Object:
    return {
        "name": CONTAINER,
        "image": made.image,
        "command": [*_PROGRAM, "mmbert"],
        "args": arguments,
        "env": _variables(made, made.share.grace_seconds),
        "ports": [{"name": "metrics", "containerPort": METRICS_PORT}],
        "resources": _resources(made),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "work", "mountPath": "/work"},
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - torch's loader workers hand over batches there
        ],
    }


def _variables(made: _Made, grace_seconds: int) -> list[Object]:
    item, arguments = made.plan.component, made.plan.arguments
    plain = {
        GRACE: str(grace_seconds),
        **profiles.environment(item, arguments),
        profiles.PROCESSES: profiles.wanted_processes(item, arguments),
        "MMBERT_IMAGE": made.image,
        code.WANTED: code.identity(),
        **{name: os.environ[name] for name in _PASSED if os.environ.get(name)},
    }
    return [
        *({"name": name, "value": value} for name, value in plain.items()),
        *({"name": name, "valueFrom": {"secretKeyRef": _reference(SECRET, name)}} for name in SECRETS),
        *({"name": name, "valueFrom": {"configMapKeyRef": _reference(CONFIG_MAP, name)}} for name in SETTINGS),
    ]


def _reference(name: str, key: str) -> Object:
    return {"name": name, "key": key, "optional": True}


def _resources(made: _Made) -> Object:
    """CPUs are asked for and not limited: a limit would stop threads in the middle of a step."""
    item, arguments, share = made.plan.component, made.plan.arguments, made.share
    wanted = profiles.wanted_processes(item, arguments)
    if wanted == "gpus" and not share.gpus:
        raise UserError(
            f"processes.{item.resources} of the profile {profiles.shown_name()} is gpus, and "
            f"kubernetes.classes.{item.resources} has no gpus; say how many GPUs of a node it gets"
        )
    processes = share.gpus if wanted == "gpus" else int(wanted)
    if 0 < share.gpus < processes:
        raise UserError(
            f"processes.{item.resources} of the profile {profiles.shown_name()} is {processes}, and "
            f"kubernetes.classes.{item.resources}.gpus {share.gpus}; each process needs a GPU of its own: give as "
            "many, or `gpus` for the processes"
        )
    both: dict[str, Any] = {name: str(amount) for name, amount in share.resources.items()}
    if share.gpus:
        both[GPU] = str(share.gpus)
    if (memory := profiles.memory(item, arguments)) is not None:
        _check_shared_memory(made, memory)
        both["memory"] = size(memory)
    requests = {"cpu": str(profiles.threads(item, arguments) * processes), **both}
    if not share.scratch_class:
        requests["ephemeral-storage"] = size(share.scratch)
    return {"requests": requests, **({"limits": both} if both else {})}


def _check_shared_memory(made: _Made, memory: float) -> None:
    shared = made.given.get("shared_memory", 0)
    if shared >= memory:
        raise UserError(
            f"kubernetes.classes.{made.plan.component.resources}.shared_memory is {shared:g} GiB, and "
            f"{profiles.memory_key(made.plan.component, made.plan.arguments)} is {memory:g}; what lies in /dev/shm "
            "counts towards the memory limit: give less, or raise the memory"
        )
