"""The services of the stack: how each is started and how one sees that it works."""

from __future__ import annotations

import datetime
import json
import urllib.error
from collections.abc import Callable
from dataclasses import dataclass

from infra.local.airflow_api import OPENER
from infra.local.credentials import ADMIN, Credentials, write_private
from infra.local.settings import BUCKET, PROJECT, Settings, base_environment, task_environment

ORCHESTRATOR = PROJECT / ".venv-orchestrator" / "bin"
MLFLOW = PROJECT / ".venv-mlflow" / "bin"


@dataclass(frozen=True)
class Service:
    """`healthy` is given the process's start time (seconds since the epoch) and says whether that process serves."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str]
    healthy: Callable[[float], bool]
    port: int | None = None


def all_services(settings: Settings, credentials: Credentials) -> list[Service]:
    """In the order in which they are started; they are stopped in the reverse order."""
    return [_s3(settings, credentials), _mlflow(settings, credentials), *_airflow(settings, credentials)]


def airflow_migration(settings: Settings) -> tuple[list[str], dict[str, str]]:
    """The command that makes or updates Airflow's database, and its environment."""
    environment = {**base_environment(settings), "AIRFLOW_HOME": str(settings.airflow_home)}
    return [str(ORCHESTRATOR / "python"), "-m", "airflow", "db", "migrate"], environment


def _s3(settings: Settings, credentials: Credentials) -> Service:
    data = settings.home / "s3"
    (data / BUCKET).mkdir(parents=True, exist_ok=True)
    # In the environment, because a command line can be read by every user of the machine; rclone parses it as CSV.
    key = f'"{credentials.s3_access_key},{credentials.s3_secret_key}"'
    return Service(
        name="s3",
        command=(str(ORCHESTRATOR / "rclone"), "serve", "s3", "--addr", f"127.0.0.1:{settings.ports.s3}", str(data)),
        environment={
            **base_environment(settings),
            "RCLONE_AUTH_KEY": key,
            "RCLONE_CONFIG": str(settings.home / "rclone.conf"),
        },
        healthy=lambda _started: _status(settings.s3_url) is not None,
        port=settings.ports.s3,
    )


def _mlflow(settings: Settings, credentials: Credentials) -> Service:
    rules = settings.home / "mlflow-auth.ini"
    write_private(rules, _mlflow_rules(settings))
    return Service(
        name="mlflow",
        command=(
            *(str(MLFLOW / "python"), "-m", "infra.local.mlflow_server", "server", "--app-name", "basic-auth"),
            *("--host", "127.0.0.1", "--port", str(settings.ports.mlflow), "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{settings.home / 'mlflow.db'}"),
            *("--artifacts-destination", f"s3://{BUCKET}/mlflow"),
        ),
        environment={
            **base_environment(settings),
            "MLFLOW_S3_ENDPOINT_URL": settings.s3_url,
            "AWS_ACCESS_KEY_ID": credentials.s3_access_key,
            "AWS_SECRET_ACCESS_KEY": credentials.s3_secret_key,
            "AWS_EC2_METADATA_DISABLED": "true",
            "MLFLOW_AUTH_CONFIG_PATH": str(rules),
            "MLFLOW_AUTH_ADMIN_USERNAME": ADMIN,
            "MLFLOW_AUTH_ADMIN_PASSWORD": credentials.mlflow_password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": credentials.mlflow_session_key,
            # Without background jobs the server needs 485 MB instead of 1.1 GB.
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        },
        # It answers, and nobody without a login.
        healthy=lambda _started: _status(f"{settings.mlflow_url}/api/2.0/mlflow/users/current") == 401,
        port=settings.ports.mlflow,
    )


def _mlflow_rules(settings: Settings) -> str:
    """Users that the admin adds may read everything, and change what they made."""
    # The file's reader interpolates `%`, so a path that holds one needs it doubled.
    users = str(settings.mlflow_users).replace("%", "%%")
    return (
        "[mlflow]\n"
        "default_permission = READ\n"
        f"database_uri = sqlite:///{users}\n"
        # A password's slow hash is compared once in five minutes, not with each request.
        "auth_cache_ttl_seconds = 300\n"
    )


def _airflow(settings: Settings, credentials: Credentials) -> list[Service]:
    quiet = {**base_environment(settings), "AIRFLOW_HOME": str(settings.airflow_home)}
    airflow = (str(ORCHESTRATOR / "python"), "-m", "airflow")
    return [
        Service(
            name="airflow-api",
            command=(*airflow, "api-server"),
            environment=quiet,
            healthy=lambda _started: _airflow_part(settings, "metadatabase", None),
            port=settings.ports.airflow,
        ),
        Service(
            name="airflow-scheduler",
            # Its log server is not needed: the API server reads the same folder.
            command=(*airflow, "scheduler", "--skip-serve-logs"),
            environment={**quiet, **task_environment(settings, credentials)},
            healthy=lambda started: _airflow_part(settings, "scheduler", started),
        ),
        Service(
            name="airflow-dags",
            command=(*airflow, "dag-processor"),
            environment=quiet,
            healthy=lambda started: _airflow_part(settings, "dag_processor", started),
        ),
    ]


def _status(url: str) -> int | None:
    """The HTTP status that a URL answers with, None where nothing answers."""
    try:
        with OPENER.open(url, timeout=5) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def _airflow_part(settings: Settings, part: str, started: float | None) -> bool:
    """Whether Airflow calls this part of itself healthy, by a heartbeat of the process that began at `started`."""
    try:
        with OPENER.open(f"{settings.airflow_url}/api/v2/monitor/health", timeout=5) as response:
            health = json.load(response)[part]
    except (OSError, ValueError, KeyError):
        return False
    if health["status"] != "healthy":
        return False
    heartbeat = health.get(f"latest_{part}_heartbeat")
    return started is None or (
        heartbeat is not None and datetime.datetime.fromisoformat(heartbeat).timestamp() > started
    )
