"""The local stack as its user starts it, on free ports and in a home of its own."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.canaries import search_command_lines, search_folder
from tests.fixtures_stack import ROOT, clean_environment, free_port

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class LocalStack:
    home: Path
    s3_port: int
    mlflow_port: int
    airflow_port: int

    @classmethod
    def new(cls, home: Path) -> LocalStack:
        ports: set[int] = set()
        while len(ports) < 3:
            ports.add(free_port())
        return cls(home, *ports)

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """`python -m infra.local ...` as the Makefile runs it."""
        return self._run(
            [str(ROOT / ".venv-orchestrator" / "bin" / "python"), "-m", "infra.local", *arguments], variables
        )

    def shell(self, command: str) -> subprocess.CompletedProcess[str]:
        """A line of shell in the repository, whose `make` sets nothing up."""
        return self._run(["bash", "-euc", f'make() {{ command make -o setup "$@"; }}; {command}'], {})

    def _run(self, command: list[str], variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        environment = {
            **clean_environment(),
            "MMBERT_LOCAL_HOME": str(self.home),
            "MMBERT_S3_PORT": str(self.s3_port),
            "MMBERT_MLFLOW_PORT": str(self.mlflow_port),
            "MMBERT_AIRFLOW_PORT": str(self.airflow_port),
            **variables,
        }
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    def environment(self) -> dict[str, str]:
        """What `env` prints, as a shell understands it."""
        script = 'eval "$1"; env -0'
        printed = self.run("env").stdout
        found = subprocess.run(["bash", "-c", script, "-", printed], env={}, capture_output=True, text=True, check=True)
        return dict(pair.split("=", 1) for pair in found.stdout.split("\0") if pair)

    def credentials(self) -> dict[str, str]:
        lines = (self.home / "credentials.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def leaks(self) -> dict[str, set[str]]:
        """Files of the stack in which a secret stands, but those that are there to hold one; and command lines."""
        secrets = [value for name, value in self.credentials().items() if name != "AWS_ACCESS_KEY_ID"]
        kept = ("credentials.env", "airflow/airflow.cfg", "airflow/passwords.json")
        visible = {f"process {pid}": found for pid, found in search_command_lines(secrets).items()}
        return {**search_folder(self.home, secrets, kept), **visible}

    def airflow(self, path: str, body: Any = None, token: str = "") -> Any:
        """One call of Airflow's REST API; raises urllib's HTTPError."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return _call(f"http://127.0.0.1:{self.airflow_port}{path}", body, headers)

    def mlflow(self, path: str, body: Any = None) -> Any:
        """One call of MLflow's REST API, as its admin."""
        return _call(f"http://127.0.0.1:{self.mlflow_port}/api/2.0/mlflow/{path}", body, self.mlflow_login())

    def mlflow_login(self) -> dict[str, str]:
        """The header of a request that is logged in."""
        return basic("admin", self.credentials()["MLFLOW_ADMIN_PASSWORD"])

    def token(self, name: str = "admin") -> str:
        login = {"username": name, "password": self.credentials()[f"AIRFLOW_{name.upper()}_PASSWORD"]}
        return str(self.airflow("/auth/token", login)["access_token"])

    def pid(self, service: str) -> int:
        return int(json.loads((self.home / "run" / f"{service}.json").read_text())["pid"])

    def processes(self) -> list[psutil.Process]:
        """Every process that has anything of this stack on its command line, in its environment or in its session."""
        sessions = {self.pid(path.stem) for path in (self.home / "run").glob("*.json")}
        found = []
        for process in psutil.process_iter():
            try:
                text = " ".join([*process.cmdline(), *process.environ().values()])
                if str(self.home) in text or _session(process) in sessions:
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found


def _call(url: str, body: Any, headers: dict[str, str]) -> Any:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(url, data=data, headers=headers)  # noqa: S310 - our own loopback address
    with _OPENER.open(request, timeout=20) as answer:
        return json.load(answer)


def basic(name: str, password: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(f'{name}:{password}'.encode()).decode()}"}


def status_of(url: str, headers: dict[str, str] | None = None) -> int:
    """The HTTP status of a page."""
    try:
        with _OPENER.open(urllib.request.Request(url, headers=headers or {}), timeout=20) as answer:  # noqa: S310
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def _session(process: psutil.Process) -> int:
    return os.getsid(process.pid)
