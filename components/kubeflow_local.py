"""A compiled KFP pipeline on this machine: each container by KFP's local Docker runner, over any Docker API.

Two things that KFP 2.16 does wrong locally are done right here. Its Docker runner has containers removed as soon as
they end, and when that comes first takes any exit code for success. And it starts all loops after all other tasks,
whoever waits for whom, and knows no exit handlers: so the order of the tasks and the loops are ours.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import docker
import requests
from kfp import dsl
from kfp.components import load_component_from_file
from kfp.local import (
    DockerRunner,
    docker_task_handler,
    executor_output_utils,
    graph_utils,
    logging_utils,
    task_dispatcher,
    utils,
)
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineTaskSpec

from components import profiles
from components.contract import get_component
from components.environment import SECRETS, SETTINGS
from components.launchers import ComponentFailedError, containers, work
from components.launchers.output import Shown, lines_of
from mmbert import logs, progress
from mmbert.errors import InfrastructureError, MmbertError, UserError

_ERRORS: dict[int, type[MmbertError]] = {2: UserError, 3: InfrastructureError}
_WHATEVER_HAPPENS = PipelineTaskSpec.TriggerPolicy.TriggerStrategy.Value("ALL_UPSTREAM_TASKS_COMPLETED")
_OPTIONS = "--image-prefix, --image-tag or --image"
_SIGNAL = 128
"""Exit codes from here on are signals."""


class _ContainerFailedError(Exception):
    def __init__(self, code: int, last_line: str, state: Mapping[str, Any]) -> None:
        super().__init__(code, last_line)
        self.code, self.last_line, self.state = code, last_line, state

    @property
    def killed(self) -> bool:
        return self.code == work.KILLED or bool(self.state.get("OOMKilled"))


def run_pipeline(package: Path, arguments: Mapping[str, str]) -> None:
    """Run a compiled pipeline to its end, one container after the other.

    The containers get this process's variables of SECRETS and SETTINGS. Raises what the first failing container's exit
    code says: UserError, InfrastructureError or ComponentFailedError.
    """
    containers.connect().close()
    spec = load_component_from_file(str(package)).pipeline_spec
    scratch = tempfile.TemporaryDirectory(prefix="mmbert-kfp-", ignore_cleanup_errors=True)
    counting = progress.shown(f"pipeline {spec.pipeline_info.name}", _count(spec), "steps")
    with scratch as folder, _true_exit_codes(), _colours(), counting as advance:
        run = _Run(spec, Path(folder), advance)
        missing = [name for name, i in spec.root.input_definitions.parameters.items() if not i.is_optional]
        for name in set(missing) - arguments.keys():
            raise UserError(f"the pipeline {spec.pipeline_info.name} needs {name}")
        run.dag(spec.root, dict(arguments))


def _count(spec: Any) -> int | None:
    """The steps of a pipeline; None where there are loops over what a step makes."""
    components, counted = dict(spec.components.items()), 0
    waiting = [spec.root]
    while waiting:
        for task in waiting.pop().dag.tasks.values():
            component = components[task.component_ref.name]
            if task.WhichOneof("iterator"):
                return None
            if component.WhichOneof("implementation") == "dag":
                waiting.append(component)
            else:
                counted += 1
    return counted


class _Run:
    def __init__(self, spec: Any, folder: Path, advance: progress.Advance) -> None:
        self.components = dict(spec.components.items())
        self.executors = spec.deployment_spec["executors"]
        self.folder, self.advance = folder, advance
        self.name = f"local-{spec.pipeline_info.name}"
        # One for all steps: what they make in this run belongs together.
        self.id = f"{self.name}-{uuid.uuid4().hex}"
        self.steps = 0

    def dag(self, component: Any, given: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs of a component that is a graph."""
        values = _with_defaults(component, given)
        made: dict[str, dict[str, Any]] = {}
        tasks = component.dag.tasks
        always = [name for name, task in tasks.items() if task.trigger_policy.strategy == _WHATEVER_HAPPENS]
        order = graph_utils.topological_sort_tasks(dict(tasks))[::-1]
        try:
            for name in order:
                if name not in always:
                    made[name] = self._task(tasks[name], values, made)
        except BaseException:
            for name in always:
                # What failed first is the reason to tell.
                with _shown_only():
                    self._task(tasks[name], values, made, json.dumps({"state": "FAILED"}))
            raise
        for name in always:
            self._task(tasks[name], values, made, json.dumps({"state": "SUCCEEDED"}))
        outputs = component.dag.outputs.parameters.items()
        return {
            key: made[one.value_from_parameter.producer_subtask][one.value_from_parameter.output_parameter_key]
            for key, one in outputs
        }

    def _task(
        self, task: Any, values: Mapping[str, Any], made: Mapping[str, Mapping[str, Any]], status: str = ""
    ) -> dict[str, Any]:
        component = self.components[task.component_ref.name]
        given = {
            name: self.id if _asks_for_the_run(one) else _given(one, values, made, status)
            for name, one in task.inputs.parameters.items()
        }
        if task.WhichOneof("iterator"):
            loop = task.parameter_iterator
            items = given[loop.items.input_parameter] if loop.items.input_parameter else json.loads(loop.items.raw)
            rounds = [self.dag(component, {**given, loop.item_input: item}) for item in items]
            return {key: [one[key] for one in rounds] for key in component.output_definitions.parameters}
        if component.WhichOneof("implementation") == "dag":
            return self.dag(component, given)
        return self._container(
            task.task_info.name, task.component_ref.name, component, _with_defaults(component, given)
        )

    def _container(self, name: str, component_name: str, component: Any, given: Mapping[str, Any]) -> dict[str, Any]:
        executor = utils.struct_to_executor_spec(self.executors[component.executor_label])
        self.steps += 1
        folder = self.folder / str(self.steps)
        folder.mkdir()
        folder.chmod(0o777)  # the container may run as anyone
        environment = {name: os.environ[name] for name in (*SECRETS, *SETTINGS, logs.QUIET) if name in os.environ}
        # KFP leaves these out locally.
        environment |= {one.name: one.value for one in executor.container.env}
        try:
            outputs, _ = task_dispatcher.run_single_task_implementation(
                pipeline_resource_name=self.name,
                component_name=component_name,
                component_spec=component,
                executor_spec=executor,
                arguments=dict(given),
                pipeline_root=str(folder),
                runner=DockerRunner(environment=environment, **_settings(executor.container)),
                raise_on_error=True,
                block_input_artifact=False,
                unique_pipeline_id=self.id,
            )
        except _ContainerFailedError as failed:
            if failed.killed:
                limit, key = _gib(executor.container), _memory_key(executor.container, given)
                raise InfrastructureError(
                    work.about_memory(name, limit and round(limit, 3), key, bool(failed.state.get("OOMKilled")))
                ) from None
            ended = failed.code >= _SIGNAL
            error = _ERRORS.get(failed.code, InfrastructureError if ended else ComponentFailedError)
            raise error(f"step '{name}' ended with exit code {failed.code}: {failed.last_line}") from None
        self.advance(1)
        if missing := component.output_definitions.parameters.keys() - outputs.keys():
            raise ComponentFailedError(
                f"step '{name}' said it was done, but left no {', '.join(sorted(missing))}; its image is "
                f"{executor.container.image}"
            )
        return dict(outputs)


def _settings(container: Any) -> dict[str, Any]:
    """A step's share of the machine and its rights: what it may write is its own volume, its outputs and the cache."""
    share: dict[str, Any] = {"nano_cpus": int(container.resources.cpu_limit * 10**9)}
    if container.resources.accelerator.type:
        # With what CPUs there are.
        share = {"device_requests": [docker.types.DeviceRequest(count=-1, capabilities=[["gpu"]])]}
    return {
        "network_mode": containers.network(),
        "mounts": [docker.types.Mount("/work/cache", containers.CACHE_VOLUME)],
        **containers.RESTRICTED,
        **containers.memory_limits(_gib(container)),
        **share,
    }


def _gib(container: Any) -> float | None:
    """A step's memory limit; KFP's own number is in GB."""
    return container.resources.memory_limit * 10**9 / 2**30 or None


def _memory_key(container: Any, given: Mapping[str, Any]) -> str:
    """Where a step's memory limit comes from, for people."""
    words = list(container.command)
    if words[:2] != ["mmbert", "run"]:
        return "the pipeline's"
    return profiles.memory_key(get_component(words[2]), given)


def _asks_for_the_run(one: Any) -> bool:
    return bool(one.runtime_value.constant.string_value == dsl.PIPELINE_JOB_ID_PLACEHOLDER)


def _given(one: Any, values: Mapping[str, Any], made: Mapping[str, Mapping[str, Any]], status: str) -> Any:
    """A task's input: a constant, what another task made, an input of the graph, or how the others ended."""
    kind = one.WhichOneof("kind")
    if kind == "runtime_value":
        return executor_output_utils.pb2_value_to_python(one.runtime_value.constant)
    if kind == "task_output_parameter":
        return made[one.task_output_parameter.producer_task][one.task_output_parameter.output_parameter_key]
    return status if kind == "task_final_status" else values[one.component_input_parameter]


def _with_defaults(component: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    defaults = {
        name: executor_output_utils.pb2_value_to_python(one.default_value)
        for name, one in component.input_definitions.parameters.items()
        if one.HasField("default_value")
    }
    return {**defaults, **given}


@contextlib.contextmanager
def _shown_only() -> Iterator[None]:
    try:
        yield
    except MmbertError as error:
        print(error, flush=True)


@contextlib.contextmanager
def _true_exit_codes() -> Iterator[None]:
    """KFP's Docker runner with a container's own exit code as its result."""
    before = docker_task_handler.run_docker_container
    docker_task_handler.run_docker_container = _run_container
    try:
        yield
    finally:
        docker_task_handler.run_docker_container = before


@contextlib.contextmanager
def _colours() -> Iterator[None]:
    """KFP's messages without colours where none are wanted."""
    colour = logging_utils.Color
    before = {name: value for name, value in vars(colour).items() if name.isupper()}
    try:
        for name in before if not logs.in_colour() else ():
            setattr(colour, name, "")
        yield
    finally:
        for name, value in before.items():
            setattr(colour, name, value)


def _run_container(
    client: Any, image: str, command: Sequence[str], volumes: Mapping[str, Any], **arguments: Any
) -> int:
    """In place of KFP's own. Raises _ContainerFailedError instead of returning another code than 0."""
    found = _image(client, image)
    shown = Shown()
    if (wanted := arguments.get("nano_cpus")) is not None:
        # Engines refuse more CPUs than there are.
        arguments["nano_cpus"] = min(wanted, client.info()["NCPU"] * 10**9)
    try:
        line = containers.merged(command)
        container = client.containers.create(found.id, line, volumes=volumes, **arguments)
        try:
            container.start()
            shown.follow(lines_of(containers.output(container)))
            code = int(container.wait(timeout=None)["StatusCode"])
            container.reload()
        except BaseException:
            containers.stop(container)
            raise
        containers.remove(container)
    except (docker.errors.APIError, requests.RequestException) as error:
        raise InfrastructureError(f"{image}: the container could not be run to its end: {error}") from error
    last_line = shown.last_line(code)
    if code != 0:
        raise _ContainerFailedError(code, last_line, container.attrs["State"])
    return code


def _image(client: Any, name: str) -> Any:
    image = containers.find_image(client, name, _OPTIONS)
    # Other people's steps run here, too: their images have no such label.
    if "mmbert.code" in image.labels and containers.differs(image):
        raise containers.other(image, name, "its code is not this pipeline's", _OPTIONS)
    return image
