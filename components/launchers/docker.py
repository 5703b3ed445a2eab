"""The launcher `docker`: a component in a container of its image, through any Docker API (DOCKER_HOST; podman's too).

The container is named after its work, so that a second start meets the first: a task that is tried again, because its
worker was killed, waits for the container that still runs. Its root file system is read-only, it has no capabilities
and gains no rights; what it may write is a volume of its own, the cache volume, and a root that is a local folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import docker
import requests
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.types import DeviceRequest, Mount

from components import planning, profiles
from components.code import code_digest
from components.contract import Component
from components.launchers.output import Shown, lines_of
from components.planning import Plan
from mmbert import artifacts, storage
from mmbert.errors import InfrastructureError, UserError

if TYPE_CHECKING:
    from docker.models.containers import Container
    from docker.models.images import Image

_PASSED = ("MMBERT_", "AWS_", "S3_", "MLFLOW_", "HF_", "MALLOC_")
# They name places of this machine, or say how this process works.
_KEPT = {
    "MMBERT_CACHE", "MMBERT_SCRATCH", "MMBERT_COMMAND", "MMBERT_LAUNCHER", "MMBERT_STACK", "MMBERT_LOCAL_HOME",
    "MMBERT_UDHR", "MMBERT_COMMIT", "HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "AWS_CA_BUNDLE", "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
}  # fmt: skip
_CACHE = "mmbert-cache"
# torch's loader workers hand over batches there; the engine's default of 64 MB is too little.
_SHARED_MEMORY = "2g"
_STOP_SECONDS = 20
_POLL_SECONDS = 0.5
# Engines keep the two streams apart and their lines lose their order: the last would not be the error's.
_MERGED = ("sh", "-c", 'exec "$@" 2>&1', "sh")
_KILLED = 137
_CONFLICTS = (409, 500)
"""Docker's and podman's answers where a container of that name exists."""


def run(plan: Plan, arguments: list[str], root: str) -> tuple[int, str]:
    """Run `mmbert` with these arguments in a container; exit code and last line.

    Raises InfrastructureError where no Docker API answers or the container was killed, UserError where the image is not
    there or not of this code.
    """
    with _told(), contextlib.closing(_client()) as client:
        image = _image(client, plan.component)
        name = f"mmbert-{plan.component.name}-{hashlib.sha256(plan.uri.encode()).hexdigest()[:16]}"
        container = _started(client, name, _settings(plan, arguments, root, image))
        shown = Shown()
        try:
            with _ended_with_us(container):
                shown.follow(lines_of(_output(container)))
                code = int(container.wait(timeout=None)["StatusCode"])
                container.reload()
        except APIError as error:
            if not _gone(error):
                raise
            return _done_beside(plan, name)
        out_of_memory = bool(container.attrs["State"].get("OOMKilled"))
        _remove(container)
    if out_of_memory or code == _KILLED:
        raise InfrastructureError(_about_memory(plan, out_of_memory))
    return code, shown.last_line(code)


def _done_beside(plan: Plan, name: str) -> tuple[int, str]:
    """How it ended where another start of the same work saw the end and removed the container: what it left tells."""
    if artifacts.find(plan.uri) is None:
        raise InfrastructureError(f"container {name} was removed before it told how it ended; run it again")
    return 0, ""


def _gone(error: APIError) -> bool:
    # podman says it with 500.
    return isinstance(error, NotFound) or "no such container" in str(error.explanation)


def _about_memory(plan: Plan, certain: bool) -> str:
    limit = profiles.memory(plan.component, plan.arguments)
    name = plan.component.name
    if limit is None:
        return f"the container of '{name}' was killed (SIGKILL), by lack of memory perhaps; it has no limit of its own"
    gave = f"its memory limit of {limit:g} GiB ({profiles.memory_key(plan.component, plan.arguments)})"
    if certain:
        return f"the container of '{name}' ran out of memory: {gave}; raise it in a profile of your own"
    return f"the container of '{name}' was killed (SIGKILL): by {gave}, unless somebody stopped it"


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """The engine's own errors as ours."""
    try:
        yield
    except APIError as error:
        raise InfrastructureError(f"the Docker API refused: {error.explanation or error}") from error
    except (DockerException, OSError) as error:
        raise InfrastructureError(f"the Docker API at {_address()} failed ({error})") from error


def _address() -> str:
    return os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")


def _client() -> docker.DockerClient:
    try:
        client = docker.from_env()
        client.ping()
    except (DockerException, OSError) as error:
        raise InfrastructureError(
            f"no Docker API answers at {_address()} ({error}); start docker, or `podman system service --time=0 "
            "unix:///run/podman/podman.sock` and set DOCKER_HOST to that address"
        ) from error
    return client


def image_name(target: str) -> str:
    """The image of a target (orchestrator, data, train, eval): MMBERT_IMAGE_PREFIX, target and MMBERT_IMAGE_TAG."""
    prefix, tag = os.environ.get("MMBERT_IMAGE_PREFIX", "mmbert-"), os.environ.get("MMBERT_IMAGE_TAG", "latest")
    return f"{prefix}{target}:{tag}"


def _image(client: docker.DockerClient, item: Component) -> Image:
    name = image_name(item.image)
    try:
        image = client.images.get(name)
    except ImageNotFound:
        image = _pulled(client, name)
    if image.labels.get("mmbert.code") != code_digest():
        theirs = image.labels.get("org.opencontainers.image.revision") or "an unknown commit"
        raise UserError(
            f"image {name} is of {theirs}, and its code is not this workflow's; build it anew (`make images`), or name "
            "the image that belongs to this code: MMBERT_IMAGE_PREFIX, MMBERT_IMAGE_TAG"
        )
    return image


def _pulled(client: docker.DockerClient, name: str) -> Image:
    why = ""
    if "/" in name:
        try:
            return client.images.pull(name)
        except APIError as error:
            why = f" and cannot be pulled ({error.explanation})"
    raise UserError(
        f"image {name} is not there{why}; build it with `make images`, or name another: MMBERT_IMAGE_PREFIX, "
        "MMBERT_IMAGE_TAG"
    )


def _settings(plan: Plan, arguments: list[str], root: str, image: Image) -> dict[str, Any]:
    """What the container is created with."""
    item = plan.component
    owner = None if storage.is_s3(root) else _owner(root)
    volume = _CACHE if owner is None else f"{_CACHE}-{owner.split(':', maxsplit=1)[0]}"
    memory = profiles.memory(item, plan.arguments)
    gpus = [DeviceRequest(count=-1, capabilities=[["gpu"]])] if profiles.wants_gpus(item, plan.arguments) else []
    return {
        "image": image.id,
        "command": [*_MERGED, "mmbert", *arguments],
        "environment": {
            **_environment(os.environ),
            **profiles.environment(item, plan.arguments),
            "MMBERT_IMAGE": f"{image_name(item.image)}@{image.id}",
        },
        "labels": {"mmbert.fingerprint": plan.fingerprint, "mmbert.component": item.name},
        "network_mode": os.environ.get("MMBERT_DOCKER_NETWORK", "host"),
        "working_dir": str(Path.cwd()) if _relative(_named_files(plan)) else "/work",
        "mounts": [Mount("/work/cache", volume), *_mounts(plan, root)],
        "user": owner,
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "shm_size": _SHARED_MEMORY,
        "nano_cpus": profiles.threads(item, plan.arguments) * 10**9,
        **({"mem_limit": int(memory * 2**30), "memswap_limit": int(memory * 2**30)} if memory else {}),
        **({"device_requests": gpus} if gpus else {}),
    }


def _environment(ours: Mapping[str, str]) -> dict[str, str]:
    """The settings and credentials that a component reads; nothing else of this process's environment."""
    return {name: value for name, value in ours.items() if name.startswith(_PASSED) and name not in _KEPT}


def _owner(root: str) -> str:
    """The user and group of a root that is a local folder: a container that is another user could not write there."""
    folder = Path(root)
    folder.mkdir(parents=True, exist_ok=True)
    return f"{folder.stat().st_uid}:{folder.stat().st_gid}"


def _mounts(plan: Plan, root: str) -> list[Mount]:
    """The root where it is a local folder, and every local file or folder that arguments and recipe name, read-only."""
    mounts = {}
    for path in _named_files(plan):
        absolute = str(Path(path).absolute())
        mounts[absolute] = Mount(absolute, absolute, type="bind", read_only=True)
    if not storage.is_s3(root):
        absolute = str(Path(root).absolute())
        mounts[absolute] = Mount(absolute, absolute, type="bind")
    return [mounts[path] for path in sorted(mounts)]


def _named_files(plan: Plan) -> list[str]:
    recipe = planning.recipe_of(plan.arguments).model_dump(mode="json")
    return sorted({text for text in _strings([plan.arguments, recipe]) if _is_local_file(text)})


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
        yield from (value.rpartition("=")[2],) if "=" in value else ()  # an override
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, Iterable):
        for item in value:
            yield from _strings(item)


def _is_local_file(text: str) -> bool:
    """Whether this names a file or folder of this machine; what has no slash is a name and no path."""
    if "/" not in text.strip("/") or "://" in text or "\n" in text:
        return False
    with contextlib.suppress(OSError, ValueError):
        return Path(text).exists()
    return False


def _relative(paths: list[str]) -> bool:
    return any(not Path(path).is_absolute() for path in paths)


def _started(client: docker.DockerClient, name: str, settings: dict[str, Any]) -> Container:
    """A container of that name that runs: one that is there already, or a new one."""
    while True:
        try:
            container = client.containers.create(name=name, **settings)
        except APIError as error:
            with contextlib.suppress(NotFound):
                if error.status_code not in _CONFLICTS:
                    raise
                container = client.containers.get(name)
                if container.status in ("running", "created"):
                    print(f"{name} runs already; waiting for it", flush=True)
                    return _running(container)
                _remove(container)
                continue
            raise
        return _running(container)


def _running(container: Container) -> Container:
    try:
        container.start()  # nothing happens where it runs
    except APIError:
        _remove(container)
        raise
    return container


def _output(container: Container) -> Iterator[bytes]:
    """What the log holds that was not shown, again and again, at most a twentieth of the time.

    Following it would be simpler, but podman leaves lines out where there are many at once, and the last ones where the
    container ends; and its times stand within lines.
    """
    seen, pause = 0, _POLL_SECONDS
    while True:
        ended = _ended_within(container, pause)
        began, place = time.monotonic(), 0
        for chunk in container.logs(stream=True, follow=False):
            yield chunk[max(0, seen - place) :]
            place += len(chunk)
        if ended:
            return
        seen, pause = max(seen, place), max(_POLL_SECONDS, 20 * (time.monotonic() - began))


def _ended_within(container: Container, seconds: float) -> bool:
    try:
        container.wait(timeout=seconds)
    except requests.exceptions.RequestException:  # what a timeout is: urllib3's, in one of two coats
        return False
    return True


def _remove(container: Container) -> None:
    # Another start of the same work may have removed it first.
    with contextlib.suppress(APIError):
        container.remove(v=True, force=True)


@contextlib.contextmanager
def _ended_with_us(container: Container) -> Iterator[None]:
    """What stops the task stops its container; after a SIGKILL it goes on, and the task's next attempt meets it."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(APIError):
            container.stop(timeout=_STOP_SECONDS)
        _remove(container)
        raise
