"""`make up`, `make status`, `make down` as a user meets them, with the real services."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import time
import urllib.error
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import psutil
import pytest

from tests.fixtures_stack import ROOT, clean_environment
from tests.local_stack import LocalStack, basic, status_of
from tests.pages import all_blocks, run_by_tests

# What a stack made before MLflow had a login.
OLD_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "1f" * 10,
    "AWS_SECRET_ACCESS_KEY": "2e" * 20,
    "AIRFLOW_ADMIN_PASSWORD": "an-old-password",
    "AIRFLOW_JWT_SECRET": "3d" * 24,
    "AIRFLOW_FERNET_KEY": "YWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWE=",
}
OPEN_IN_AIRFLOW = {"/api/v2/monitor/health", "/api/v2/version", "/api/v2/auth/login", "/api/v2/auth/logout"}
SERVICES = {"s3", "mlflow", "airflow-api", "airflow-scheduler", "airflow-dags"}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    # A home with a space and a percent sign in its path, as some laptops have.
    stack = LocalStack.new(tmp_path_factory.mktemp("a 100% home"))
    (stack.home / "credentials.env").write_text("".join(f"{name}={value}\n" for name, value in OLD_CREDENTIALS.items()))
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


def soon(command: Callable[[], subprocess.CompletedProcess[str]]) -> subprocess.CompletedProcess[str]:
    """How it ends well within a minute: on a busy machine a heartbeat of Airflow's can be late for a moment."""
    deadline = time.monotonic() + 60
    while (ended := command()).returncode and time.monotonic() < deadline:
        pass
    return ended


def test_every_service_is_healthy(stack: LocalStack) -> None:
    shown = soon(lambda: stack.run("status"))
    assert shown.returncode == 0, shown.stdout
    rows = {line.split()[0]: line.split()[1] for line in shown.stdout.splitlines()[1:]}
    assert rows == dict.fromkeys(SERVICES, "healthy")
    assert status_of(f"http://127.0.0.1:{stack.mlflow_port}/", stack.mlflow_login()) == 200
    assert status_of(f"http://127.0.0.1:{stack.airflow_port}/") == 200


def test_a_second_up_changes_nothing(stack: LocalStack) -> None:
    before = {name: stack.pid(name) for name in SERVICES}
    secret = stack.credentials()
    again = stack.run("up")
    assert again.returncode == 0
    assert "starting" not in again.stdout
    assert "login: admin / " + secret["AIRFLOW_ADMIN_PASSWORD"] in again.stdout
    assert {name: stack.pid(name) for name in SERVICES} == before
    assert stack.credentials() == secret


def test_credentials_are_for_their_owner_only(stack: LocalStack) -> None:
    for name in ("credentials.env", "airflow/airflow.cfg", "airflow/passwords.json"):
        assert stat.S_IMODE((stack.home / name).stat().st_mode) == 0o600
    # Nobody else reaches what the services write: databases, logs, artifacts.
    assert stat.S_IMODE(stack.home.stat().st_mode) == 0o700
    assert len(set(stack.credentials().values())) == 8
    assert stack.leaks() == {}
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


@pytest.mark.parametrize(
    "path",
    [
        "",
        "api/2.0/mlflow/experiments/search?max_results=1",
        "api/2.0/mlflow/registered-models/search",
        "ajax-api/2.0/mlflow/experiments/search?max_results=1",
        "api/2.0/mlflow-artifacts/artifacts",
        "get-artifact?run_uuid=a&path=b",
        "graphql",
        "signup",
    ],
)
def test_mlflow_shows_nothing_without_the_login(stack: LocalStack, path: str) -> None:
    page = f"http://127.0.0.1:{stack.mlflow_port}/{path}"
    assert status_of(page) == 401
    assert status_of(page, basic("admin", "admin")) == 401
    assert status_of(page, basic("admin", "password1234")) == 401


def test_a_viewer_reads_airflow_and_changes_nothing(stack: LocalStack) -> None:
    token = stack.token("viewer")
    assert "mmbert_pretrain" in {dag["dag_id"] for dag in stack.airflow("/api/v2/dags", token=token)["dags"]}
    pool = {"name": "mine", "slots": 1, "description": "", "include_deferred": False}
    run = {"logical_date": None, "conf": {}}
    for path, body in (("/api/v2/dags/mmbert_pretrain/dagRuns", run), ("/api/v2/pools", pool)):
        with pytest.raises(urllib.error.HTTPError) as refused:
            stack.airflow(path, body, token)
        assert refused.value.code == 403


def test_airflow_shows_nothing_without_the_login(stack: LocalStack) -> None:
    """Each of its addresses, by its own list of them, but those that say whether it lives and who it is."""
    token = stack.token()
    paths = stack.airflow("/openapi.json", token=token)["paths"]
    asked = [path for path, methods in paths.items() if "get" in methods and path.startswith(("/api/", "/ui/"))]
    assert len(asked) > 60
    url = f"http://127.0.0.1:{stack.airflow_port}"
    with ThreadPoolExecutor(8) as pool:
        codes = pool.map(lambda path: status_of(url + path.replace("{", "").replace("}", "")), asked)
        found = dict(zip(asked, codes, strict=True))
    assert {path for path, code in found.items() if code not in (401, 403)} == OPEN_IN_AIRFLOW


def test_services_listen_on_loopback_only(stack: LocalStack) -> None:
    ours = {process.pid for process in stack.processes()}
    # Asked of the machine and not process by process: those that Airflow starts and ends would be gone when asked.
    listening = [
        connection.laddr
        for connection in psutil.net_connections("inet")
        if connection.pid in ours and connection.status == psutil.CONN_LISTEN
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


def test_credentials_from_before_mlflow_had_a_login_are_completed(stack: LocalStack) -> None:
    now = stack.credentials()
    assert OLD_CREDENTIALS.items() < now.items()
    assert f"login: admin / {now['MLFLOW_ADMIN_PASSWORD']}" in stack.run("login").stdout


def test_a_stack_from_before_mlflow_had_a_login_is_to_be_stopped_first(stack: LocalStack) -> None:
    users = stack.home / "mlflow-users.db"
    users.rename(stack.home / "elsewhere")
    refused = stack.run("up")
    (stack.home / "elsewhere").rename(users)
    assert refused.returncode == 2
    assert "MLflow runs from before it had a login; run `make down` first" in refused.stderr


def test_a_new_password_counts_though_mlflow_knew_another(stack: LocalStack) -> None:
    new = "another-password"
    variables = {"CONFIG_PATH": str(stack.home / "mlflow-auth.ini"), "ADMIN_USERNAME": "admin", "ADMIN_PASSWORD": new}
    environment = clean_environment() | {f"MLFLOW_AUTH_{name}": value for name, value in variables.items()}
    started = [str(ROOT / ".venv-mlflow" / "bin" / "python"), "-m", "infra.local.mlflow_server", "--version"]
    subprocess.run(started, cwd=stack.home, env=environment, capture_output=True, check=True)
    page = f"http://127.0.0.1:{stack.mlflow_port}/api/2.0/mlflow/users/current"
    assert status_of(page, basic("admin", new)) == 200


def test_the_documentations_commands_work(stack: LocalStack) -> None:
    documented = {c.text for block in all_blocks() for c in run_by_tests(block) if c.way == "stack"}
    assert {"make up", "make status", "make login", "make down"} <= documented
    for command in sorted(documented - {"make down"}):
        ended = soon(partial(stack.shell, f'eval "$(make -s env)"; {command}'))
        assert ended.returncode == 0, f"{command}\n{ended.stdout}{ended.stderr}"


def test_down_leaves_no_process_and_says_so(stack: LocalStack) -> None:
    processes = stack.processes()
    assert len(processes) >= len(SERVICES)
    stopped = stack.shell("make down")
    assert stopped.returncode == 0
    assert [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []
    assert stack.processes() == []
    assert stack.run("down").stdout == "nothing runs\n"
    assert stack.run("status").returncode == 3
