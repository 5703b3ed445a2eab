"""What every container of ours has, and how its output is read: by the launcher `docker` and for pipelines run here."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import docker
from docker.errors import APIError, DockerException, ImageNotFound

from components.code import code_digest
from mmbert.errors import InfrastructureError, UserError

if TYPE_CHECKING:
    from docker.models.containers import Container
    from docker.models.images import Image

RESTRICTED: dict[str, Any] = {
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    # torch's loader workers hand over batches there; the engine's default of 64 MB is too little.
    "shm_size": "2g",
}
"""Rights and shared memory."""
CACHE_VOLUME = "mmbert-cache"
_STOP_SECONDS = 3
"""Airflow kills a task 5 seconds after it told it to end."""
_POLL_SECONDS = 0.5
_LOOK_SECONDS = 0.2
_UNREACHABLE = (
    "connection refused",
    "no such host",
    "i/o timeout",
    "Client.Timeout",
    "network is unreachable",
    "TLS handshake",
)
"""In the engines' messages."""


def address() -> str:
    return os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")


def connect() -> docker.DockerClient:
    """A client of the Docker API at DOCKER_HOST. Raises InfrastructureError where none answers."""
    try:
        client = docker.from_env()
        client.ping()
    except (DockerException, OSError) as error:
        raise InfrastructureError(
            f"no Docker API answers at {address()} ({error}); start docker, or `podman system service --time=0 "
            "unix:///tmp/podman.sock &` and set DOCKER_HOST=unix:///tmp/podman.sock"
        ) from error
    return client


def find_image(client: docker.DockerClient, name: str, options: str) -> Image:
    """An image by name, pulled where it is not here. `options` says how another one is named.

    A name without a registry or a user (`mmbert-data`) is not pulled: anybody could have put it into a public registry.
    Raises UserError where there is no such image, InfrastructureError where its registry does not answer.
    """
    with contextlib.suppress(ImageNotFound):
        return client.images.get(name)
    why = _not_pulled(client, name) if "/" in name else ""
    if why is None:
        return client.images.get(name)
    raise UserError(f"image {name} is not there{why}; build it with `make images`, or name another: {options}")


def _not_pulled(client: docker.DockerClient, name: str) -> str | None:
    """Pull an image; why it is not to be had."""
    try:
        # The client's own `images.pull` drops the error that comes while it is pulled.
        told = list(client.api.pull(name, stream=True, decode=True))
        why = next((str(line["error"]) for line in told if "error" in line), "")
    except APIError as error:
        why = str(error.explanation)
    if any(word in why for word in _UNREACHABLE):
        raise InfrastructureError(f"image {name} is not there, and its registry does not answer: {why}")
    return f" and cannot be pulled ({why})" if why else None


def differs(image: Image) -> bool:
    """Whether an image is of other code than this."""
    return bool(image.labels.get("mmbert.code") != code_digest())


def other(image: Image, name: str, why: str, options: str) -> UserError:
    """What to say of an image that is not this workflow's."""
    theirs = image.labels.get("org.opencontainers.image.revision") or "an unknown commit"
    return UserError(
        f"image {name} is of {theirs}, and {why}; build it anew (`make images`), or name the image that belongs to "
        f"this code: {options}"
    )


def network() -> str:
    return os.environ.get("MMBERT_DOCKER_NETWORK", "host")


def merged(command: Sequence[str]) -> list[str]:
    """A command whose two streams are one: engines keep them apart, and the last line would not be the error's."""
    return ["sh", "-c", 'exec "$@" 2>&1', "sh", *command]


def memory_limits(gib: float | None) -> dict[str, int]:
    """The limit without swap, which would make a component slow instead of ending it."""
    return {} if gib is None else {"mem_limit": int(gib * 2**30), "memswap_limit": int(gib * 2**30)}


def output(container: Container) -> Iterator[bytes]:
    """A running container's output until it ends: what its log holds that was not told, again and again.

    Reading takes at most a twentieth of the time. Following the log would be simpler, but podman leaves lines out where
    there are many at once, and the last ones where the container ends; and its times stand within lines.
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
        # A log that the engine cut is shorter than before: what comes after the cut is told.
        seen, pause = place, max(_POLL_SECONDS, 20 * (time.monotonic() - began))


def _ended_within(container: Container, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while container.status != "exited" and (left := deadline - time.monotonic()) > 0:
        time.sleep(min(left, _LOOK_SECONDS))
        container.reload()
    return bool(container.status == "exited")


def stop(container: Container) -> None:
    with contextlib.suppress(APIError):
        container.stop(timeout=_STOP_SECONDS)
    remove(container)


def remove(container: Container) -> None:
    """Remove a container and its volume; another start of the same work may have done so first."""
    with contextlib.suppress(APIError):
        container.remove(v=True, force=True)
