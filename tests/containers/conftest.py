"""The container engine and the images; `make test-containers` has built them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import docker
import pytest


@dataclass(frozen=True)
class Images:
    prefix: str
    tag: str

    def name(self, target: str) -> str:
        return f"{self.prefix}{target}:{self.tag}"


@pytest.fixture(scope="session")
def docker_host() -> str:
    """The address of the Docker API; scripts/test-containers.sh starts podman's where there is no docker."""
    return os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")


@pytest.fixture(scope="session")
def engine(docker_host: str) -> Iterator[docker.DockerClient]:
    client = docker.DockerClient(docker_host, timeout=300)
    yield client
    client.close()


@pytest.fixture(scope="session")
def images() -> Images:
    return Images(os.environ.get("MMBERT_IMAGE_PREFIX", "mmbert-"), os.environ.get("MMBERT_IMAGE_TAG", "latest"))
