"""Airflow's settings for one laptop: one scheduler, SQLite, LocalExecutor, quick to notice work and lost tasks."""

from __future__ import annotations

import configparser
import io
import json
import os

from infra.local.credentials import ADMIN, VIEWER, Credentials, write_private
from infra.local.settings import PROJECT, Settings

PASSWORDS = "passwords.json"
# Workers, each a fork of the scheduler; how much runs at once is set by the pool of cores.
_PARALLELISM = max(4, os.cpu_count() or 1)


def write_airflow_config(settings: Settings, credentials: Credentials) -> None:
    """Write airflow.cfg and the passwords file, both for their owner only."""
    home = settings.airflow_home
    home.mkdir(parents=True, exist_ok=True)
    passwords = {ADMIN: credentials.airflow_password, VIEWER: credentials.airflow_viewer_password}
    write_private(home / PASSWORDS, json.dumps(passwords) + "\n")
    parser = configparser.ConfigParser(interpolation=None)
    for section, values in _sections(settings, credentials).items():
        # Airflow interpolates `%`, so a path that holds one needs it doubled.
        parser[section] = {key: str(value).replace("%", "%%") for key, value in values.items()}
    text = io.StringIO()
    parser.write(text)
    write_private(home / "airflow.cfg", text.getvalue())


def _sections(settings: Settings, credentials: Credentials) -> dict[str, dict[str, object]]:
    home = settings.airflow_home
    return {
        "core": {
            "executor": "infra.local.executor.AdoptingExecutor",
            "dags_folder": PROJECT / "dags",
            "load_examples": False,
            "dags_are_paused_at_creation": False,
            "parallelism": _PARALLELISM,
            "max_active_tasks_per_dag": _PARALLELISM,
            "simple_auth_manager_users": f"{ADMIN}:admin,{VIEWER}:viewer",
            "simple_auth_manager_passwords_file": home / PASSWORDS,
            "execution_api_server_url": f"{settings.airflow_url}/execution/",
            "fernet_key": credentials.airflow_fernet_key,
        },
        "database": {"sql_alchemy_conn": f"sqlite:///{home / 'airflow.db'}"},
        "api": {
            "host": "127.0.0.1",
            "port": settings.ports.airflow,
            "base_url": settings.airflow_url,
            "workers": 1,
        },
        "api_auth": {"jwt_secret": credentials.airflow_jwt_secret},
        "logging": {"base_log_folder": home / "logs"},
        "scheduler": {
            "scheduler_idle_sleep_time": 0.5,
            # A laptop sleeps or is killed: notice a lost scheduler within seconds, not minutes. It is held dead after
            # three missed heartbeats, and a new one looks for its tasks when it starts and then every five seconds.
            "orphaned_tasks_check_interval": 5,
            "scheduler_health_check_threshold": 15,
            # A task that is silent for so long is tried again. Longer than Airflow's API server takes to come back,
            # without which no task is heard.
            "task_instance_heartbeat_timeout": 120,
            "parsing_cleanup_interval": 30,
        },
        "dag_processor": {
            "refresh_interval": 5,
            "parsing_processes": 1,
            "print_stats_interval": 0,
            "health_check_threshold": 30,
        },
        # How long a worker may wait after its task has ended before it takes another: with the default of 5 seconds
        # 26 short tasks in 13 levels took 24 s, with 2 they take 9 s.
        "workers": {
            "min_heartbeat_interval": 2,
            # A task waits a minute or more for the API server. The default gives up after some ten seconds: a task that
            # has just ended could not say so, and one that runs is killed after three such heartbeats.
            "execution_api_retries": 25,
            "execution_api_retry_wait_max": 5,
        },
        "usage_data_collection": {"enabled": False},
    }
