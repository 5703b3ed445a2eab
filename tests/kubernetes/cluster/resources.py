"""The kinds of objects that the stand-in serves."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """A kind of object and where it is served (Kubernetes API Concepts, "Resource URIs")."""

    group: str
    version: str
    plural: str
    kind: str
    is_namespaced: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def resource(self) -> str:
        """As messages name it: `pods`, `jobs.batch`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def is_custom(self) -> bool:
        """Defined by a CustomResourceDefinition, not by Kubernetes itself."""
        return "." in self.group and not self.group.endswith(".k8s.io")


NAMESPACE = Kind("", "v1", "namespaces", "Namespace", is_namespaced=False)
NODE = Kind("", "v1", "nodes", "Node", is_namespaced=False)
POD = Kind("", "v1", "pods", "Pod")
SERVICE = Kind("", "v1", "services", "Service")
EVENT = Kind("", "v1", "events", "Event")
SECRET = Kind("", "v1", "secrets", "Secret")
CONFIG_MAP = Kind("", "v1", "configmaps", "ConfigMap")
SERVICE_ACCOUNT = Kind("", "v1", "serviceaccounts", "ServiceAccount")
JOB = Kind("batch", "v1", "jobs", "Job")
PRIORITY_CLASS = Kind("scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass", is_namespaced=False)
TRAIN_JOB = Kind("trainer.kubeflow.org", "v1alpha1", "trainjobs", "TrainJob")
RUNTIME = Kind(
    "trainer.kubeflow.org", "v1alpha1", "clustertrainingruntimes", "ClusterTrainingRuntime", is_namespaced=False
)
JOB_SET = Kind("jobset.x-k8s.io", "v1alpha2", "jobsets", "JobSet")
RAY_JOB = Kind("ray.io", "v1", "rayjobs", "RayJob")
RAY_CLUSTER = Kind("ray.io", "v1", "rayclusters", "RayCluster")
WORKLOAD = Kind("kueue.x-k8s.io", "v1beta2", "workloads", "Workload")

KINDS = (
    NAMESPACE, NODE, POD, SERVICE, EVENT, SECRET, CONFIG_MAP, SERVICE_ACCOUNT, JOB, PRIORITY_CLASS, TRAIN_JOB, RUNTIME,
    JOB_SET, RAY_JOB, RAY_CLUSTER, WORKLOAD,
)  # fmt: skip


def find(group: str, version: str, plural: str) -> Kind | None:
    """The kind that is served at this place."""
    return next((kind for kind in KINDS if (kind.group, kind.version, kind.plural) == (group, version, plural)), None)


def named(name: str) -> Kind:
    """By its kind or plural: `Pod`, `pods`. Raises KeyError."""
    for kind in KINDS:
        if name in (kind.kind, kind.plural):
            return kind
    raise KeyError(f"the stand-in serves no kind {name}")


def of(document: dict[str, object]) -> Kind:
    """Of a document, by apiVersion and kind. Raises KeyError."""
    for kind in KINDS:
        if (document.get("apiVersion"), document.get("kind")) == (kind.api_version, kind.kind):
            return kind
    raise KeyError(f"the stand-in serves no {document.get('kind')} of {document.get('apiVersion')}")
