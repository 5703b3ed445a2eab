"""Every component in its container: the whole workflow, and what it makes is what the process launcher makes."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import pytest

from components.contract import component_names, get_component
from mmbert import artifacts
from mmbert.recipe import load_recipe, recipe_to_yaml
from tests.containers.conftest import Images
from tests.fixtures_stack import ROOT, S3, MlflowServer
from tests.small_run import WHOLE_WORKFLOW, environment, own_text

pytestmark = pytest.mark.containers

SMALL = (*WHOLE_WORKFLOW, "name=contained", "release.model_name=contained")
# They hold the state of a registry: the number of a version, who is champion.
OF_A_REGISTRY = {"release", "promotion", "selection", "trend"}


@dataclass(frozen=True)
class Ran:
    """One run of a workflow: what it printed, and its artifacts by task and place below the root."""

    printed: str
    made: dict[tuple[str, str], artifacts.Artifact]
    found: set[str]
    """Tasks that were found done."""


@dataclass(frozen=True)
class Scene:
    folder: Path
    variables: dict[str, str]
    overrides: list[str]

    def run(self, launcher: str, root: str, workflow: str = "pretrain", *more: str) -> Ran:
        """With the scene's overrides, or the recipe that `more` names."""
        command = [str(ROOT / ".venv" / "bin" / "mmbert"), "workflow", workflow, "--root", root, "--run-name", launcher]
        command += list(more) or [f"--set={override}" for override in self.overrides]
        variables = {**self.variables, "MMBERT_LAUNCHER": launcher}
        ended = subprocess.run(command, env=variables, cwd=self.folder, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
        lines = re.findall(rf"^(made |found) +(\S+) .*({re.escape(root)}/\S+)$", ended.stdout, re.MULTILINE)
        made = {(task, uri.removeprefix(root)): artifacts.open_artifact(uri) for _, task, uri in lines}
        return Ran(ended.stdout, made, {task for word, task, _ in lines if word == "found"})


@pytest.fixture(scope="module")
def scene(
    tmp_path_factory: pytest.TempPathFactory,
    s3_server: S3,
    mlflow_server: MlflowServer,
    docker_host: str,
    images: Images,
) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("contained")
    folder.chmod(0o755)  # the containers' user reads the text below it
    for parent in folder.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o055)
    variables = environment(
        folder,
        **s3_server.environment,
        MLFLOW_TRACKING_URI=mlflow_server.uri,
        MLFLOW_TRACKING_USERNAME="admin",
        MLFLOW_TRACKING_PASSWORD=mlflow_server.password,
        DOCKER_HOST=docker_host,
        MMBERT_IMAGE_PREFIX=images.prefix,
        MMBERT_IMAGE_TAG=images.tag,
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environment.items():
            patch.setenv(name, value)
        yield Scene(folder, variables, [*SMALL, own_text(folder)])


@pytest.fixture(scope="module")
def contained(scene: Scene, s3_server: S3) -> Ran:
    return scene.run("docker", f"{s3_server.make_bucket('contained')}/artifacts")


def test_every_component_of_the_workflow_ran_in_its_image(contained: Ran, images: Images) -> None:
    for (task, _), artifact in contained.made.items():
        producer = artifact.manifest.producer
        target = get_component(producer["component"]).image
        assert producer["image"].startswith(f"{images.name(target)}@"), task
        assert len(producer["commit"].removesuffix("-dirty")) == 40


def test_the_process_launcher_makes_the_same_to_the_byte(contained: Ran, scene: Scene, s3_server: S3) -> None:
    beside = scene.run("process", f"{s3_server.make_bucket('beside')}/artifacts")
    compared = {key for key in contained.made if key[1].split("/")[1] not in OF_A_REGISTRY}
    assert len(compared) >= 17
    for key in compared:
        assert beside.made[key].digest == contained.made[key].digest, key


def test_what_is_done_starts_no_container(contained: Ran, scene: Scene, s3_server: S3) -> None:
    again = scene.run("docker", f"{s3_server.make_bucket('contained')}/artifacts")
    assert again.found >= {"curate", "train_pretrain", "train_decay", "convert", "evaluate_model", "report"}


def test_the_other_workflows_run_contained_too(contained: Ran, scene: Scene, s3_server: S3) -> None:
    root = f"{s3_server.make_bucket('contained')}/artifacts"
    new = scene.folder / "new" / "ita_Latn" / "a.txt"
    new.parent.mkdir(parents=True)
    text = resources.files("eld").joinpath("tests/data/big-test.txt").read_text("utf-8").splitlines()
    new.write_text("\n".join(line[3:] for line in text if line.startswith("it\t"))[:20_000], "utf-8")
    released = next(artifact for (task, _), artifact in contained.made.items() if task == "convert")
    recipe = scene.folder / "small.yaml"
    recipe.write_text(recipe_to_yaml(load_recipe("tiny", scene.overrides)), "utf-8")
    added = ("--preset", str(recipe), "--model", released.uri, "--text", str(new.parent.parent))
    others = (scene.run("docker", root, "reevaluate"), scene.run("docker", root, "add_languages", *added))
    ran = {artifact.manifest.producer["component"] for ran in (contained, *others) for artifact in ran.made.values()}
    assert ran == set(component_names())


def test_a_checkpoint_is_imported_contained(contained: Ran, scene: Scene, s3_server: S3) -> None:
    root = f"{s3_server.make_bucket('contained')}/artifacts"
    recipe = next(artifact for (task, _), artifact in contained.made.items() if task == "recipe")
    decayed = next(artifact for (task, _), artifact in contained.made.items() if task == "train_decay")
    step = (
        "import json, sys\nfrom components.steps import run_step\n"
        "arguments = dict(recipe=sys.argv[1], source=sys.argv[2], phase='decay', then='next')\n"
        "print(json.dumps(run_step('import_checkpoint', arguments, root=sys.argv[3], task='i', workflow_run='i').uri))"
    )
    command = [str(ROOT / ".venv" / "bin" / "python"), "-P", "-c", step, recipe.uri, decayed.uri, root]
    variables = {**scene.variables, "MMBERT_LAUNCHER": "docker", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    imported = artifacts.open_artifact(json.loads(ended.stdout.splitlines()[-1]), "checkpoint")
    assert imported.manifest.producer["image"]


def test_a_local_root_is_written_as_its_owner(scene: Scene) -> None:
    root = scene.folder / "local"
    step = (
        "import sys\nfrom components.steps import run_step\n"
        "run_step('recipe', dict(preset='tiny', overrides=[]), root=sys.argv[1], task='recipe', workflow_run='x')"
    )
    command = [str(ROOT / ".venv" / "bin" / "python"), "-P", "-c", step, str(root)]
    variables = {**scene.variables, "MMBERT_LAUNCHER": "docker", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, env=variables, check=True)
    made = list(root.rglob("recipe.yaml"))
    assert made
    assert {path.stat().st_uid for path in made} == {os.getuid()}
