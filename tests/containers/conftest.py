"""The container engine and the images; `make test-containers` has built them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import docker
import pytest
from docker.errors import DockerException

from tests.fixtures_stack import Server


@dataclass(frozen=True)
class Images:
    prefix: str
    tag: str

    def name(self, target: str) -> str:
        return f"{self.prefix}{target}:{self.tag}"


@pytest.fixture(scope="session")
def docker_host() -> Iterator[str]:
    """The address of a Docker API: what DOCKER_HOST or Docker's socket gives, else podman's own for these tests."""
    try:
        docker.from_env().ping()
    except DockerException:
        folder = Path(tempfile.mkdtemp(prefix="podman-"))  # a socket's path must be short
        address = f"unix://{folder}/podman.sock"
        command = ["podman", "system", "service", "--time=0", address]
        server = Server(command, dict(os.environ), folder / "log", lambda: _answers(address))
        try:
            server.start()
            yield address
        finally:
            server.kill()
            shutil.rmtree(folder)
    else:
        yield os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")


def _answers(address: str) -> bool:
    try:
        client = docker.DockerClient(address)
        try:
            return bool(client.ping())
        finally:
            client.close()
    except DockerException:
        return False


@pytest.fixture(scope="session")
def engine(docker_host: str) -> Iterator[docker.DockerClient]:
    client = docker.DockerClient(docker_host, timeout=300)
    yield client
    client.close()


@pytest.fixture(scope="session")
def images() -> Images:
    return Images(os.environ.get("MMBERT_IMAGE_PREFIX", "mmbert-"), os.environ.get("MMBERT_IMAGE_TAG", "latest"))
