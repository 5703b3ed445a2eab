"""The demo's terminal driver: trigger the DAG, show it live, print the results or what failed."""

from __future__ import annotations

import base64
import contextlib
import http
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from infra.local.airflow_api import OPENER, AirflowApi
from infra.local.credentials import ADMIN, load
from infra.local.dag_run import DagRun, TaskState, trigger
from infra.local.settings import Settings, task_environment
from mmbert import artifacts
from mmbert.errors import InfrastructureError
from mmbert.pages.links import PAGES
from mmbert.recipe import load_recipe
from mmbert.tracking import REUSED_FROM
from mmbert.tracking.registry import CANDIDATE, CHAMPION

PRETRAIN, ADD_LANGUAGES = "mmbert_pretrain", "mmbert_add_languages"
_REPORTS = {PRETRAIN: "report", ADD_LANGUAGES: "languages_report"}
"""The task of each DAG that makes its report."""
_POLL_SECONDS = 1.0
_LOG_LINES = 25
_PIPED_WIDTH = 160
"""Columns where there is no terminal: the tables have room."""
_GLYPHS = {
    "success": ("✓", "green"),
    "running": ("▶", "cyan"),
    "failed": ("✗", "bold red"),
    "upstream_failed": ("-", "red"),
    "up_for_retry": ("↻", "yellow"),
    "queued": ("·", "yellow"),
    "scheduled": ("·", "yellow"),
}

_TOLD = {"running", "success", "failed", "up_for_retry", "skipped"}


class _MissingError(Exception):
    """MLflow has no such thing."""


Show = Callable[[Sequence[TaskState], float], None]


def demo(settings: Settings, preset: str, overrides: Sequence[str], run_name: str) -> int:
    """Run the DAG and follow it to its end. Returns the exit code of what failed, 0 if all of it worked."""
    return _run_dag(settings, PRETRAIN, preset, overrides, run_name, {})


def demo_languages(
    settings: Settings, preset: str, overrides: Sequence[str], run_name: str, model: str, text: str
) -> int:
    """Add languages to a model, or to the demo's, which is made first where it is not there. Returns as `demo`."""
    trained = load_recipe(preset, overrides)
    if not model and not (model := _registered(settings, trained.release.model_name)):
        if code := demo(settings, preset, overrides, run_name):
            return code
        model = _registered(settings, trained.release.model_name)
    own = {"model": _absolute(model), "text": _absolute(text)}
    # A name of its own: as a further version it would have to beat the model that it came from.
    named = [
        f"{key}={value}-languages"
        for key, value in (("name", trained.name), ("release.model_name", trained.release.model_name))
    ]
    return _run_dag(settings, ADD_LANGUAGES, preset, [*named, "release.gate={}", *overrides], run_name, own)


def _absolute(place: str) -> str:
    """Tasks run in another folder."""
    return str(Path(place).resolve()) if place and Path(place).exists() else place


def _registered(settings: Settings, name: str) -> str:
    """The artifact of a registered model's champion, else of its candidate; empty where there is none."""
    for alias in (CHAMPION, CANDIDATE):
        with contextlib.suppress(_MissingError):
            query = urllib.parse.urlencode({"name": name, "alias": alias})
            version = _mlflow_call(settings, f"registered-models/alias?{query}")["model_version"]
            return str(next(tag["value"] for tag in version["tags"] if tag["key"] == "mmbert.uri"))
    return ""


def _run_dag(
    settings: Settings, dag_id: str, preset: str, overrides: Sequence[str], run_name: str, own: Mapping[str, str]
) -> int:
    began = time.monotonic()
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _PIPED_WIDTH
    api = AirflowApi(settings.airflow_url, ADMIN, load(settings.home).airflow_password)
    preset = _absolute(preset)
    conf = {"preset": preset, "overrides": list(overrides), "run_name": run_name or None, **own}
    run, others = trigger(api, dag_id, conf)
    console.print(f"{dag_id} {run.run_id} · preset {preset}" + "".join(f" · {o}" for o in overrides), markup=False)
    if others:
        console.print(
            f"{others} other run(s) are not finished and share the cores: {settings.airflow_url}/dags/{dag_id}"
        )
    try:
        tasks = _follow(run, console)
    except KeyboardInterrupt:
        console.print(
            f"\nThe run goes on: {run.page}. The same command follows it again, `make down` stops everything."
        )
        return 130
    failed = sorted((t for t in tasks if t.state == "failed"), key=lambda t: t.ended)
    if failed or run.state() != "success":
        _print_failure(run, failed, console)
        return _exit_code(run, failed)
    # components.airflow names the workflow's run in MLflow so.
    _print_results(settings, run, _REPORTS[dag_id], f"{run_name} {run.run_id}".strip(), console)
    console.print(f"\nDone in {time.monotonic() - began:.0f} s.")
    return 0


def _follow(run: DagRun, console: Console) -> list[TaskState]:
    """Show the tasks until the run has ended."""
    if not console.is_terminal or os.environ.get("CI"):
        return _poll(run, _PlainView(console))
    with Live(console=console, refresh_per_second=4, transient=False) as live:
        return _poll(run, lambda tasks, seconds: live.update(_table(tasks, seconds, console.size.height)))


def _poll(run: DagRun, show: Show) -> list[TaskState]:
    began = time.monotonic()
    while True:
        ended = run.state() in {"success", "failed"}
        tasks = run.tasks()
        show(tasks, time.monotonic() - began)
        if ended:
            return tasks
        time.sleep(_POLL_SECONDS)


class _PlainView:
    """A line whenever a task begins, ends or is tried again: for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._seen: dict[tuple[str, int], tuple[str, int]] = {}

    def __call__(self, tasks: Sequence[TaskState], seconds: float) -> None:
        for task in tasks:
            key, now = (task.task_id, task.map_index), (task.state, task.try_number)
            if task.state not in _TOLD or self._seen.get(key) == now:
                continue
            self._seen[key] = now
            took = f" ({task.seconds:.1f} s)" if task.seconds is not None and task.state != "running" else ""
            attempt = f", attempt {task.try_number}" if task.try_number > 1 else ""
            line = f"{seconds:6.0f} s  {task.name}: {task.state}{took}{attempt}"
            self._console.print(line, markup=False, soft_wrap=True)


def _table(tasks: Sequence[TaskState], seconds: float, height: int) -> Table:
    done = [t for t in tasks if t.state == "success"]
    table = Table(box=None, pad_edge=False, title_justify="left", title_style="bold")
    table.title = f"{len(done)} of {len(tasks)} tasks done · {seconds:.0f} s"
    for name, justify in (("", "left"), ("task", "left"), ("state", "left"), ("seconds", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    room = max(5, height - 6)
    shown = list(tasks)
    if len(shown) > room:
        # Where the terminal is low: what is still to come, and the last that were done.
        hidden = min(len(shown) - room, len(done))
        dropped = {id(t) for t in done[:hidden]}
        shown = [t for t in shown if id(t) not in dropped][:room]
    for task in shown:
        glyph, style = _GLYPHS.get(task.state, (" ", "dim"))
        state = "" if task.state == "none" else task.state.replace("_", " ")
        attempt = f" (attempt {task.try_number})" if task.try_number > 1 else ""
        took = "" if task.seconds is None else f"{task.seconds:.1f}"
        table.add_row(Text(glyph, style), Text(task.name), Text(state + attempt, style), took)
    return table


def _print_failure(run: DagRun, failed: Sequence[TaskState], console: Console) -> None:
    for task in failed:
        console.rule(Text(f"{task.name} failed"), style="red")
        console.print("\n".join(run.log(task)[-_LOG_LINES:]), markup=False, soft_wrap=True)
        console.print(f"Its whole log: {run.task_page(task)}", soft_wrap=True, markup=False)
    if not failed:
        console.print("The run failed without a failed task; Airflow's own logs are in .local/logs.")
    console.print(f"The run: {run.page}   (log in with `make login`)", soft_wrap=True)


def _exit_code(run: DagRun, failed: Sequence[TaskState]) -> int:
    """The exit code that the first failed component ended with, 1 where it left none."""
    for task in failed:
        code = run.xcom(task.task_id, "mmbert_exit_code", task.map_index)
        if code is not None:
            return int(code)
    return 1


def _print_results(settings: Settings, run: DagRun, report: str, workflow_run: str, console: Console) -> None:
    os.environ.update(task_environment(settings, load(settings.home)))
    summary = artifacts.open_artifact(run.xcom(report), "report").read_json("summary.json")
    for described in summary["tables"]:
        table = Table(title=described["title"], title_justify="left", title_style="bold", header_style="dim")
        for index, column in enumerate(described["columns"]):
            table.add_column(str(column), justify="left" if index == 0 else "right")
        for row in described["rows"]:
            table.add_row(*(Text(_cell(value)) for value in row))
        console.print()
        console.print(table)
    console.print()
    for claim in summary["claims"]:
        mark = Text("✓ ", "green") if claim["holds"] else Text("✗ ", "bold red")
        console.print(mark + Text(f"{claim['text']} ({claim['figures']})"), soft_wrap=True)
    console.print("\nOpen (the logins: `make login`)", style="bold")
    links = {"Airflow run": run.page, **_mlflow_links(settings, report, workflow_run), **summary.get("links", {})}
    for name, url in links.items():
        console.print(f"  {name:12} {url}", soft_wrap=True, markup=False)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _mlflow_links(settings: Settings, report: str, workflow_run: str) -> dict[str, str]:
    """Pages of the workflow's own run in MLflow and of its reports."""
    ours = f"tags.`mmbert.workflow_run` = '{workflow_run}'"
    wanted = {
        "MLflow run": ("tags.`mmbert.role` = 'workflow'", ""),
        "Report": (f"tags.`mmbert.task` = '{report}'", f"/artifacts/{PAGES[report]}"),
        "Data report": ("tags.`mmbert.task` = 'data_report'", f"/artifacts/{PAGES['data_report']}"),
    }
    links = {}
    for name, (tag, place) in wanted.items():
        if found := _search_runs(settings, f"{ours} and {tag}"):
            links[name] = _run_page(settings, found[0]) + place
    return links


def _run_page(settings: Settings, run: dict[str, Any]) -> str:
    # A step that was found done links the run that made it, which holds the files.
    tags = {tag["key"]: tag["value"] for tag in run["data"].get("tags", [])}
    run_id = tags.get(REUSED_FROM, run["info"]["run_id"])
    return f"{settings.mlflow_url}/#/experiments/{run['info']['experiment_id']}/runs/{run_id}"


def _search_runs(settings: Settings, wanted: str) -> list[dict[str, Any]]:
    experiments = _mlflow_call(settings, f"experiments/search?{urllib.parse.urlencode({'max_results': 1000})}")
    ids = [e["experiment_id"] for e in experiments.get("experiments", [])]
    found = _mlflow_call(settings, "runs/search", {"experiment_ids": ids, "filter": wanted, "max_results": 10})
    return list(found.get("runs", []))


def _mlflow_call(settings: Settings, path: str, body: Any = None) -> Any:
    login = f"{ADMIN}:{load(settings.home).mlflow_password}".encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Basic {base64.b64encode(login).decode()}"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{settings.mlflow_url}/api/2.0/mlflow/{path}", data=data, headers=headers)  # noqa: S310
    try:
        with OPENER.open(request, timeout=20) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.NOT_FOUND:
            raise _MissingError from error
        raise InfrastructureError(f"MLflow at {settings.mlflow_url} refused: {error}") from error
    except (OSError, ValueError) as error:
        raise InfrastructureError(f"MLflow at {settings.mlflow_url} does not answer ({error})") from error
