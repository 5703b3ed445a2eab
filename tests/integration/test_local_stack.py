"""`make up`, `make status`, `make down` as a user meets them, with the real services."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.fixtures_stack import ROOT
from tests.local_stack import LocalStack, status_of

SERVICES = {"s3", "mlflow", "airflow-api", "airflow-scheduler", "airflow-dags"}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    # A home with a space and a percent sign in its path, as some laptops have.
    stack = LocalStack.new(tmp_path_factory.mktemp("a 100% home"))
    try:
        started = stack.run("up")
        assert started.returncode == 0, started.stdout + started.stderr
        for link in (
            "Airflow  http://127.0.0.1:",
            "MLflow   http://127.0.0.1:",
            "S3       http://127.0.0.1:",
            "login: admin / ",
        ):
            assert link in started.stdout
        yield stack
    finally:
        stack.run("down")


def test_every_service_is_healthy(stack: LocalStack) -> None:
    shown = stack.run("status")
    assert shown.returncode == 0
    rows = {line.split()[0]: line.split()[1] for line in shown.stdout.splitlines()[1:]}
    assert rows == dict.fromkeys(SERVICES, "healthy")
    assert status_of(f"http://127.0.0.1:{stack.mlflow_port}/") == 200
    assert status_of(f"http://127.0.0.1:{stack.airflow_port}/") == 200


def test_a_second_up_changes_nothing_and_is_quick(stack: LocalStack) -> None:
    before = {name: stack.pid(name) for name in SERVICES}
    secret = stack.credentials()
    began = time.monotonic()
    again = stack.run("up")
    assert again.returncode == 0
    assert time.monotonic() - began < 2
    assert "login: admin / " + secret["AIRFLOW_ADMIN_PASSWORD"] in again.stdout
    assert {name: stack.pid(name) for name in SERVICES} == before
    assert stack.credentials() == secret


def test_credentials_are_for_their_owner_only(stack: LocalStack) -> None:
    for name in ("credentials.env", "airflow/airflow.cfg", "airflow/passwords.json"):
        assert stat.S_IMODE((stack.home / name).stat().st_mode) == 0o600
    secrets = set(stack.credentials().values())
    assert len(secrets) == 5
    visible = " ".join(" ".join(process.cmdline()) for process in stack.processes())
    assert not [secret for secret in secrets if secret in visible]
    ignored = subprocess.run(["git", "check-ignore", "-q", ".local/credentials.env"], cwd=ROOT, check=False)
    assert ignored.returncode == 0


def test_only_the_right_password_logs_in(stack: LocalStack) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        stack.airflow("/auth/token", {"username": "admin", "password": "wrong"})
    assert refused.value.code == 401
    with pytest.raises(urllib.error.HTTPError) as anonymous:
        stack.airflow("/api/v2/dags")
    assert anonymous.value.code == 401
    pools = stack.airflow("/api/v2/pools", token=stack.token())["pools"]
    assert {pool["name"]: pool["slots"] for pool in pools}["cores"] == max(os.cpu_count() or 1, 2)


def test_services_listen_on_loopback_only(stack: LocalStack) -> None:
    listening = [
        connection.laddr
        for process in stack.processes()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert {address.ip for address in listening} == {"127.0.0.1"}
    assert {stack.s3_port, stack.mlflow_port, stack.airflow_port} <= {address.port for address in listening}


def test_env_lets_a_component_run_against_the_stack(stack: LocalStack) -> None:
    environment = stack.environment()
    python = str(ROOT / ".venv" / "bin" / "python")
    write = "from mmbert import storage; storage.write_bytes('s3://mmbert/probe', b'text'); print(storage.read_bytes('s3://mmbert/probe'))"
    right = subprocess.run([python, "-c", write], env=environment, capture_output=True, text=True, check=False)
    assert right.stdout == "b'text'\n"
    wrong = {**environment, "AWS_SECRET_ACCESS_KEY": "wrong"}
    refused = subprocess.run([python, "-c", write], env=wrong, capture_output=True, text=True, check=False)
    assert "refused the credentials" in refused.stderr
    assert environment["MMBERT_ROOT"] == "s3://mmbert/artifacts"
    assert status_of(environment["MLFLOW_TRACKING_URI"] + "/health") == 200


def test_what_was_killed_is_started_again(stack: LocalStack) -> None:
    killed = stack.pid("s3")
    os.killpg(killed, signal.SIGKILL)
    broken = stack.run("status")
    assert broken.returncode == 3
    assert "stopped" in broken.stdout
    repaired = stack.run("up")
    assert repaired.returncode == 0
    assert "starting s3 ..." in repaired.stdout
    assert stack.pid("s3") != killed
    assert stack.run("status").returncode == 0


def test_a_recycled_pid_is_not_taken_for_a_service(stack: LocalStack, tmp_path: Path) -> None:
    other = LocalStack.new(tmp_path / "home")
    (other.home / "run").mkdir(parents=True)
    bystander = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        (other.home / "run" / "s3.json").write_text(f'{{"pid": {bystander.pid}, "started": 1.0}}')
        assert other.run("down").stdout == "nothing runs\n"
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_other_ports_are_refused_while_it_runs(stack: LocalStack) -> None:
    refused = stack.run("up", MMBERT_S3_PORT=str(LocalStack.new(stack.home).s3_port))
    assert refused.returncode == 2
    assert "already runs on other ports" in refused.stderr


def test_a_taken_port_is_a_clear_error(tmp_path: Path) -> None:
    stack = LocalStack.new(tmp_path / "home")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", stack.mlflow_port))
        taken.listen()
        refused = stack.run("up")
    assert refused.returncode == 3
    assert f"port {stack.mlflow_port} for mlflow is taken" in refused.stderr
    assert "MMBERT_MLFLOW_PORT=" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert stack.processes() == []


@pytest.mark.parametrize("port", ["ssh", "0", "70000"])
def test_a_port_that_is_none_is_the_users_error(tmp_path: Path, port: str) -> None:
    refused = LocalStack.new(tmp_path / "home").run("up", MMBERT_S3_PORT=port)
    assert refused.returncode == 2
    assert f"MMBERT_S3_PORT='{port}' is not a port" in refused.stderr
    assert not (tmp_path / "home").exists()


def test_a_service_that_ends_while_starting_shows_its_log(tmp_path: Path) -> None:
    stack = LocalStack.new(tmp_path / "home")
    (stack.home / "s3").mkdir(parents=True)
    (stack.home / "mlflow.db").write_text("this is no database, and not a short text either " * 100)
    refused = stack.run("up")
    assert refused.returncode == 3
    assert "mlflow ended while starting" in refused.stderr
    assert "file is not a database" in refused.stderr
    assert stack.processes() == []


def test_down_leaves_no_process_and_says_so(stack: LocalStack) -> None:
    processes = stack.processes()
    assert len(processes) >= len(SERVICES)
    stopped = stack.run("down")
    assert stopped.returncode == 0
    assert [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []
    assert stack.processes() == []
    assert stack.run("down").stdout == "nothing runs\n"
    assert stack.run("status").returncode == 3
