"""The launcher `docker`: a component in a container of its image, through any Docker API (DOCKER_HOST; podman's too).

The container is named after its work, so that a second start meets the first: a task that is tried again, because its
worker was killed, waits for the container that still runs. Its root file system is read-only, it has no capabilities
and gains no rights; what it may write is a volume of its own, the cache volume, and a root that is a local folder.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import docker
from docker.errors import APIError, DockerException, NotFound
from docker.types import DeviceRequest, Mount

from components import images, profiles
from components.contract import Component
from components.launchers import containers, work
from components.launchers.output import Shown, lines_of
from components.planning import Plan
from mmbert import artifacts, storage
from mmbert.errors import InfrastructureError
from mmbert.ranks import STOPPED

if TYPE_CHECKING:
    from docker.models.containers import Container
    from docker.models.images import Image

_PASSED = ("AWS_", "S3_", "MLFLOW_", "HF_", "MALLOC_")
_PASSED_OURS = (
    "MMBERT_AIRFLOW_TASK", "MMBERT_AIRFLOW_URL", "MMBERT_DEBUG", "MMBERT_EXECUTOR", "MMBERT_LOG_FORMAT",
    "MMBERT_METRICS_PORT", "MMBERT_MLFLOW_URL", "MMBERT_QUIET", "MMBERT_ROOT", "MMBERT_USER", "MMBERT_WORKFLOW_RUN",
    "RAY_ADDRESS",
)  # fmt: skip
# They name files of this machine.
_KEPT = {
    "AWS_CA_BUNDLE", "AWS_CONFIG_FILE", "AWS_DEFAULT_PROFILE", "AWS_PROFILE", "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE", "HF_DATASETS_CACHE", "HF_HOME", "HF_HUB_CACHE", "HF_TOKEN_PATH",
}  # fmt: skip
_CONFLICTS = (409, 500)
"""Docker's and podman's answers where a container of that name exists."""
_LOCK = Path(__file__).resolve().parents[2] / "requirements" / "ml-image.txt"
"""In a checkout; where there is none, the code's digest alone tells."""
_MAKING_SECONDS = 2
"""Airflow kills a task 5 seconds after it told it to end."""
_SIGNAL = 128
"""Exit codes above are this and a signal's number."""


def run(plan: Plan, arguments: list[str], root: str, tell: Callable[[str], None]) -> tuple[int, str]:  # noqa: ARG001 (every launcher's arguments)
    """Run `mmbert` with these arguments in a container; exit code (negative: the signal that ended it) and last line.

    Raises InfrastructureError where no Docker API answers or the container was killed, UserError where the image is not
    there or not of this code.
    """
    with _told(), contextlib.closing(containers.connect()) as client:
        image = _image(client, plan.component)
        name = work.object_name(plan, work.store())
        container = _started(client, name, _settings(plan, arguments, root, image, client.info().get("NCPU")))
        shown = Shown()
        try:
            with _ended_with_us(container):
                shown.follow(lines_of(containers.output(container)))
                code = int(container.wait(timeout=None)["StatusCode"])
                container.reload()
        except APIError as error:
            if not _gone(error):
                raise
            return _done_beside(plan, name)
        state = container.attrs["State"]
        containers.remove(container)
    if code == work.KILLED or (code and state.get("OOMKilled")):
        limit, key = (
            profiles.memory(plan.component, plan.arguments),
            profiles.memory_key(plan.component, plan.arguments),
        )
        raise InfrastructureError(work.about_memory(plan.component.name, limit, key, bool(state.get("OOMKilled"))))
    return _SIGNAL - code if code > _SIGNAL and code != STOPPED else code, shown.last_line(code)


def _done_beside(plan: Plan, name: str) -> tuple[int, str]:
    """How it ended where another start of the same work saw the end and removed the container: what it left tells."""
    if artifacts.find(plan.uri) is None:
        raise InfrastructureError(f"container {name} was removed before it told how it ended; run it again")
    return 0, ""


def _gone(error: APIError) -> bool:
    # podman says it with 500.
    return isinstance(error, NotFound) or "no such container" in str(error.explanation)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """The engine's own errors as ours."""
    try:
        yield
    except APIError as error:
        raise InfrastructureError(f"the Docker API refused: {error.explanation or error}") from error
    except (DockerException, OSError) as error:
        raise InfrastructureError(f"the Docker API at {containers.address()} failed ({error})") from error


def _image(client: docker.DockerClient, item: Component) -> Image:
    name = images.image_name(item.image)
    image = containers.find_image(client, name, images.OPTIONS)
    if containers.differs(image):
        raise containers.other(image, name, "its code is not this workflow's", images.OPTIONS)
    if _LOCK.exists() and image.labels.get("mmbert.lock") != f"sha256:{artifacts.digest_file(_LOCK)}":
        raise containers.other(image, name, f"its packages are not those of {_LOCK.name}", images.OPTIONS)
    return image


def _full_name(name: str, image: Image) -> str:
    return name if "@" in name else f"{name}@{image.id}"


def _settings(plan: Plan, arguments: list[str], root: str, image: Image, cores: int | None) -> dict[str, Any]:
    """What the container is created with."""
    item = plan.component
    owner = None if storage.is_s3(root) else _owner(root)
    volume = f"{containers.CACHE_VOLUME}-{owner.split(':', maxsplit=1)[0]}" if owner else containers.CACHE_VOLUME
    mounts = _mounts(plan, root)
    return {
        "image": image.id,
        "command": containers.merged(["mmbert", *arguments]),
        "environment": {
            **_environment(os.environ),
            **profiles.environment(item, plan.arguments),
            "MMBERT_IMAGE": _full_name(images.image_name(item.image), image),
            "MMBERT_PROFILE": _profile(),
        },
        "labels": {"mmbert.fingerprint": plan.fingerprint, "mmbert.component": item.name},
        "network_mode": containers.network(),
        # Relative paths in a recipe are of the folder that the workflow was started in.
        "working_dir": str(Path.cwd())
        if any(not Path(path).is_absolute() for path in work.local_files(plan))
        else "/work",
        "mounts": [Mount("/work/cache", volume), *mounts],
        "user": owner,
        **containers.RESTRICTED,
        **containers.memory_limits(profiles.memory(item, plan.arguments)),
        **_processors(item, plan.arguments, cores),
    }


def _processors(item: Component, arguments: Mapping[str, Any], cores: int | None) -> dict[str, Any]:
    """CPUs, no more than the engine has; GPUs instead, with what CPUs there are, where the profile gives them."""
    if profiles.wants_gpus(item, arguments):
        return {"device_requests": [DeviceRequest(count=-1, capabilities=[["gpu"]])]}
    count = profiles.threads(item, arguments) * profiles.processes(item, arguments)
    return {"nano_cpus": min(count, cores or count) * 10**9}


def _environment(ours: Mapping[str, str]) -> dict[str, str]:
    """The settings and credentials that a component reads; nothing else of this process's environment."""
    return {
        name: value
        for name, value in ours.items()
        if name in _PASSED_OURS or (name.startswith(_PASSED) and name not in _KEPT)
    }


def _profile() -> str:
    name = profiles.name()
    return str(Path(name).absolute()) if name.endswith(".yaml") else name


def _owner(root: str) -> str:
    """The user and group of a root that is a local folder: a container that is another user could not write there."""
    folder = Path(root)
    folder.mkdir(parents=True, exist_ok=True)
    return f"{folder.stat().st_uid}:{folder.stat().st_gid}"


def _mounts(plan: Plan, root: str) -> list[Mount]:
    """The root where it is a local folder; the profile and what arguments and recipe name, where local, read-only."""
    mounts = {}
    for path in [*work.local_files(plan), *([_profile()] if _profile().endswith(".yaml") else [])]:
        absolute = str(Path(path).absolute())
        mounts[absolute] = Mount(absolute, absolute, type="bind", read_only=True)
    if not storage.is_s3(root):
        absolute = str(Path(root).absolute())
        mounts[absolute] = Mount(absolute, absolute, type="bind")
    return [mounts[path] for path in sorted(mounts)]


def _started(client: docker.DockerClient, name: str, settings: dict[str, Any]) -> Container:
    """A container of that name that runs: one that is there already, or a new one."""
    while True:
        try:
            container = client.containers.create(name=name, **settings)
        except APIError as error:
            if error.status_code not in _CONFLICTS:
                raise
            try:
                container = client.containers.get(name)
            except NotFound:
                if error.status_code == _CONFLICTS[0]:
                    continue  # it ended and was removed in between
                raise error from None
            if container.status in ("running", "created"):
                print(f"{name} runs already; waiting for it", flush=True)
                container.start()  # nothing happens where it runs
                return container
            containers.remove(container)
            continue
        except Exception:
            raise
        except BaseException:
            _remove_unstarted(client, name)
            raise
        try:
            container.start()
        except BaseException:
            containers.remove(container)
            raise
        return container


def _remove_unstarted(client: docker.DockerClient, name: str) -> None:
    """What stopped us met the engine making a container: it may still come, and nobody would start it."""
    until = time.monotonic() + _MAKING_SECONDS
    while time.monotonic() < until:
        with contextlib.suppress(DockerException, OSError):
            if (container := client.containers.get(name)).status == "created":
                containers.remove(container)
            return
        time.sleep(0.1)


@contextlib.contextmanager
def _ended_with_us(container: Container) -> Iterator[None]:
    """What stops the task stops its container. After an error of the engine's or a SIGKILL it goes on, and the task's
    next attempt meets it."""
    try:
        yield
    except Exception:
        raise
    except BaseException:
        containers.stop(container)
        raise
