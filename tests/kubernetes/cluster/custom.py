"""The fields of custom resources, where no schema is to be had offline. None of them was checked against a cluster.

- TrainJob and ClusterTrainingRuntime: Kubeflow Trainer 2.4, API reference trainer.kubeflow.org/v1alpha1, and its
  guides Runtime Guide, ML Policy, Job Template, Runtime Patches. (Before 2.2 `podTemplateOverrides` stood where
  `runtimePatches` are, and `mlPolicy.torch` held `numProcPerNode`.)
- The template of a runtime: JobSet, API reference jobset.x-k8s.io/v1alpha2.
- RayJob: KubeRay CRD API reference, ray.io/v1.
- Workload is Kueue's to write, so only its metadata is looked at.
"""

from __future__ import annotations

from typing import Any

# A name with `!` must be given. Types are those of JSON; MAP holds texts by text, and CORE names a part of Kubernetes'
# own API that is checked by its own schema.
TEXT, INTEGER, NUMBER, TRUTH, MAP, TIME, ANY = "text", "integer", "number", "truth", "map", "text", "any"


def core(name: str) -> tuple[str, str]:
    """A part that Kubernetes' schema knows: PodTemplate, JobTemplate, Containers' env, ..."""
    return ("core", name)


_META = {"labels": MAP, "annotations": MAP}
_CONTAINER_PATCH = {
    "name!": TEXT,
    "env": core("env"),
    "volumeMounts": core("volumeMounts"),
    "securityContext": core("container.securityContext"),
}
_POD_PATCH = {
    "serviceAccountName": TEXT,
    "volumes": core("volumes"),
    "initContainers": [_CONTAINER_PATCH],
    "containers": [_CONTAINER_PATCH],
    "imagePullSecrets": [{"name": TEXT}],
    "securityContext": core("pod.securityContext"),
    "nodeSelector": MAP,
    "affinity": core("affinity"),
    "tolerations": core("tolerations"),
    "schedulingGates": [{"name!": TEXT}],
}
_REPLICATED_PATCH = {
    "name!": TEXT,
    "template": {"metadata": _META, "spec": {"template": {"metadata": _META, "spec": _POD_PATCH}}},
}
_RUNTIME_PATCH = {
    "manager!": TEXT,
    "time": TIME,
    "trainingRuntimeSpec": {"template": {"metadata": _META, "spec": {"replicatedJobs": [_REPLICATED_PATCH]}}},
}
_INITIALIZER = {"storageUri": TEXT, "env": core("env"), "secretRef": {"name": TEXT}}
TRAIN_JOB = {
    "runtimeRef!": {"name!": TEXT, "apiGroup": TEXT, "kind": TEXT},
    "initializer": {"dataset": _INITIALIZER, "model": _INITIALIZER},
    "trainer": {
        "image": TEXT,
        "command": [TEXT],
        "args": [TEXT],
        "env": core("env"),
        "numNodes": INTEGER,
        "resourcesPerNode": core("resources"),
        "numProcPerNode": INTEGER,
    },
    "runtimePatches": [_RUNTIME_PATCH],
    "suspend": TRUTH,
    "activeDeadlineSeconds": INTEGER,
    "managedBy": TEXT,
}

JOB_SET = {
    "replicatedJobs": [
        {
            "name!": TEXT,
            "groupName": TEXT,
            "template!": core("job template"),
            "replicas": INTEGER,
            "dependsOn": [{"name!": TEXT, "status!": TEXT}],
        }
    ],
    "network": {"enableDNSHostnames": TRUTH, "subdomain": TEXT, "publishNotReadyAddresses": TRUTH},
    "successPolicy": {"operator!": TEXT, "targetReplicatedJobs": [TEXT]},
    "failurePolicy": {
        "maxRestarts": INTEGER,
        "restartStrategy": TEXT,
        "rules": [
            {
                "name": TEXT,
                "action!": TEXT,
                "onJobFailureReasons": [TEXT],
                "onJobFailureMessagePatterns": [TEXT],
                "targetReplicatedJobs": [TEXT],
            }
        ],
    },
    "startupPolicy": {"startupPolicyOrder!": TEXT},
    "suspend": TRUTH,
    "coordinator": {"replicatedJob!": TEXT, "jobIndex": INTEGER, "podIndex": INTEGER},
    "managedBy": TEXT,
    "ttlSecondsAfterFinished": INTEGER,
    "volumeClaimPolicies": [{"templates": ANY, "retentionPolicy": {"whenDeleted": TEXT}}],
}
RUNTIME = {
    "mlPolicy": {
        "numNodes": INTEGER,
        "torch": {},
        "mpi": {
            "numProcPerNode": INTEGER,
            "mpiImplementation": TEXT,
            "sshAuthMountPath": TEXT,
            "runLauncherAsNode": TRUTH,
        },
        "flux": ANY,
        "jax": {},
        "xgboost": {},
    },
    "podGroupPolicy": {"coscheduling": {"scheduleTimeoutSeconds": INTEGER}, "volcano": {"networkTopology": ANY}},
    "template": {"metadata": _META, "spec": JOB_SET},
}

_RAY_SERVICE = core("service")
RAY_CLUSTER = {
    "headGroupSpec!": {
        "template!": core("pod template"),
        "headService": _RAY_SERVICE,
        "enableIngress": TRUTH,
        "resources": MAP,
        "labels": MAP,
        "rayStartParams": MAP,
        "serviceType": TEXT,
    },
    "workerGroupSpecs": [
        {
            "groupName!": TEXT,
            "template!": core("pod template"),
            "replicas": INTEGER,
            "minReplicas": INTEGER,
            "maxReplicas": INTEGER,
            "numOfHosts": INTEGER,
            "idleTimeoutSeconds": INTEGER,
            "resources": MAP,
            "labels": MAP,
            "rayStartParams": MAP,
            "scaleStrategy": {"workersToDelete": [TEXT]},
            "suspend": TRUTH,
        }
    ],
    "rayVersion": TEXT,
    "enableInTreeAutoscaling": TRUTH,
    "autoscalerOptions": ANY,
    "authOptions": ANY,
    "headServiceAnnotations": MAP,
    "gcsFaultToleranceOptions": ANY,
    "upgradeStrategy": ANY,
    "networkPolicy": ANY,
    "suspend": TRUTH,
    "managedBy": TEXT,
}
RAY_JOB = {
    "activeDeadlineSeconds": INTEGER,
    "preRunningDeadlineSeconds": INTEGER,
    "waitingTTLSeconds": INTEGER,
    "backoffLimit": INTEGER,
    "rayClusterSpec": RAY_CLUSTER,
    "submitterPodTemplate": core("pod template"),
    "metadata": MAP,
    "clusterSelector": MAP,
    "submitterConfig": {"backoffLimit": INTEGER},
    "managedBy": TEXT,
    "deletionStrategy": ANY,
    "entrypoint": TEXT,
    "runtimeEnvYAML": TEXT,
    "jobId": TEXT,
    "submissionMode": TEXT,
    "entrypointResources": TEXT,
    "entrypointNumCpus": NUMBER,
    "entrypointNumGpus": NUMBER,
    "ttlSecondsAfterFinished": INTEGER,
    "shutdownAfterJobFinishes": TRUTH,
    "suspend": TRUTH,
}

FIELDS: dict[str, Any] = {
    "TrainJob": TRAIN_JOB,
    "ClusterTrainingRuntime": RUNTIME,
    "JobSet": JOB_SET,
    "RayJob": RAY_JOB,
    "RayCluster": RAY_CLUSTER,
    "Workload": ANY,
}
