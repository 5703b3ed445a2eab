"""Secrets planted where components take theirs from, and looked for wherever they must not be."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.canaries import CANARIES, search_bytes, search_command_lines, search_folder
from tests.fixtures_stack import ROOT, S3, MlflowServer, clean_environment, free_port

# Raises what a library raises at its worst: with an address that has the login and a signature, and the environment.
CRASH = """
import os, sys
import components.cli as cli
import components.recipe.component as component
from mmbert.errors import UserError
def crash(*_, **__):
    secrets = {k: v for k, v in os.environ.items() if k in %r}
    raise %s(f"GET https://user:{secrets['HF_TOKEN']}@host/x?X-Amz-Signature=canary-signature-00 failed with {secrets}")
component.recipe_to_yaml = crash
sys.argv = ["mmbert", "run", "recipe", "--preset", "tiny", *sys.argv[1:]]
cli.main()
"""


@dataclass(frozen=True)
class Ran:
    """What commands wrote, and the folders of theirs and of the servers."""

    output: dict[str, str]
    codes: dict[str, int]
    visible: dict[int, set[str]]
    folders: tuple[Path, ...]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, s3_server: S3, mlflow_server: MlflowServer) -> Ran:
    home = tmp_path_factory.mktemp("canaries")
    s3_server.make_bucket("canaries")
    clients = {
        **CANARIES,
        **s3_server.environment,
        "MLFLOW_TRACKING_URI": mlflow_server.uri,
        "MLFLOW_TRACKING_USERNAME": "admin",
        "MMBERT_CACHE": str(home / "cache"),
        "MMBERT_SCRATCH": str(home),
        "MMBERT_DEBUG": "1",
    }
    clients.pop("AWS_SESSION_TOKEN")  # rclone knows none
    recipe = ["run", "recipe", "--preset", "tiny"]
    hub = "sources.web={kind: huggingface, dataset: some/set, revision: main, language: eng_Latn}"
    commands: dict[str, tuple[list[str], dict[str, str]]] = {
        "done": ([*recipe, "--root", "s3://canaries/artifacts"], {}),
        "wrong input": ([*recipe, "--overrides", "seed=none", "--root", "s3://canaries/artifacts"], {}),
        "no S3": ([*recipe, "--root", "s3://canaries/other"], {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"}),
        "S3 refuses": ([*recipe, "--root", "s3://canaries/other"], {"AWS_ACCESS_KEY_ID": "another"}),
        "a login in S3's address": ([*recipe, "--root", "s3://canaries/other"], _with_login(s3_server.endpoint)),
        "no MLflow": ([*recipe, "--root", str(home / "local")], _mlflow(f"http://127.0.0.1:{free_port()}")),
        "MLflow refuses": ([*recipe, "--root", str(home / "local")], {"MLFLOW_TRACKING_USERNAME": "nobody"}),
        "a token": ([*recipe, "--root", str(home / "local")], {"MLFLOW_TRACKING_USERNAME": ""}),
        "no hub": ([*recipe, "--overrides", hub], {"HF_ENDPOINT": f"http://127.0.0.1:{free_port()}"}),
        "a bug": ([CRASH % (sorted(CANARIES), "ValueError"), "--root", str(home / "bug")], {}),
        "an error of ours": (
            [CRASH % (sorted(CANARIES), "UserError"), "--root", str(home / "bug")],
            {},
        ),
    }
    visible: dict[int, set[str]] = {}

    def run(item: tuple[str, tuple[list[str], dict[str, str]]]) -> tuple[str, int, str]:
        name, (arguments, changes) = item
        program = [sys.executable, "-c"] if "import" in arguments[0] else [sys.executable, "-P", "-m", "components.cli"]
        environment = clean_environment() | clients | changes
        with (home / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [*program, *arguments], env=environment, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
            )
            while process.poll() is None:
                visible.update(search_command_lines(CANARIES.values()))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.3)
        return name, process.returncode, (home / f"{name}.log").read_text()

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(run, commands.items()))
    folders = (home, mlflow_server.home, s3_server.folder.parent)
    return Ran({name: text for name, _, text in found}, {name: code for name, code, _ in found}, visible, folders)


def _with_login(address: str) -> dict[str, str]:
    return {"AWS_ENDPOINT_URL": address.replace("http://", f"http://me:{CANARIES['AWS_SECRET_ACCESS_KEY']}@")}


def _mlflow(address: str) -> dict[str, str]:
    return {"MLFLOW_TRACKING_URI": address}


def test_the_commands_ended_as_they_were_meant_to(ran: Ran) -> None:
    codes = {"done": 0, "wrong input": 2, "a login in S3's address": 2, "a bug": 1, "an error of ours": 2}
    assert ran.codes == dict.fromkeys(ran.codes, 3) | codes, ran.output
    assert "refused access" in ran.output["MLflow refuses"] + ran.output["a token"]
    assert "Traceback" in ran.output["a bug"]
    assert "***" in ran.output["a bug"]


def test_no_secret_stands_in_what_they_wrote(ran: Ran) -> None:
    secrets = [*CANARIES.values(), "canary-signature-00"]
    assert {name: found for name, text in ran.output.items() if (found := search_bytes(text.encode(), secrets))} == {}


def test_no_secret_stands_in_any_file_of_theirs(ran: Ran) -> None:
    """Manifests, artifacts, spools, MLflow's database and files, the servers' logs, and what was left in scratch."""
    home, mlflow, s3 = ran.folders
    assert (mlflow / "mlflow.db").exists()
    assert list(s3.glob("buckets/canaries/artifacts/recipe/*/manifest.json"))
    assert list(home.glob("*.log"))
    assert {str(folder): found for folder in ran.folders if (found := search_folder(folder, CANARIES.values()))} == {}


def test_no_secret_stood_on_a_command_line(ran: Ran) -> None:
    assert ran.visible == {}


def test_the_search_finds_what_is_hidden(tmp_path: Path) -> None:
    import base64
    import gzip

    import zstandard

    secret = CANARIES["HF_TOKEN"]
    hidden = {
        "plain": f"x{secret}y".encode(),
        "gz": gzip.compress(secret.encode()),
        "zst": zstandard.ZstdCompressor().compress(secret.encode()),
        **{f"login {n}": base64.b64encode(b"u" * n + b":" + secret.encode()) for n in range(3)},
    }
    for name, data in hidden.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / secret).touch()
    assert set(search_folder(tmp_path, [secret])) == {*hidden, secret}
    with subprocess.Popen([sys.executable, "-c", "input()", secret], stdin=subprocess.PIPE) as process:
        assert set(search_command_lines([secret])) == {process.pid}
        process.communicate(os.linesep.encode())
