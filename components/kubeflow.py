"""The Kubeflow runner: makes a KFP pipeline's tasks of a workflow. One task is one container; URIs are parameters.

The lists that a recipe fixes (groups, variants, suites) are laid out when the pipeline is compiled: the recipe is known
then. A list known only when it runs (models) is worked off within one task: KFP's loops fail within exit handlers on
some servers, and hide from them how they ended on others. The first task fails where its recipe asks for another
layout than the compiled one.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from kfp import compiler, components, dsl
from kfp.dsl.pipeline_channel import PipelineChannel

from components import code, images, profiles
from components.contract import Component, get_component
from components.documents import LIST, ROOT_INPUT, STRING, Entry, component_document
from components.environment import CONFIG_MAP, SECRET, SECRETS, SETTINGS
from components.profiles.cluster import QUEUE_LABEL, Share, size
from components.recipe.component import fan_out
from components.workflows import add_languages
from mmbert.errors import UserError
from mmbert.recipe import load_recipe
from mmbert.recipe.loading import presets
from mmbert.recipe.new_languages import variants_for

_RECIPES = ("recipe", "languages_recipe")
"""Components that a workflow begins with, and whose lists are laid out."""
PIPELINES = Path(__file__).resolve().parent.parent / "dags" / "kubeflow"

# A server fills it in only where it is the whole value of a task's input.
_WORKFLOW_RUN = dsl.PIPELINE_JOB_ID_PLACEHOLDER
_WORKFLOW_RUN_INPUT = {"name": "workflow_run", "type": STRING, "description": "the run that this belongs to"}
_WORKFLOW_RUN_ARGUMENTS = ("--workflow-run", {"inputValue": "workflow_run"})
_RETRIES: dict[str, Any] = {
    "num_retries": 2,
    "backoff_duration": "10s",
    "backoff_factor": 2,
    "backoff_max_duration": "300s",
}


@dataclass(frozen=True)
class Layout:
    """What a pipeline is compiled for. `images` names single images by target, where prefix and tag are not enough."""

    preset: str = "tiny"
    overrides: Sequence[str] = ()
    image_prefix: str = "mmbert-"
    image_tag: str = "latest"
    images: Mapping[str, str] = field(default_factory=dict)
    gpus: int = 1
    """On each node of those components to which the profile gives GPUs and does not say how many."""

    def image(self, target: str) -> str:
        default = f"{self.image_prefix}{target}:{self.image_tag}"
        return self.images.get(target, images.named().get(target, default))


def compile_pipeline(workflow: str, layout: Layout, folder: Path) -> Path:
    """Write a workflow's compiled pipeline into `folder`. Raises UserError for a recipe that it cannot be made for."""
    if layout.preset not in presets() and not layout.preset.startswith("s3://"):
        raise UserError(
            f"--preset {layout.preset}: no preset; a recipe file has to lie where containers read it (s3://)"
        )
    source = PIPELINES / f"mmbert_{workflow}.py"
    found = importlib.util.spec_from_file_location(source.stem, source)
    if found is None or found.loader is None or not source.is_file():
        raise UserError(f"{source}: there is no such pipeline file; compile in a checkout of the project")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    path = folder / f"{source.stem}.yaml"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = module.pipeline(layout)
        folder.mkdir(parents=True, exist_ok=True)
        compiler.Compiler().compile(made, str(path))
    pipeline, platform = yaml.load_all(path.read_text("utf-8"), yaml.CSafeLoader)
    _share(pipeline, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"])
    path.write_text(yaml.dump_all([pipeline, platform], Dumper=yaml.CSafeDumper, sort_keys=False, width=120), "utf-8")
    return path


def render(workflow: Callable[..., Any], layout: Layout, root: Any, **own: Any) -> None:
    """Make a workflow's tasks inside a `dsl.pipeline` function; `own` are the workflow's own arguments."""
    runner = KubeflowRunner(root, layout, workflow)
    last = workflow(_Names(), layout.preset, list(layout.overrides), **own)
    with dsl.ExitHandler(runner.end(last)):
        workflow(runner, layout.preset, list(layout.overrides), **own)


class _Names:
    """Implements components.workflows.Runner; a handle is its task's name. KFP wants an exit task before the others."""

    def run(self, component: str, *, task: str = "", **_: Any) -> str:
        return task or component

    map = run

    def output(self, handle: str, name: str) -> str:
        return f"{handle}.{name}"


@dataclass(frozen=True)
class _Made:
    """What a task made: the handle that workflows pass on."""

    component: str
    task: Any
    label: str = ""


class KubeflowRunner:
    """Implements components.workflows.Runner inside a `dsl.pipeline` function."""

    def __init__(self, root: Any, layout: Layout, workflow: Callable[..., Any]) -> None:
        self.root = root
        self.layout = layout
        self._recipe = load_recipe(layout.preset, layout.overrides)
        self._lists = fan_out(self._recipe)
        if workflow is add_languages:
            self._lists["variants"] = variants_for(self._recipe, layout.overrides)

    def run(self, component: str, *, task: str = "", **arguments: Any) -> _Made:
        return self._run(component, task or component, arguments)

    def map(self, component: str, *, over: dict[str, Any], task: str = "", **arguments: Any) -> list[_Made]:
        laid_out = {name: items for name, items in over.items() if isinstance(items, list)}
        unknown = {name: items for name, items in over.items() if name not in laid_out}
        if not unknown:
            return list(self._each(component, task or component, laid_out, arguments))
        ((each, items),) = unknown.items()
        return list(self._each(component, task or component, laid_out, {**arguments, each: items}, each))

    def output(self, handle: _Made, name: str) -> Any:
        return self._lists[name] if handle.component in _RECIPES else handle.task.outputs[name]

    def end(self, last: Sequence[str]) -> Any:
        """The task that ends the workflow's run in MLflow, by what became of the last tasks."""
        document = {
            "name": "end",
            "inputs": [ROOT_INPUT, _WORKFLOW_RUN_INPUT],
            "implementation": {
                "container": {
                    "image": (image := self.layout.image("data")),
                    "env": _identity(image),
                    "command": ["mmbert", "kfp", "end"],
                    "args": [
                        *("--experiment", f"mmbert/{self._recipe.name}", "--root", {"inputValue": "root"}),
                        *_WORKFLOW_RUN_ARGUMENTS,
                        *(word for name in last for word in ("--last", name)),
                    ],
                }
            },
        }
        task = _component(json.dumps(document))(root=self.root, workflow_run=_WORKFLOW_RUN)
        return self._settle(task, get_component("recipe"), {})

    def _each(
        self, component: str, task: str, over: dict[str, list[Any]], arguments: dict[str, Any], each: str = ""
    ) -> Iterator[_Made]:
        for items in itertools.product(*over.values()):
            label = ", ".join(item.label if isinstance(item, _Made) else item for item in items)
            given = {**arguments, **dict(zip(over, items, strict=True))}
            yield self._run(component, task, given, label, each)

    def _run(self, component: str, task: str, arguments: dict[str, Any], label: str = "", each: str = "") -> _Made:
        """`each` names the argument that is a list, where the component takes one of its items."""
        item = get_component(component)
        entries: dict[str, list[Entry]] = {each: [Entry(f"{each}_list", LIST)]} if each else {}
        inputs: dict[str, Any] = {"root": self.root, "workflow_run": _WORKFLOW_RUN}
        for parameter in item.parameters:
            value = arguments.get(parameter.name, [] if parameter.is_list else parameter.default)
            if parameter.name == each:
                inputs[f"{each}_list"] = value
                continue
            if not parameter.is_list:
                inputs[parameter.name] = _value(value)
                continue
            # Not one input with a list: of that, KFP would make a text with placeholders in it.
            given = {f"{parameter.name}_{n}": _value(one) for n, one in enumerate(_flat(value), 1)}
            entries[parameter.name] = [Entry(name, _type(one)) for name, one in given.items()]
            inputs |= given
        document = component_document(item, entries, each)
        # Not as its display name: older servers look a task's outputs up by one name and keep them by the other.
        document["name"] = f"{task} {label}".strip()
        document["inputs"].append(_WORKFLOW_RUN_INPUT)
        container = document["implementation"]["container"]
        # More than one pod: such a step starts the object that Airflow's task does, and waits for it.
        launches = profiles.nodes(item, arguments) > 1 or profiles.ray_workers(item, arguments) > 0
        container["image"] = self.layout.image("orchestrator" if launches else item.image)
        container["env"] = self._launching(item) if launches else self._running(item, arguments)
        container["args"] += ["--task", task, *_WORKFLOW_RUN_ARGUMENTS]
        if launches:
            container["args"] += ["--launcher", "kubernetes"]
        if component in _RECIPES:
            for name, items in self._lists.items():
                container["args"] += ["--expect", name, json.dumps(items)]
        made = _component(json.dumps(document))(**inputs)
        made.set_retry(**_RETRIES)
        if launches:
            made.set_cpu_limit("1")
            return _Made(component, self._settle(made, get_component("recipe"), {}), label)
        self._give(made, item, arguments)
        return _Made(component, self._settle(made, item, arguments), label)

    def _running(self, item: Component, arguments: Mapping[str, Any]) -> dict[str, str]:
        """The environment of a step that does its work itself."""
        return {
            **_identity(self.layout.image(item.image)),
            **profiles.environment(item, arguments),
            profiles.PROCESSES: profiles.wanted_processes(item, arguments),
        }

    def _launching(self, item: Component) -> dict[str, str]:
        """The environment of a step that has others do its work: the profile itself, since its file is not there."""
        image = self.layout.image(item.image)
        if not images.has_digest(image):
            raise UserError(
                f"image {image} has no digest, and what the launcher kubernetes starts runs by digest only; name it: "
                f"--image {item.image}=REGISTRY/mmbert-{item.image}@sha256:..."
            )
        return {
            **_identity(self.layout.image("orchestrator")),
            f"MMBERT_IMAGE_{item.image.upper()}": image,
            "MMBERT_PROFILE": profiles.as_text(),
        }

    def _give(self, task: Any, item: Component, arguments: Mapping[str, Any]) -> None:
        """The share of a machine that the profile gives this component."""
        gpus = profiles.share(item, arguments).gpus
        processes = profiles.wanted_processes(item, arguments)
        count = (gpus or self.layout.gpus) if processes == "gpus" else int(processes)
        # Kubernetes takes a limit for a request too; each of these calls costs KFP tens of milliseconds.
        task.set_cpu_limit(str(profiles.threads(item, arguments) * count))
        if (memory := profiles.memory(item, arguments)) is not None:
            task.set_memory_limit(f"{int(memory * 1024)}Mi")
        if gpus or profiles.wants_gpus(item, arguments):
            task.set_accelerator_type("nvidia.com/gpu")
            task.set_accelerator_limit(gpus or self.layout.gpus)

    def _settle(self, task: Any, item: Component, arguments: Mapping[str, Any]) -> Any:
        """What holds for every task: no caching, since components find done work themselves, and its pod's needs."""
        task.set_caching_options(False)
        # Where the profile does not speak of clusters, only loaders need more than the 64 MB of shared memory of a pod.
        shares = profiles.has_cluster() or item.resources in ("train", "eval")
        task.platform_config["kubernetes"] = _platform(item, arguments, shares)
        return task


def _share(pipeline: dict[str, Any], platform: dict[str, Any]) -> None:
    """Let tasks that differ in their inputs only share their definition.

    KFP writes one for each; with 64 groups of languages a run would near the 1.5 MB that Kubernetes takes.
    """
    executors, parts = pipeline["deploymentSpec"]["executors"], pipeline["components"]
    labels = _same({name: [executor, platform.get(name)] for name, executor in executors.items()})
    for part in parts.values():
        if "executorLabel" in part:
            part["executorLabel"] = labels[part["executorLabel"]]
    names = _same(parts)
    for graph in (pipeline["root"], *parts.values()):
        for task in graph.get("dag", {}).get("tasks", {}).values():
            task["componentRef"]["name"] = names[task["componentRef"]["name"]]
    for found, kept in ((executors, labels), (platform, labels), (parts, names)):
        for name in found.keys() - set(kept.values()):
            del found[name]


def _same(values: Mapping[str, Any]) -> dict[str, str]:
    """For each name the first one with the same value."""
    first: dict[str, str] = {}
    return {name: first.setdefault(json.dumps(value, sort_keys=True), name) for name, value in values.items()}


@functools.cache
def _component(text: str) -> Any:
    return components.load_component_from_text(text)


def _identity(image: str) -> dict[str, str]:
    return {"MMBERT_IMAGE": image, code.WANTED: code.identity()}


def _platform(item: Component, arguments: Mapping[str, Any], shares_memory: bool) -> dict[str, Any]:
    """Variables from the secret and the config map, volumes, and which nodes, as the package kfp-kubernetes writes it.

    (kubernetes_executor_config.proto.) Nodes, queue and sizes are the profile's, where it speaks of a cluster.
    """
    secrets = [{"secretKey": name, "envVar": name} for name in SECRETS]
    settings = [{"configMapKey": name, "envVar": name} for name in SETTINGS]
    return {
        **(_placement(profiles.share(item, arguments)) if profiles.has_cluster() else {}),
        **_volumes(item, arguments, shares_memory),
        "secretAsEnv": [{"secretName": SECRET, "keyToEnv": secrets, "optional": True}],
        "configMapAsEnv": [{"configMapName": CONFIG_MAP, "keyToEnv": settings, "optional": True}],
    }


def _volumes(item: Component, arguments: Mapping[str, Any], shares_memory: bool) -> dict[str, Any]:
    share, sized = profiles.share(item, arguments), profiles.has_cluster()
    # The images' own volume, which Kubernetes does not know: where a cluster makes pods' root file systems read-only.
    work: dict[str, Any] = {"volumeName": "work", "mountPath": "/work"}
    # torch's loader workers hand over batches there.
    memory: dict[str, Any] = {"volumeName": "shared-memory", "mountPath": "/dev/shm", "medium": "Memory"}  # noqa: S108
    if sized:
        memory["sizeLimit"] = size(share.shared_memory)
    shared = [memory] if shares_memory else []
    if not share.scratch_class:
        return {"emptyDirMounts": [{**work, **({"sizeLimit": size(share.scratch)} if sized else {})}, *shared]}
    claim = {
        **work,
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": share.scratch_class,
        "size": size(share.scratch),
    }
    return {"genericEphemeralVolume": [claim], **({"emptyDirMounts": shared} if shared else {})}


def _placement(share: Share) -> dict[str, Any]:
    placed: dict[str, Any] = {"imagePullPolicy": "IfNotPresent"}
    if share.node_selector:
        placed["nodeSelector"] = {"labels": dict(share.node_selector)}
    if share.tolerations:
        # All as the proto has it: `tolerationSeconds` too.
        placed["tolerations"] = [dict(one) for one in share.tolerations]
    if share.queue:
        placed["podMetadata"] = {"labels": {QUEUE_LABEL: share.queue}}
    if secret := profiles.cluster().image_pull_secret:
        placed["imagePullSecret"] = [{"secretName": secret}]
    if share.deadline_hours is not None:
        placed["activeDeadlineSeconds"] = str(int(share.deadline_hours * 3600))
    return placed


def _flat(value: Any) -> list[Any]:
    return [one for part in value for one in _flat(part)] if isinstance(value, list) else [value]


def _value(value: Any) -> Any:
    return value.task.outputs["uri"] if isinstance(value, _Made) else value


def _type(value: Any) -> str:
    is_list = isinstance(value, PipelineChannel) and str(value.channel_type).upper() in {"LIST", "JSONARRAY"}
    return LIST if is_list else STRING
