"""KFP pipelines in local containers, with a stand-in for what the images run: order, loops, exit codes, outputs."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from tests.containers.conftest import Images
from tests.fixtures_stack import ROOT, clean_environment

pytestmark = pytest.mark.containers

PREFIX = "mmbert-test-stand-in-"
SECRET, PASSWORD = "canary-77e0b4", "canary-90c3d1"


@pytest.fixture(scope="module")
def stand_in(engine: docker.DockerClient, images: Images, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("image")
    shutil.copy(Path(__file__).with_name("stand_in.py"), folder / "mmbert")
    (folder / "mmbert").chmod(0o755)
    (folder / "Dockerfile").write_text(f"FROM {images.name('data')}\nCOPY mmbert /opt/mmbert/bin/mmbert\n")
    image, _ = engine.images.build(path=str(folder), tag=f"{PREFIX}data:latest")
    for target in ("train", "eval"):
        image.tag(f"{PREFIX}{target}", "latest")
    yield
    engine.images.remove(image.id, force=True)


def run(docker_host: str, workflow: str, root: str, **variables: str) -> tuple[int, list[str], list[dict[str, Any]]]:
    """Exit code, the lines that it printed, and how each container was called."""
    ended = subprocess.run(
        [str(ROOT / ".venv" / "bin" / "mmbert"), "kfp", "run", workflow, "--root", root, "--image-prefix", PREFIX],
        env=clean_environment() | {
            "DOCKER_HOST": docker_host, "AWS_ENDPOINT_URL": "http://store", "AWS_SECRET_ACCESS_KEY": SECRET,
            "MLFLOW_TRACKING_USERNAME": "who", "MLFLOW_TRACKING_PASSWORD": PASSWORD,
        } | variables,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    lines = [line.strip() for line in ended.stdout.splitlines()]
    return ended.returncode, lines, [json.loads(line[7:]) for line in lines if line.startswith("CALLED ")]


def after(words: list[str], flag: str) -> list[str]:
    return [words[i + 1] for i, word in enumerate(words) if word == flag]


def test_a_pipeline_runs_in_order(docker_host: str, stand_in: None) -> None:
    code, lines, calls = run(docker_host, "reevaluate", "s3://b/r")
    assert code == 0, lines
    recipe, select, evaluate, promote, trend, end = (call["words"] for call in calls)
    assert [words[1] for words in (recipe, select, evaluate, promote, trend)] == [
        "recipe", "select", "evaluate", "promote", "trend",
    ]  # fmt: skip
    (models,) = after(evaluate, "--model")
    assert json.loads(models) == ["s3://b/r/model/first", "s3://b/r/model/second"]
    assert after(evaluate, "--each") == ["model"]
    assert after(evaluate, "--documents") == ['["s3://b/r/documents/one"]']
    (scores,) = after(trend, "--scores")
    assert len(set(json.loads(scores))) == 2
    assert after(promote, "--scores") == after(promote, "--champion-scores") == [scores]
    (workflow_run,) = {after(call["words"], "--workflow-run")[0] for call in calls}
    assert workflow_run.startswith("local-mmbert-reevaluate-")
    assert (after(end, "--root"), after(end, "--last")) == (["s3://b/r"], ["trend"])
    for call in calls:
        seen = call["environment"]
        assert (seen["AWS_ENDPOINT_URL"], seen["AWS_SECRET_ACCESS_KEY"]) == ("http://store", SECRET)
        assert (seen["MLFLOW_TRACKING_USERNAME"], seen["MLFLOW_TRACKING_PASSWORD"]) == ("who", PASSWORD)
        assert seen["HOME"] == "/work"
        assert seen["OMP_NUM_THREADS"] == "1" or call is calls[-1]


def test_a_failing_container_fails_the_run_with_its_code_and_its_last_line(
    engine: docker.DockerClient, docker_host: str, stand_in: None
) -> None:
    # KFP's own runner takes about five of six of these for successes.
    for _ in range(2):
        code, lines, calls = run(docker_host, "reevaluate", "s3://b/fails-recipe")
        assert code == 2
        assert lines[-1] == "error: step 'recipe' ended with exit code 2: what was wrong, in one line"
        assert "step 'end' ended with exit code 1: the last step failed, too" in lines
        assert [call["words"][1] for call in calls] == ["recipe", "end"]
        assert [line for line in lines if line.startswith("line ")] == [f"line {n}" for n in range(2000)]
    assert not engine.containers.list(all=True, filters={"ancestor": f"{PREFIX}data:latest"})


def test_a_killed_container_names_its_memory_limit(docker_host: str, stand_in: None, tmp_path: Path) -> None:
    profile = tmp_path / "own.yaml"
    profile.write_text("threads: {small: 64, data: 1, train: 1, eval: 1}\nmemory: {small: 2}\n", "utf-8")
    code, lines, _ = run(docker_host, "reevaluate", "s3://b/is-killed-select", MMBERT_PROFILE=str(profile))
    assert code == 3
    limit = f"its memory limit of 2 GiB (memory.small of the profile {profile})"
    assert f"the container of 'select' was killed (SIGKILL): by {limit}" in lines[-1]


def test_a_component_that_leaves_nothing_is_told(docker_host: str, stand_in: None) -> None:
    code, lines, _ = run(docker_host, "reevaluate", "s3://b/leaves-nothing-select")
    assert code == 1
    assert lines[-1] == (
        "error: step 'select' said it was done, but left no documents, models, result, uri; its image is "
        f"{PREFIX}eval:latest"
    )


def test_an_image_that_is_not_there_is_named(docker_host: str) -> None:
    ended = subprocess.run(
        [str(ROOT / ".venv" / "bin" / "mmbert"), "kfp", "run", "reevaluate", "--root=s3://b/r", "--image-tag=nosuch"],
        env=clean_environment() | {"DOCKER_HOST": docker_host}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 2
    assert "image mmbert-data:nosuch is not there; build it with `make images`" in ended.stderr.splitlines()[-1]
