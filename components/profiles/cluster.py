"""A profile's section `kubernetes`: where pods go, by resource class and phase, and what they get there."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from components.contract import ResourceClass
from mmbert.errors import UserError

CLASSES = get_args(ResourceClass)
PHASES = ("pretrain", "extend", "decay")
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"


@dataclass(frozen=True)
class Share:
    """What a class of components gets on the cluster."""

    nodes: int = 1
    gpus: int = 0
    """A node."""
    queue: str = ""
    """Kueue's LocalQueue; empty where there is none."""
    priority: str = ""
    """Of a PriorityClass."""
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()
    topology: Mapping[str, str] = field(default_factory=dict)
    """`required` or `preferred`, and the node label within one value of which all nodes lie."""
    resources: Mapping[str, Any] = field(default_factory=dict)
    """More that a node has to give, by Kubernetes' name."""
    scratch: float = 20
    """GiB of disk at /work."""
    scratch_class: str = ""
    """The storage class of a volume for it; empty: the node's own disk."""
    shared_memory: float = 2
    """GiB at /dev/shm; they count towards the memory limit."""
    restarts: int = 0
    """How often each node is started again after an error that is worth it."""
    grace_seconds: int = 60
    deadline_hours: float | None = None
    ray_workers: int = 0
    """Of a Ray cluster; 0: no Ray."""


@dataclass(frozen=True)
class Cluster:
    namespace: str
    service_account: str
    training: Literal["trainer", "job"] = "job"
    training_runtime: str = "mmbert-torch"
    pending_minutes: float = 30
    queue_minutes: float | None = None
    """None: work waits in a queue for its quota without end."""
    image_pull_secret: str = ""
    classes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def share(self, resources: str, phase: str) -> Share:
        """A class's share, with defaults for what it does not say."""
        return Share(**self.given(resources, phase))

    def given(self, resources: str, phase: str) -> dict[str, Any]:
        """What is said of a class; what it says for a phase (`train.decay`) goes over what it says for all."""
        return {**self.classes.get(resources, {}), **self.classes.get(f"{resources}.{phase}", {})}


def size(gib: float) -> str:
    """GiB as Kubernetes writes them."""
    return f"{int(gib)}Gi" if gib == int(gib) else f"{int(gib * 1024)}Mi"


def parsed(section: Any, wrong: Callable[[str], UserError]) -> Cluster:
    """The section as it stands in a profile. Raises what `wrong` makes of a sentence that names the key."""
    given = _mapping(section, "kubernetes", wrong)
    values = _checked(given, _SECTION, "kubernetes", wrong)
    for key in ("namespace", "service_account"):
        if key not in values:
            raise wrong(f"kubernetes.{key} is missing; name the pods' {key.replace('_', ' ')}")
    classes = _mapping(values.pop("classes", {}), "kubernetes.classes", wrong)
    return Cluster(**values, classes={name: _share(name, value, wrong) for name, value in classes.items()})


def _share(name: str, section: Any, wrong: Callable[[str], UserError]) -> dict[str, Any]:
    resources, _, phase = name.partition(".")
    if resources not in CLASSES or (phase and phase not in PHASES):
        raise wrong(
            f"kubernetes.classes.{name}: there is no such class; it is one of {', '.join(CLASSES)}, or one of these "
            f"with a phase ({', '.join(PHASES)}), as train.decay"
        )
    path = f"kubernetes.classes.{name}"
    values = _checked(_mapping(section, path, wrong), _CLASS, path, wrong)
    if "ray" in values:
        ray = _checked(_mapping(values.pop("ray"), f"{path}.ray", wrong), {"workers": _COUNT}, f"{path}.ray", wrong)
        if "workers" not in ray:
            raise wrong(f"{path}.ray.workers is missing; give the number of Ray's workers")
        values["ray_workers"] = ray["workers"]
    if "tolerations" in values:
        values["tolerations"] = tuple(values["tolerations"])
    return values


@dataclass(frozen=True)
class _Rule:
    holds: Callable[[Any], bool]
    says: str


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_text_by_text(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for pair in value.items() for text in pair)


def _is_toleration(value: Any) -> bool:
    known = {"key", "operator", "value", "effect", "tolerationSeconds"}
    effects = ("NoSchedule", "PreferNoSchedule", "NoExecute")
    return (
        isinstance(value, dict)
        and value.keys() <= known
        and value.get("operator", "Equal") in ("Equal", "Exists")
        and value.get("effect", "NoSchedule") in effects
    )


def _is_topology(value: Any) -> bool:
    return _is_text_by_text(value) and len(value) == 1 and value.keys() <= {"required", "preferred"}


def _is_resources(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str)
        and ("/" in name or name.startswith("hugepages-"))
        and (_is_count(amount, 1) or (isinstance(amount, str) and re.fullmatch(r"\d+[KMGT]i", amount)))
        for name, amount in value.items()
    )


_NAME = _Rule(
    lambda value: isinstance(value, str) and bool(re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", value)),
    "a name of small letters, digits and -",
)
_NAME_OR_NONE = _Rule(lambda value: value == "" or _NAME.holds(value), f"{_NAME.says}, or empty")
_COUNT = _Rule(lambda value: _is_count(value, 1), "a number from 1 on")
_COUNT_OR_NONE = _Rule(lambda value: _is_count(value, 0), "a number from 0 on")
_GIB = _Rule(_is_number, "a number of GiB above 0")
_SECTION = {
    "namespace": _NAME,
    "service_account": _NAME,
    "training": _Rule(lambda value: value in ("trainer", "job"), "trainer (Kubeflow Trainer's TrainJob) or job"),
    "training_runtime": _NAME,
    "pending_minutes": _Rule(_is_number, "a number of minutes above 0"),
    "queue_minutes": _Rule(_is_number, "a number of minutes above 0"),
    "image_pull_secret": _NAME_OR_NONE,
    "classes": _Rule(lambda value: isinstance(value, dict), "a mapping by resource class"),
}
_CLASS = {
    "nodes": _COUNT,
    "gpus": _COUNT_OR_NONE,
    "queue": _NAME_OR_NONE,
    "priority": _NAME_OR_NONE,
    "node_selector": _Rule(_is_text_by_text, "node labels with their values, both text (quote numbers and true)"),
    "tolerations": _Rule(
        lambda value: isinstance(value, list) and all(map(_is_toleration, value)),
        "a list of Kubernetes' tolerations (key, operator Equal or Exists, value, effect, tolerationSeconds)",
    ),
    "topology": _Rule(_is_topology, "`required` or `preferred` with a node label, as topology.kubernetes.io/zone"),
    "resources": _Rule(
        _is_resources, "amounts by a resource's full name, as `vpc.amazonaws.com/efa: 32` or `hugepages-2Mi: 5120Mi`"
    ),
    "scratch": _GIB,
    "scratch_class": _NAME_OR_NONE,
    "shared_memory": _GIB,
    "restarts": _COUNT_OR_NONE,
    "grace_seconds": _COUNT,
    "deadline_hours": _Rule(_is_number, "a number of hours above 0"),
    "ray": _Rule(lambda value: isinstance(value, dict), "a mapping with `workers`"),
}


def _mapping(value: Any, path: str, wrong: Callable[[str], UserError]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise wrong(f"{path} is {value!r}; it must be a mapping")
    return dict(value)


def _checked(
    given: Mapping[str, Any], rules: Mapping[str, _Rule], path: str, wrong: Callable[[str], UserError]
) -> dict[str, Any]:
    for key, value in given.items():
        if key not in rules:
            raise wrong(f"{path}.{key}: there is no such key; it has {', '.join(rules)}")
        if not rules[key].holds(value):
            raise wrong(f"{path}.{key} is {value!r}; it must be {rules[key].says}")
    return dict(given)
