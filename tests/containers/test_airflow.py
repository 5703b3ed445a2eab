"""Airflow with components in containers: who stops a task, or the stack, stops its container."""

from __future__ import annotations

import json
import os
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator

import docker
import pytest

from tests.containers.conftest import Images
from tests.local_stack import LocalStack

pytestmark = pytest.mark.containers

DAG = "/api/v2/dags/mmbert_pretrain/dagRuns"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, docker_host: str, images: Images) -> Iterator[LocalStack]:
    stack = LocalStack.new(tmp_path_factory.mktemp("stack"))
    variables = {"MMBERT_LAUNCHER": "docker", "DOCKER_HOST": docker_host}
    variables |= {"MMBERT_IMAGE_PREFIX": images.prefix, "MMBERT_IMAGE_TAG": images.tag}
    try:
        up = stack.run("up", **variables)
        assert up.returncode == 0, up.stdout + up.stderr
        yield stack
    finally:
        stack.run("down")


def until(what: Callable[[], object], seconds: float = 120) -> object:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, what
        time.sleep(0.1)
    return found


def curating(engine: docker.DockerClient) -> list[str]:
    """The states of the containers that curate."""
    found = engine.containers.list(all=True, filters={"label": "mmbert.component=curate"}, sparse=True)
    return [container.attrs["State"] for container in found]


def started(stack: LocalStack, engine: docker.DockerClient, name: str) -> str:
    """A run whose curation is at work; its id."""
    body = {"logical_date": None, "conf": {"preset": "tiny", "overrides": [], "run_name": name}}
    run = stack.airflow(DAG, body, stack.token())["dag_run_id"]
    until(lambda: "running" in curating(engine))
    return str(run)


def test_a_task_that_is_marked_failed_leaves_no_container(stack: LocalStack, engine: docker.DockerClient) -> None:
    run = urllib.parse.quote(started(stack, engine, "marked"))
    token = stack.token()
    tasks = stack.airflow(f"{DAG}/{run}/taskInstances?limit=100", token=token)["task_instances"]
    for task in tasks:
        if task["task_id"] == "curate":
            index = "" if task["map_index"] < 0 else f"/{task['map_index']}"
            request = urllib.request.Request(
                f"http://127.0.0.1:{stack.airflow_port}{DAG}/{run}/taskInstances/curate{index}",
                data=json.dumps({"new_state": "failed"}).encode(),
                headers={"Content-Type": "application/json", "Authorization": f"Bearer {token}"},
                method="PATCH",
            )
            urllib.request.urlopen(request, timeout=30).close()  # noqa: S310
    until(lambda: not curating(engine), 60)
    until(lambda: stack.airflow(f"{DAG}/{run}", token=token)["state"] == "failed")


def test_the_stack_goes_down_without_leaving_a_container(stack: LocalStack, engine: docker.DockerClient) -> None:
    started(stack, engine, "down")
    down = stack.run("down", DOCKER_HOST=os.environ.get("DOCKER_HOST", ""))
    assert down.returncode == 0, down.stdout + down.stderr
    until(lambda: not curating(engine), 30)
    assert stack.processes() == []
