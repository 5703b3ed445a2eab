"""The examples of docs/reuse.md as they stand there: alone, in the Airflow DAG and in the KFP pipeline of others."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mmbert import artifacts, storage
from mmbert.recipe import load_recipe, recipe_to_yaml
from tests.containers.conftest import Images
from tests.fixtures_stack import ROOT, S3, clean_environment
from tests.small_run import OVERRIDES, own_text

pytestmark = pytest.mark.containers

PAGE = (ROOT / "docs" / "reuse.md").read_text("utf-8")
PYTHON = str(ROOT / ".venv-orchestrator" / "bin" / "python")

RUN_DAG = """
import json, sys
sys.path.insert(0, sys.argv[1])
from theirs import dag
run = dag.test()
results = {t.task_id: t.xcom_pull(task_ids=t.task_id) for t in run.get_task_instances()}
# What tasks see as text is decoded once more here.
results = {task: json.loads(result) if isinstance(result, str) else result for task, result in results.items()}
print(json.dumps([str(run.state), results]))
"""


def block(heading: str, number: int, images: Images) -> str:
    """A code block of the page below a heading, with the images that are tested."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    text = re.findall(r"```\w+\n(.*?)```", section, re.DOTALL)[number]
    return str(text).replace("mmbert-data:latest", images.name("data"))


@dataclass(frozen=True)
class Store:
    """A store that holds the recipe of the examples; `environment` reaches it and the Docker API."""

    folder: Path
    environment: dict[str, str]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, s3_server: S3, docker_host: str) -> Store:
    folder = tmp_path_factory.mktemp("reuse")
    bucket = s3_server.make_bucket("my-bucket")
    os.environ.update(s3_server.environment)
    storage.s3_client.cache_clear()
    own_text(folder)
    for path in (folder / "text").rglob("*.txt"):
        storage.upload(f"{bucket}/text/{path.relative_to(folder / 'text')}", path)
    source = f"sources={{own: {{kind: files, path: '{bucket}/text', held_out_share: 0.1}}}}"
    recipe = recipe_to_yaml(load_recipe("tiny", [*OVERRIDES, source, "curation.groups=2"]))
    storage.write_bytes(f"{bucket}/recipe.yaml", recipe.encode())
    (folder / "mmbert.env").write_text("".join(f"{k}={v}\n" for k, v in s3_server.environment.items()))
    return Store(folder, clean_environment() | s3_server.environment | {"DOCKER_HOST": docker_host})


def run(store: Store, *command: str, **variables: str) -> str:
    ended = subprocess.run(
        command, cwd=store.folder, env=store.environment | variables, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_alone(store: Store, images: Images) -> None:
    script = block("Alone", 0, images)
    if shutil.which("docker") is None:
        script = f'docker() {{ podman "$@"; }}\n{script}'
    result = json.loads(run(store, "bash", "-ec", script).splitlines()[-1])
    assert artifacts.open_artifact(result["uri"], "documents").uri == result["uri"]


def test_in_an_airflow_dag(store: Store, images: Images) -> None:
    (store.folder / "theirs.py").write_text(
        block("In somebody else's Airflow DAG", 0, images) + "\n    dag = curate.dag\n"
    )
    home = store.folder / "airflow"
    variables = {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(store.folder),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
    }
    run(store, PYTHON, "-m", "airflow", "db", "migrate", **variables)
    printed = run(store, PYTHON, "-c", RUN_DAG, str(store.folder), **variables)
    state, results = json.loads(printed.splitlines()[-1])
    assert state == "success"
    made = {task: result["uri"] for task, result in results.items()}
    tokenizer = artifacts.open_artifact(made["tokenizer"], "tokenizer")
    assert [entry["uri"] for entry in tokenizer.manifest.inputs["documents"]] == [made["curate"]]


def test_in_a_kfp_pipeline(store: Store, images: Images) -> None:
    for name in ("curate", "tokenizer"):
        (store.folder / "components" / name).mkdir(parents=True)
        shutil.copy(ROOT / "components" / name / "component.yaml", store.folder / "components" / name)
    run(store, PYTHON, "-c", block("In somebody else's KFP pipeline", 0, images))
    printed = run(store, PYTHON, "-P", "-c", block("In somebody else's KFP pipeline", 1, images), PYTHONPATH=str(ROOT))
    made: dict[str, list[Any]] = {
        kind: re.findall(rf"uri: '(s3://my-bucket/artifacts/{kind}/\w+)'", printed)
        for kind in ("documents", "tokenizer")
    }
    assert len(made["documents"]) == 2
    (tokenizer,) = (artifacts.open_artifact(uri, "tokenizer") for uri in made["tokenizer"])
    assert [entry["uri"] for entry in tokenizer.manifest.inputs["documents"]] == made["documents"]
