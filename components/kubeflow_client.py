"""Pipelines sent to a Kubeflow Pipelines server: single runs and recurring ones."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kfp
import kfp_server_api
import requests
import urllib3

from mmbert.errors import InfrastructureError, MmbertError, UserError

TOKEN = "MMBERT_KFP_TOKEN"  # noqa: S105 - the name of the variable
_TIMES = {"@hourly": "0 0 * * * *", "@daily": "0 0 0 * * *", "@weekly": "0 0 0 * * 0", "@monthly": "0 0 0 1 * *"}


@dataclass(frozen=True)
class Server:
    """Where to send it. `namespace` is for servers of several users; a bearer token comes from MMBERT_KFP_TOKEN."""

    endpoint: str
    namespace: str = ""
    experiment: str = "mmbert"
    service_account: str = ""
    """Of the run's pods; empty: the server's default."""


def submit(server: Server, package: Path, arguments: Mapping[str, str], name: str, schedule: str = "") -> str:
    """Start a run of a compiled pipeline, or with a schedule make a recurring run; the address to look at.

    A recurring run starts one at a time, and one only for all the times that were missed. Raises InfrastructureError
    where no server answers.
    """
    cron = cron_of(schedule) if schedule else ""
    try:
        return _submit(server, package, arguments, name, cron)
    except kfp_server_api.ApiException as error:
        raise _refused(server, error.status or 0, error.reason, error.body) from error
    except (urllib3.exceptions.HTTPError, requests.RequestException) as error:
        raise InfrastructureError(
            f"{server.endpoint}: no Kubeflow Pipelines server answers there ({error}); check --endpoint and the network"
        ) from error


def _submit(server: Server, package: Path, arguments: Mapping[str, str], name: str, cron: str) -> str:
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # the error that is raised says it
    _check(server)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        token = os.environ.get(TOKEN)
        own: dict[str, Any] = {"namespace": server.namespace} if server.namespace else {}
        client = kfp.Client(host=server.endpoint, existing_token=token, **own)
    experiment = client.create_experiment(server.experiment, namespace=server.namespace or None).experiment_id
    common: dict[str, Any] = {
        "pipeline_package_path": str(package),
        "params": dict(arguments),
        "enable_caching": False,
        "service_account": server.service_account or None,
    }
    if not cron:
        run = client.run_pipeline(experiment, name, **common)
        return f"{server.endpoint.rstrip('/')}/#/runs/details/{run.run_id}"
    made = client.create_recurring_run(
        experiment, name, cron_expression=cron, max_concurrency=1, no_catchup=True, **common
    )
    return f"{server.endpoint.rstrip('/')}/#/recurringrun/details/{made.recurring_run_id}"


def _check(server: Server) -> None:
    """Ask the server how it is; the client itself would wait without end, or try a refused login for long."""
    token = os.environ.get(TOKEN)
    answer = requests.get(
        f"{server.endpoint.rstrip('/')}/apis/v2beta1/healthz",
        headers={"Authorization": f"Bearer {token}"} if token else {},
        timeout=20,
    )
    if not answer.ok:
        raise _refused(server, answer.status_code, answer.reason, answer.text[:500])
    if "json" not in answer.headers.get("Content-Type", ""):
        raise UserError(
            f"{server.endpoint}: what answers there is no Kubeflow Pipelines server but a page, a login perhaps "
            f"({answer.url}); check --endpoint, and put a token into {TOKEN}"
        )


def cron_of(schedule: str) -> str:
    """KFP's cron, which begins with seconds. Raises UserError for what is none."""
    if schedule in _TIMES:
        return _TIMES[schedule]
    fields = schedule.split()
    if len(fields) not in (5, 6):
        raise UserError(
            f"--schedule '{schedule}': give five cron fields (minute to weekday), six with seconds first, or one of "
            f"{', '.join(_TIMES)}"
        )
    return " ".join(["0"] * (6 - len(fields)) + fields)


def _refused(server: Server, status: int, reason: Any, body: Any) -> MmbertError:
    message = f"{server.endpoint}: Kubeflow Pipelines answered {status} ({reason}): {body}"
    if status in (401, 403):
        return UserError(f"{message}; put a token into {TOKEN}, and check --namespace")
    return UserError(message) if 400 <= status < 500 else InfrastructureError(message)
