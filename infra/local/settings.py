"""Where the stack lives, on which ports it listens, and which variables programs need to talk to it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from infra.local.credentials import ADMIN, Credentials
from mmbert.errors import UserError

PROJECT = Path(__file__).resolve().parents[2]
BUCKET = "mmbert"
PORT_VARIABLES = {"s3": "MMBERT_S3_PORT", "mlflow": "MMBERT_MLFLOW_PORT", "airflow": "MMBERT_AIRFLOW_PORT"}
_DEFAULT_PORTS = {"s3": 9500, "mlflow": 5500, "airflow": 8480}

# Every process of a stack carries its home in this variable, so that `down` finds all of them.
MARKER = "MMBERT_STACK"

# glibc keeps freed blocks of up to 1 GiB instead of returning them: training on a CPU is up to 1.6 times faster.
_MALLOC_KEEP = str(2**30)


@dataclass(frozen=True)
class Ports:
    s3: int
    mlflow: int
    airflow: int


@dataclass(frozen=True)
class Settings:
    home: Path
    ports: Ports

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def run(self) -> Path:
        return self.home / "run"

    @property
    def airflow_home(self) -> Path:
        return self.home / "airflow"

    @property
    def mlflow_users(self) -> Path:
        """MLflow's database of users and what each may do."""
        return self.home / "mlflow-users.db"

    @property
    def s3_url(self) -> str:
        return f"http://127.0.0.1:{self.ports.s3}"

    @property
    def mlflow_url(self) -> str:
        return f"http://127.0.0.1:{self.ports.mlflow}"

    @property
    def airflow_url(self) -> str:
        return f"http://127.0.0.1:{self.ports.airflow}"


def load_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """Ports come from the environment, else from the stack's last start, else from the defaults.

    Raises UserError where a port is not a number or two services share one.
    """
    home = Path(environment.get("MMBERT_LOCAL_HOME") or PROJECT / ".local").resolve()
    ports = {**_DEFAULT_PORTS, **recorded_ports(home)}
    for service, variable in PORT_VARIABLES.items():
        text = environment.get(variable)
        if text:
            if not text.isdigit() or not 0 < int(text) < 65536:
                raise UserError(f"{variable}='{text}' is not a port; set a number from 1 to 65535")
            ports[service] = int(text)
    if len(set(ports.values())) < len(ports):
        chosen = ", ".join(f"{PORT_VARIABLES[s]}={ports[s]}" for s in PORT_VARIABLES)
        raise UserError(f"two services share a port ({chosen}); give each its own")
    return Settings(home=home, ports=Ports(**ports))


def record_ports(settings: Settings) -> None:
    """Remember the ports, so that `status`, `down` and `env` need no variables."""
    text = json.dumps({name: getattr(settings.ports, name) for name in PORT_VARIABLES})
    (settings.home / "ports.json").write_text(text + "\n")


def recorded_ports(home: Path) -> dict[str, int]:
    """The ports of the last start by service; empty where there was none."""
    try:
        recorded = json.loads((home / "ports.json").read_text())
        return {name: int(recorded[name]) for name in PORT_VARIABLES}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def base_environment(settings: Settings, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The caller's environment without what would change the services behind our back."""
    kept = {
        name: value
        for name, value in environment.items()
        if not name.startswith(
            ("AIRFLOW_", "_AIRFLOW", "MLFLOW_", "AWS_ACCESS", "AWS_SECRET", "AWS_SESSION", "AWS_PROFILE", "RCLONE_")
        )
        and name not in {"PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    }
    for name in ("NO_PROXY", "no_proxy"):
        kept[name] = ",".join(part for part in (environment.get(name), "127.0.0.1", "localhost") if part)
    # Airflow names its processes, by default over the environment that others see: the mark would be gone.
    return {**kept, MARKER: str(settings.home), "SPT_NOENV": "1"}


def task_environment(settings: Settings, credentials: Credentials) -> dict[str, str]:
    """What a component needs to work against this stack; Airflow's tasks inherit it."""
    return {
        "AWS_ENDPOINT_URL": settings.s3_url,
        "S3_ENDPOINT_URL": settings.s3_url,
        "AWS_ACCESS_KEY_ID": credentials.s3_access_key,
        "AWS_SECRET_ACCESS_KEY": credentials.s3_secret_key,
        "AWS_EC2_METADATA_DISABLED": "true",
        "MLFLOW_TRACKING_URI": settings.mlflow_url,
        "MLFLOW_TRACKING_USERNAME": ADMIN,
        "MLFLOW_TRACKING_PASSWORD": credentials.mlflow_password,
        "MMBERT_AIRFLOW_URL": settings.airflow_url,
        "MMBERT_ROOT": f"s3://{BUCKET}/artifacts",
        "MMBERT_LAUNCHER": os.environ.get("MMBERT_LAUNCHER", "process"),
        "MMBERT_CACHE": str(settings.home / "cache"),
        "AIRFLOW_HOME": str(settings.airflow_home),
        "MALLOC_MMAP_THRESHOLD_": _MALLOC_KEEP,
        "MALLOC_TRIM_THRESHOLD_": _MALLOC_KEEP,
    }
