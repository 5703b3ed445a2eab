"""Start, stop and show the stack."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

import psutil

from infra.local import processes
from infra.local.airflow_api import AirflowApi, ensure_pool
from infra.local.airflow_config import write_airflow_config
from infra.local.credentials import ADMIN, FILE, VIEWER, Credentials, load_or_create
from infra.local.services import Service, airflow_migration, all_services
from infra.local.settings import PORT_VARIABLES, Settings, record_ports, recorded_ports
from mmbert.errors import InfrastructureError, UserError

Say = Callable[[str], None]

NAMES = ("s3", "mlflow", "airflow-api", "airflow-scheduler", "airflow-dags")
# The pool that components.airflow puts its tasks into, and the most threads that the laptop profile gives one of them.
POOL = "cores"
_MINIMUM_SLOTS = 2
_START_SECONDS = 180.0
_STOP_SECONDS = 12.0
_STOP_SERVERS_SECONDS = 3.0
_LOG_LINES = 20
_POLL_SECONDS = 0.2


def up(settings: Settings, say: Say) -> None:
    """Start what does not run yet and wait until all of it is healthy.

    Raises InfrastructureError where a port is taken or a service does not come up; what this call started is then
    stopped again.
    """
    for folder in (settings.home, settings.run, settings.logs):
        folder.mkdir(parents=True, exist_ok=True)
    # What the services write (databases, logs, artifacts) is for nobody else, whatever mode they give it.
    settings.home.chmod(0o700)
    with _locked(settings.home):
        credentials = load_or_create(settings.home)
        services = all_services(settings, credentials)
        missing = [s for s in services if processes.find(s.name, settings.run) is None]
        _refuse_other_ports(settings, running=len(missing) < len(services))
        _refuse_without_login(settings, missing)
        if missing:
            _refuse_taken_ports(missing)
            record_ports(settings)
            write_airflow_config(settings, credentials)
            _start(settings, missing, say)
        _make_pool(settings, credentials)


def down(settings: Settings, say: Say) -> None:
    """Stop every process of the stack: services, Airflow's workers, components that they started."""
    if not settings.home.is_dir():
        say("nothing runs")
        return
    with _locked(settings.home):
        servers = _running(settings, ("airflow-api", "mlflow", "s3"))
        serving = {p.pid for p in processes.with_descendants(servers, settings.home)}
        everything = processes.with_descendants(_running(settings, NAMES), settings.home, everywhere=True)
        # The servers end last, so that a task finds them for what it writes on its way out. They keep nothing in memory
        # and need little patience (Airflow's API server takes 12 s to end by itself).
        processes.stop([p for p in everything if p.pid not in serving], _STOP_SECONDS)
        processes.stop(processes.with_descendants(servers, settings.home, everywhere=True), _STOP_SERVERS_SECONDS)
        for name in NAMES:
            processes.forget(name, settings.run)
        say(f"stopped {len(everything)} processes" if everything else "nothing runs")


def _running(settings: Settings, names: Iterable[str]) -> list[psutil.Process]:
    return [p for p in (processes.find(name, settings.run) for name in names) if p]


def status(settings: Settings) -> tuple[str, bool]:
    """A table of the services, and whether all of them are healthy."""
    if not (settings.home / FILE).exists():
        return "The stack was never started; `make up` starts it.", False
    rows = [("service", "state", "pid", "memory", "log")]
    all_healthy = True
    for service in all_services(settings, load_or_create(settings.home)):
        process = processes.find(service.name, settings.run)
        healthy = process is not None and service.healthy(process.create_time())
        all_healthy = all_healthy and healthy
        state = "healthy" if healthy else "not healthy" if process else "stopped"
        members = processes.with_descendants([process], settings.home) if process else []
        memory = f"{processes.memory_bytes(members) / 2**20:.0f} MiB" if members else "-"
        rows.append(
            (service.name, state, str(process.pid) if process else "-", memory, str(_log(settings, service.name)))
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines), all_healthy


def links(settings: Settings) -> str:
    """The three addresses and the logins, for people."""
    credentials = load_or_create(settings.home)
    return "\n".join(
        [
            f"Airflow  {settings.airflow_url}   login: {ADMIN} / {credentials.airflow_password}"
            f", or to read only: {VIEWER} / {credentials.airflow_viewer_password}",
            f"MLflow   {settings.mlflow_url}   login: {ADMIN} / {credentials.mlflow_password}",
            f"S3       {settings.s3_url}   keys: {settings.home / FILE}",
        ]
    )


def _start(settings: Settings, missing: list[Service], say: Say) -> None:
    deadline = time.monotonic() + float(os.environ.get("MMBERT_START_SECONDS", _START_SECONDS))
    started: dict[str, psutil.Process] = {}

    def start(service: Service) -> None:
        log = _log(settings, service.name)
        started[service.name] = processes.start(service.name, service.command, service.environment, settings.run, log)

    say(f"starting {', '.join(s.name for s in missing)} ...")
    try:
        airflow = [s for s in missing if s.name.startswith("airflow")]
        for service in missing:
            if service not in airflow:
                start(service)
        if airflow:
            _migrate(settings, started, deadline)
        for service in airflow:
            start(service)
        _wait(settings, missing, started, deadline, say)
    except BaseException:
        processes.stop(processes.with_descendants(started.values(), settings.home), _STOP_SECONDS)
        for name in started:
            processes.forget(name, settings.run)
        raise


def _make_pool(settings: Settings, credentials: Credentials) -> None:
    """A task takes as many slots of this pool as it has threads, so that tasks do not fight for the cores."""
    slots = max(os.cpu_count() or 1, _MINIMUM_SLOTS)
    api = AirflowApi(settings.airflow_url, ADMIN, credentials.airflow_password)
    ensure_pool(api, POOL, slots, "CPU cores; a task takes a slot a thread")


def _wait(
    settings: Settings, missing: list[Service], started: dict[str, psutil.Process], deadline: float, say: Say
) -> None:
    began = time.monotonic()
    waiting = list(missing)
    while waiting:
        _raise_if_ended(settings, started)
        for service in list(waiting):
            process = started[service.name]
            if processes.find(service.name, settings.run) is None:
                raise InfrastructureError(
                    f"{service.name} ended while starting.\n{_last_lines(settings, service.name)}"
                )
            if service.healthy(process.create_time()):
                say(f"  {service.name} is healthy after {time.monotonic() - began:.0f} s")
                waiting.remove(service)
        if waiting and time.monotonic() > deadline:
            name = waiting[0].name
            raise InfrastructureError(f"{name} did not become healthy in time.\n{_last_lines(settings, name)}")
        if waiting:
            time.sleep(_POLL_SECONDS)


def _raise_if_ended(settings: Settings, started: Iterable[str]) -> None:
    for name in started:
        if processes.find(name, settings.run) is None:
            raise InfrastructureError(f"{name} ended while starting.\n{_last_lines(settings, name)}")


def _migrate(settings: Settings, started: Iterable[str], deadline: float) -> None:
    """Make Airflow's database, once for each version of Airflow."""
    stamp = settings.airflow_home / "database-version"
    wanted = version("apache-airflow")
    if (settings.airflow_home / "airflow.db").exists() and stamp.exists() and stamp.read_text() == wanted:
        return
    command, environment = airflow_migration(settings)
    name = "airflow-database"
    with _log(settings, name).open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        while process.poll() is None:
            _raise_if_ended(settings, started)
            if time.monotonic() > deadline:
                raise InfrastructureError(f"Airflow's database was not ready in time.\n{_last_lines(settings, name)}")
            time.sleep(_POLL_SECONDS)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if process.returncode:
        raise InfrastructureError(f"Airflow's database could not be made.\n{_last_lines(settings, name)}")
    stamp.write_text(wanted)


def _refuse_other_ports(settings: Settings, running: bool) -> None:
    if running and recorded_ports(settings.home) not in ({}, vars(settings.ports)):
        raise UserError("the stack already runs on other ports; run `make down` first, or unset MMBERT_*_PORT")


def _refuse_without_login(settings: Settings, missing: list[Service]) -> None:
    if not any(s.name == "mlflow" for s in missing) and not settings.mlflow_users.exists():
        raise UserError("MLflow runs from before it had a login; run `make down` first")


def _refuse_taken_ports(services: list[Service]) -> None:
    for service in services:
        if service.port is None:
            continue
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", service.port))
            except OSError as error:
                variable = PORT_VARIABLES[service.name.removesuffix("-api")]
                raise InfrastructureError(
                    f"port {service.port} for {service.name} is taken ({error.strerror}); "
                    f"end what uses it or choose another port: {variable}=NUMBER make up"
                ) from error


@contextlib.contextmanager
def _locked(home: Path) -> Iterator[None]:
    """One `up` or `down` at a time."""
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _log(settings: Settings, name: str) -> Path:
    return settings.logs / f"{name}.log"


def _last_lines(settings: Settings, name: str) -> str:
    log = _log(settings, name)
    text = log.read_text(errors="replace") if log.exists() else ""
    return "\n".join([f"Last lines of {log}:", *text.splitlines()[-_LOG_LINES:]])
