"""Credentials made at first start and kept in one file that only its owner can read."""

from __future__ import annotations

import base64
import os
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from mmbert.errors import UserError

FILE = "credentials.env"
ADMIN = "admin"
VIEWER = "viewer"


@dataclass(frozen=True)
class Credentials:
    s3_access_key: str
    s3_secret_key: str
    airflow_password: str
    airflow_jwt_secret: str
    airflow_fernet_key: str
    airflow_viewer_password: str
    mlflow_password: str
    mlflow_session_key: str


_VARIABLES = {
    "s3_access_key": "AWS_ACCESS_KEY_ID",
    "s3_secret_key": "AWS_SECRET_ACCESS_KEY",
    "airflow_password": "AIRFLOW_ADMIN_PASSWORD",
    "airflow_jwt_secret": "AIRFLOW_JWT_SECRET",
    "airflow_fernet_key": "AIRFLOW_FERNET_KEY",
    "airflow_viewer_password": "AIRFLOW_VIEWER_PASSWORD",
    "mlflow_password": "MLFLOW_ADMIN_PASSWORD",
    "mlflow_session_key": "MLFLOW_SESSION_KEY",
}
_ADDED = {"airflow_viewer_password", "mlflow_password", "mlflow_session_key"}
"""Not in the files of older stacks; made when one is started."""


def load_or_create(home: Path) -> Credentials:
    """The stack's credentials; made where there are none yet. Raises UserError where the file is damaged."""
    path = home / FILE
    if not path.exists():
        write_private(path, _render(_new()))
    elif lacking := _ADDED - _read(path).keys():
        write_private(path, path.read_text().rstrip("\n") + "\n" + _render(_new(), lacking))
    return load(home)


def load(home: Path) -> Credentials:
    """Raises UserError where the stack was never started or its credentials are damaged."""
    path = home / FILE
    if not path.exists():
        raise UserError(f"{path}: no credentials yet; start the stack first with `make up`")
    path.chmod(0o600)
    found = _read(path)
    missing = [name for field, name in _VARIABLES.items() if field not in found]
    if missing and found.keys() >= _VARIABLES.keys() - _ADDED:
        raise UserError(f"{path}: {', '.join(missing)} missing; `make up` makes them")
    if missing:
        raise UserError(f"{path}: {', '.join(missing)} missing; stop the stack, delete the file and start again")
    return Credentials(**found)


def _read(path: Path) -> dict[str, str]:
    """The credentials that a file holds, by field."""
    pairs = dict(line.split("=", 1) for line in path.read_text().splitlines() if "=" in line)
    return {field: pairs[name] for field, name in _VARIABLES.items() if pairs.get(name)}


def write_private(path: Path, text: str) -> None:
    """Write a file that nobody else can read at any moment."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)
    temporary.replace(path)


def _new() -> Credentials:
    return Credentials(
        s3_access_key=secrets.token_hex(10),
        s3_secret_key=secrets.token_hex(20),
        airflow_password=secrets.token_urlsafe(12),
        airflow_jwt_secret=secrets.token_urlsafe(48),
        airflow_fernet_key=base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
        airflow_viewer_password=secrets.token_urlsafe(12),
        mlflow_password=secrets.token_urlsafe(12),
        mlflow_session_key=secrets.token_urlsafe(32),
    )


def _render(credentials: Credentials, fields: Collection[str] = tuple(_VARIABLES)) -> str:
    return "".join(f"{_VARIABLES[field]}={getattr(credentials, field)}\n" for field in _VARIABLES if field in fields)
