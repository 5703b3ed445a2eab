"""The launcher `docker`, with containers that do what containers do: fail, hang, are killed, say nothing."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import docker
import psutil
import pytest
from docker.models.containers import Container, ContainerCollection

from components import launchers, planning
from components.contract import get_component
from mmbert.errors import InfrastructureError, MmbertError, UserError
from mmbert.recipe import load_recipe, recipe_to_yaml
from tests.containers.conftest import Images
from tests.fixtures_stack import free_port

pytestmark = pytest.mark.containers

# What stands in for `mmbert` in the images of these tests, by what the root folder holds when it starts.
STAND_IN = r"""#!/bin/sh
root=$4
echo "started $(cat "$root/say")"
case $(cat "$root/do") in
  wait) while [ ! -e "$root/go" ]; do sleep 0.1; done; echo "error: it went on"; exit 2 ;;
  eat) exec python3.11 -c "x = bytearray(400 << 20); print(len(x))" ;;
  refuse) echo "error: the key is wrong"; exit 2 ;;
  break) echo "error: this is a bug"; exit 1 ;;
  nothing) exit 0 ;;
  terminate) kill -TERM $$ ;;
  talk) seq 100000 120000; echo "error: the end is told" >&2; exit 2 ;;
esac
"""


@pytest.fixture(scope="module")
def stand_in(engine: docker.DockerClient, images: Images) -> Iterator[Callable[[str], str]]:
    """Makes an image of the data target whose `mmbert` is STAND_IN, with this label for its code; returns its tag."""
    made = []

    def make(tag: str, label: str = "") -> str:
        lines = [f"FROM {images.name('data')}", "COPY stand-in /opt/mmbert/bin/mmbert"]
        lines += [f"LABEL mmbert.code={label}"] if label else []
        made.append(f"{images.prefix}data:{tag}")
        engine.images.build(fileobj=_context("\n".join(lines)), custom_context=True, tag=made[-1], rm=True)
        return tag

    yield make
    for name in made:
        engine.images.remove(name, force=True)


def _context(dockerfile: str) -> io.BytesIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, text, mode in (("Dockerfile", dockerfile, 0o644), ("stand-in", STAND_IN, 0o755)):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text.encode()), mode
            archive.addfile(entry, io.BytesIO(text.encode()))
    out.seek(0)
    return out


@pytest.fixture(scope="module")
def stand_in_tag(stand_in: Callable[[str], str]) -> str:
    return stand_in("stand-in")


class Place:
    """A root of one's own, and a piece of work in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        self.plan = planning.plan(get_component("recipe"), {"preset": "tiny", "overrides": []}, str(root))

    def launch(self, do: str, say: str = "") -> Any:
        (self.root / "say").write_text(say)
        (self.root / "do").write_text(do)
        return launchers.launch(self.plan, str(self.root), "recipe")

    def apart(self, do: str, say: str = "") -> subprocess.Popen[str]:
        """The same in a process of its own."""
        (self.root / "say").write_text(say)
        (self.root / "do").write_text(do)
        code = (
            "import sys\nfrom components import launchers, planning\nfrom components.contract import get_component\n"
            "plan = planning.plan(get_component('recipe'), {'preset': 'tiny', 'overrides': []}, sys.argv[1])\n"
            "launchers.launch(plan, sys.argv[1], 'recipe')"
        )
        return subprocess.Popen(
            [sys.executable, "-c", code, str(self.root)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, docker_host: str, stand_in_tag: str) -> Place:
    monkeypatch.setenv("DOCKER_HOST", docker_host)
    monkeypatch.setenv("MMBERT_LAUNCHER", "docker")
    monkeypatch.setenv("MMBERT_IMAGE_TAG", stand_in_tag)
    monkeypatch.setenv("MMBERT_WORKFLOW_RUN", "test")
    return Place(tmp_path / "root")


def containers(engine: docker.DockerClient, place: Place) -> list[Container]:
    wanted = {"label": f"mmbert.fingerprint={place.plan.fingerprint}"}
    return list(engine.containers.list(all=True, filters=wanted))


def one_running(engine: docker.DockerClient, place: Place) -> Container:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for container in containers(engine, place):
            if container.status == "running" and b"started" in container.logs():
                return container
        time.sleep(0.05)
    raise AssertionError("no container came up")


@pytest.mark.parametrize(
    ("do", "error", "message"),
    [
        ("refuse", UserError, "component 'recipe' ended with exit code 2: the key is wrong"),
        ("break", launchers.ComponentFailedError, "ended with exit code 1: this is a bug"),
        ("terminate", InfrastructureError, r"\(killed by SIGTERM\)"),
        ("talk", UserError, "ended with exit code 2: the end is told"),
        ("nothing", launchers.ComponentFailedError, "said it was done, but .* is not complete"),
    ],
)
def test_how_a_container_ended_is_how_the_component_did(
    place: Place, engine: docker.DockerClient, do: str, error: type[MmbertError], message: str
) -> None:
    with pytest.raises(error, match=message):
        place.launch(do)
    assert containers(engine, place) == []


def test_all_of_a_containers_output_is_shown(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """podman's own following of a container leaves out what it said last."""
    with pytest.raises(UserError):
        place.launch("talk")
    assert capsys.readouterr().out.splitlines()[1:] == [str(number) for number in range(100_000, 120_001)]


def test_a_container_without_memory_says_which_limit_it_had(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = tmp_path / "mine.yaml"
    profile.write_text("threads: {small: 1, data: 1, train: 1, eval: 1}\nmemory: {small: 0.125}\n")
    monkeypatch.setenv("MMBERT_PROFILE", str(profile))
    with pytest.raises(
        InfrastructureError, match=rf"memory limit of 0.125 GiB \(memory.small of the profile {profile}\)"
    ):
        place.launch("eat")


def test_a_killed_container_is_worth_a_retry(place: Place, engine: docker.DockerClient) -> None:
    with ThreadPoolExecutor(1) as threads:
        ended = threads.submit(place.launch, "wait")
        one_running(engine, place).kill("SIGKILL")
        with pytest.raises(InfrastructureError, match=r"container of 'recipe' was killed \(SIGKILL\)"):
            ended.result(60)
    assert containers(engine, place) == []


def test_a_second_start_meets_the_first(place: Place, engine: docker.DockerClient) -> None:
    """The task's worker is killed: its container goes on, and the next attempt waits for it."""
    first = place.apart("wait", say="first")
    container = one_running(engine, place)
    first.kill()
    first.wait()
    second = place.apart("wait", say="second")
    assert second.stdout is not None
    assert any("runs already; waiting for it" in line for line in iter(second.stdout.readline, ""))
    assert [c.id for c in containers(engine, place)] == [container.id]
    (place.root / "go").touch()
    printed = second.communicate(timeout=60)[0]
    assert "started first" in printed
    assert "ended with exit code 2: it went on" in printed
    assert containers(engine, place) == []


def test_a_stopped_task_stops_its_container(place: Place, engine: docker.DockerClient) -> None:
    task = place.apart("wait")
    one_running(engine, place)
    task.send_signal(signal.SIGINT)
    task.communicate(timeout=60)
    assert containers(engine, place) == []


def test_a_task_that_is_stopped_while_the_engine_makes_its_container_leaves_none(
    place: Place, engine: docker.DockerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    making = []

    def stopped(collection: ContainerCollection, image: str, **settings: Any) -> Container:
        # The engine goes on with what it was asked for.
        making.append(threading.Timer(0.3, real, (collection, image), settings))
        making[0].start()
        raise KeyboardInterrupt

    real = ContainerCollection.create
    monkeypatch.setattr(ContainerCollection, "create", stopped)
    with pytest.raises(KeyboardInterrupt):
        place.launch("wait")
    making[0].join()
    assert containers(engine, place) == []


def test_two_at_once_do_the_work_once(
    place: Place, images: Images, engine: docker.DockerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMBERT_IMAGE_TAG", images.tag)
    with ThreadPoolExecutor(2) as threads:
        made = [threads.submit(place.launch, "") for _ in range(2)]
        digests = {ended.result(120).digest for ended in made}
    assert len(digests) == 1
    assert containers(engine, place) == []


def test_a_component_gets_its_credentials_and_nothing_else(
    place: Place, engine: docker.DockerClient, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    canary = "canary-81c5e0"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", canary)
    monkeypatch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", "another-81c5e0")
    with ThreadPoolExecutor(1) as threads:
        ended = threads.submit(place.launch, "wait")
        container = one_running(engine, place)
        lines = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
        assert not [line for line in lines if canary in line]
        settings = dict(entry.split("=", 1) for entry in container.attrs["Config"]["Env"])
        (place.root / "go").touch()
        with pytest.raises(UserError):
            ended.result(60)
    assert settings["AWS_SECRET_ACCESS_KEY"] == canary
    assert "another-81c5e0" not in settings.values()
    assert settings["MMBERT_CACHE"] == "/work/cache"
    assert settings["OMP_NUM_THREADS"] == "1"
    assert canary not in capfd.readouterr().out


def test_an_image_that_is_not_there(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMBERT_IMAGE_TAG", "never-built")
    with pytest.raises(UserError, match="data:never-built is not there; build it with `make images`"):
        place.launch("refuse")


def test_a_registry_that_does_not_answer(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMBERT_IMAGE_PREFIX", f"127.0.0.1:{free_port()}/team/mmbert-")
    with pytest.raises(InfrastructureError, match=r"team/mmbert-data.* its registry does not answer: .*refused"):
        place.launch("refuse")


def test_an_image_of_other_code(place: Place, stand_in: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMBERT_IMAGE_TAG", stand_in("other-code", label="0123"))
    with pytest.raises(UserError, match=r"data:other-code is of .*, and its code is not this workflow's"):
        place.launch("refuse")


def test_no_docker_api(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    with pytest.raises(InfrastructureError, match=r"no Docker API answers at unix:///nowhere/docker\.sock"):
        place.launch("refuse")


def test_a_users_own_files_are_read_and_not_written(
    place: Place, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe file that lies outside of the root is mounted for the component that is given it."""
    monkeypatch.setenv("MMBERT_IMAGE_TAG", images.tag)
    recipe = tmp_path / "mine" / "recipe.yaml"
    recipe.parent.mkdir()
    recipe.write_text(recipe_to_yaml(load_recipe("tiny", ["name=mine"])))
    plan = planning.plan(get_component("recipe"), {"preset": str(recipe), "overrides": []}, str(place.root))
    made = launchers.launch(plan, str(place.root), "recipe")
    assert b"name: mine" in made.read("recipe.yaml")
    assert os.listdir(recipe.parent) == ["recipe.yaml"]  # noqa: PTH208
