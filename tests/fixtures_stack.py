"""A real local stack for tests: S3 (rclone) and an MLflow server, on free ports, with data in temporary folders."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest

from tests.canaries import CANARIES

ROOT = Path(__file__).resolve().parents[1]
RCLONE = ROOT / ".venv-orchestrator" / "bin" / "rclone"
MLFLOW = ROOT / ".venv-mlflow" / "bin" / "mlflow"
_START_SECONDS = 120


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(url: str) -> bool:
    """Whether an HTTP server is there, whatever it says."""
    try:
        with urllib.request.urlopen(url, timeout=2):  # noqa: S310 - our own loopback address
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except OSError:
        return False


class Server:
    """A program with its own process group, started when it is healthy and killed as a power cut would."""

    def __init__(
        self, command: list[str], environment: Mapping[str, str], log: Path, healthy: Callable[[], bool]
    ) -> None:
        self.command = command
        self.environment = dict(environment)
        self.log = log
        self.healthy = healthy
        self._process: subprocess.Popen[bytes] | None = None

    def launch(self) -> None:
        """Start it, without waiting."""
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                self.command, env=self.environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait_healthy(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _START_SECONDS
        while not self.healthy():
            if self._process.poll() is not None or time.monotonic() > deadline:
                text = self.log.read_text(errors="replace")[-3000:]
                self.kill()
                raise RuntimeError(f"{' '.join(self.command)} did not become healthy:\n{text}")
            time.sleep(0.05)

    def start(self) -> None:
        self.launch()
        self.wait_healthy()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL to the whole group; returns when it has ended. Harmless when it is not running."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None


def clean_environment() -> dict[str, str]:
    """This process's environment without what would steer a server or a client elsewhere."""
    # The last ones are left by Composer where training ran in this process.
    dropped = ("AWS_", "S3_", "MLFLOW_", "MMBERT_", "AIRFLOW_", "RANK", "WORLD_", "LOCAL_", "NODE_RANK", "MASTER_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(dropped) and k != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"AWS_EC2_METADATA_DISABLED": "true"}


@dataclass(frozen=True)
class S3:
    """An S3 server. `folder` holds its buckets; `environment` is what its clients need."""

    endpoint: str
    key: str
    secret: str
    folder: Path
    server: Server

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "S3_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def make_bucket(self, name: str) -> str:
        """Make a bucket (of 3 characters or more) and return its URI."""
        # Through the server: it remembers for a while which folders there are.
        if not (self.folder / name).exists():
            session = boto3.session.Session(self.key, self.secret, region_name="us-east-1")
            session.client("s3", endpoint_url=self.endpoint).create_bucket(Bucket=name)
        return f"s3://{name}"


@dataclass(frozen=True)
class MlflowServer:
    """An MLflow server that takes artifacts over HTTP. `kill` and `start` it as the test wants; data stays.

    Clients find its login in the environment.
    """

    uri: str
    password: str
    home: Path
    server: Server

    def kill(self) -> None:
        self.server.kill()

    def start(self) -> None:
        self.server.start()


@contextlib.contextmanager
def s3_running(home: Path) -> Iterator[S3]:
    """An S3 server with its data below `home`."""
    folder = home / "buckets"
    folder.mkdir()
    endpoint = f"http://127.0.0.1:{(port := free_port())}"
    key, secret = "test-key", CANARIES["AWS_SECRET_ACCESS_KEY"]
    command = [str(RCLONE), "serve", "s3", "--addr", f"127.0.0.1:{port}", str(folder)]
    environment = clean_environment() | {"RCLONE_CONFIG": str(home / "rclone.conf")}
    # Every user of the machine can read command lines.
    environment["RCLONE_AUTH_KEY"] = f'"{key},{secret}"'
    server = Server(command, environment, home / "log", lambda: answers(endpoint))
    try:
        server.start()
        yield S3(endpoint, key, secret, folder, server)
    finally:
        server.kill()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with s3_running(tmp_path_factory.mktemp("s3")) as server:
        yield server


@contextlib.contextmanager
def mlflow_running(home: Path, s3: S3) -> Iterator[MlflowServer]:
    """An MLflow server with its data below `home` and in `s3`; this process has its login."""
    uri = f"http://127.0.0.1:{(port := free_port())}"
    rules = home / "auth.ini"
    rules.write_text(
        f"[mlflow]\ndefault_permission = READ\nauth_cache_ttl_seconds = 300\ndatabase_uri = sqlite:///{home}/users.db\n"
    )
    command = [str(MLFLOW), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--app-name", "basic-auth"]
    command += ["--backend-store-uri", f"sqlite:///{home}/mlflow.db"]
    command += ["--artifacts-destination", f"{s3.make_bucket('mlflow')}/artifacts"]
    environment = clean_environment() | s3.environment
    environment["MLFLOW_S3_ENDPOINT_URL"] = s3.endpoint
    environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    environment["MLFLOW_AUTH_CONFIG_PATH"] = str(rules)
    environment["MLFLOW_AUTH_ADMIN_USERNAME"] = "admin"
    environment["MLFLOW_AUTH_ADMIN_PASSWORD"] = password = CANARIES["MLFLOW_TRACKING_PASSWORD"]
    environment["MLFLOW_FLASK_SERVER_SECRET_KEY"] = "the-tests-own-key"
    server = Server(command, environment, home / "log", lambda: answers(f"{uri}/health"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        patch.setenv("MLFLOW_TRACKING_PASSWORD", password)
        try:
            server.start()
            yield MlflowServer(uri, password, home, server)
        finally:
            server.kill()


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory, s3_server: S3) -> Iterator[MlflowServer]:
    with mlflow_running(tmp_path_factory.mktemp("mlflow"), s3_server) as server:
        yield server


@pytest.fixture(scope="module")
def own_mlflow(tmp_path_factory: pytest.TempPathFactory, s3_server: S3) -> Iterator[MlflowServer]:
    """For tests that collect: a collection refuses while any registered model, of whatever test, needs what is gone."""
    with mlflow_running(tmp_path_factory.mktemp("mlflow"), s3_server) as server:
        yield server
