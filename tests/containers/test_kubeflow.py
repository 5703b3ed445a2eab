"""The workflows as KFP pipelines in the real images: what KFP made, the plain runner finds done."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass

import pytest
from mlflow import MlflowClient

from mmbert import artifacts, storage
from tests.containers.conftest import Images
from tests.fixtures_stack import ROOT, S3, MlflowServer, clean_environment
from tests.small_run import OVERRIDES, own_text

# A dozen and a half containers, each of which loads its libraries anew.
pytestmark = [pytest.mark.containers, pytest.mark.timeout(1500)]

KINDS = ("recipe", "documents", "tokenizer")
SMALL = (
    *OVERRIDES,
    "name=mmbert-kfp",
    "evaluation.bits_per_byte_bytes_per_language=200",
    "evaluation.bootstrap_samples=50",
    "evaluation.retrieval_languages=3",
    "evaluation.language_id_sentences=5",
    "evaluation.intent_languages=1",
    "evaluation.intent_sentences=20",
    "release.gate={}",
)


@dataclass(frozen=True)
class Finished:
    """A pipeline that ran here: where its artifacts are, what it was told, and what it printed."""

    root: str
    flags: list[str]
    environment: dict[str, str]
    printed: str


def mmbert(environment: dict[str, str], *words: str) -> str:
    ended = subprocess.run(
        [str(ROOT / ".venv" / "bin" / "mmbert"), *words],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory,
    s3_server: S3,
    mlflow_server: MlflowServer,
    docker_host: str,
    images: Images,
) -> Finished:
    folder = tmp_path_factory.mktemp("kfp")
    bucket = s3_server.make_bucket("kfp")
    own_text(folder)
    for name, value in s3_server.environment.items():
        os.environ[name] = value
    storage.s3_client.cache_clear()
    for path in (folder / "text").rglob("*.txt"):
        storage.upload(f"{bucket}/text/{path.relative_to(folder / 'text')}", path)
    source = f"sources={{own: {{kind: files, path: '{bucket}/text', held_out_share: 0.1}}}}"
    flags = ["--root", f"{bucket}/root", *(f"--set={override}" for override in (*SMALL, source))]
    environment = clean_environment() | s3_server.environment | {
        "MMBERT_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1", "DOCKER_HOST": docker_host,
        "MMBERT_IMAGE_PREFIX": images.prefix, "MMBERT_IMAGE_TAG": images.tag,
    }  # fmt: skip
    login = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_TRACKING_")}
    environment |= login | {"MLFLOW_TRACKING_URI": mlflow_server.uri}
    return Finished(f"{bucket}/root", flags, environment, mmbert(environment, "kfp", "run", "pretrain", *flags))


def test_what_kfp_made_the_plain_runner_finds_done(finished: Finished) -> None:
    printed = mmbert(finished.environment, "workflow", "pretrain", *finished.flags)
    steps = re.findall(r"^(found|made) +(\w+) .* (s3://\S+)$", printed, re.MULTILINE)
    assert len(steps) == 19
    # A registration and a decision lie outside the store, and are made sure of in each run.
    assert {task for how, task, _ in steps if how == "made"} <= {"register", "promote"}
    for _, _, uri in steps:
        assert uri in finished.printed


def test_a_container_makes_the_same_bytes_as_a_process(finished: Finished) -> None:
    made = {kind: re.findall(rf"uri: '({finished.root}/{kind}/\w+)'", finished.printed)[0] for kind in KINDS}
    other = f"{finished.root}-of-processes"
    words = ("--recipe", made["recipe"], "--root", other)
    documents = json.loads(mmbert(finished.environment, "run", "curate", *words).splitlines()[-1])["uri"]
    given = ("--documents", documents)
    tokenizer = json.loads(mmbert(finished.environment, "run", "tokenizer", *words, *given).splitlines()[-1])["uri"]
    for kind, uri in (("documents", documents), ("tokenizer", tokenizer)):
        assert artifacts.open_artifact(uri).digest == artifacts.open_artifact(made[kind]).digest


def test_reevaluation_finds_the_models_evaluation_done(finished: Finished, mlflow_server: MlflowServer) -> None:
    printed = mmbert(finished.environment, "kfp", "run", "reevaluate", *finished.flags)
    (scores,) = set(re.findall(r"'(s3://\S+/scores/\w+)'", printed))
    assert scores in finished.printed
    client = MlflowClient(mlflow_server.uri)
    experiment = client.get_experiment_by_name("mmbert/mmbert-kfp")
    runs = client.search_runs([experiment.experiment_id], "tags.`mmbert.role` = 'workflow'")
    names = {run.info.run_name: run.info.status for run in runs if run.info.run_name.startswith("local-mmbert-")}
    ended = {name.rpartition("-")[0]: status for name, status in names.items()}
    assert ended == {"local-mmbert-pretrain": "FINISHED", "local-mmbert-reevaluate": "FINISHED"}
