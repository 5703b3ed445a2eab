"""`mmbert kfp`: the workflows as Kubeflow pipelines. What needs the package kfp runs in the orchestrator's Python."""

from __future__ import annotations

import datetime
import functools
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from components.images import TARGETS
from components.workflows import WORKFLOWS
from mmbert import logs
from mmbert.errors import InfrastructureError, UserError

PYTHON = "MMBERT_ORCHESTRATOR_PYTHON"
_PROJECT = Path(__file__).resolve().parents[2]


@click.group(name="kfp")
def kfp_group() -> None:
    """The workflows as Kubeflow pipelines: compile them, send them to a server, or run them here in containers."""


def _layout_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that decide a compiled pipeline; the command gets a `layout`."""

    @click.option("--preset", default="tiny", show_default=True, help="a preset's name, or a recipe file (s3://)")
    @click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="override a key of the recipe")
    @click.option("--image-prefix", envvar="MMBERT_IMAGE_PREFIX", default="mmbert-", show_default=True)
    @click.option("--image-tag", envvar="MMBERT_IMAGE_TAG", default="latest", show_default=True)
    @click.option(
        "--image",
        "images",
        multiple=True,
        metavar="TARGET=IMAGE",
        help="one target's image, by digest for instance; default MMBERT_IMAGE_<TARGET>",
    )
    @click.option("--gpus", default=1, show_default=True, help="GPUs of a node, for what the profile gives GPUs")
    @functools.wraps(command)
    def with_layout(
        preset: str,
        overrides: tuple[str, ...],
        image_prefix: str,
        image_tag: str,
        images: tuple[str, ...],
        gpus: int,
        **others: Any,
    ) -> Any:
        _need_kfp()
        from components.kubeflow import Layout

        named = dict(_named(image) for image in images)
        return command(layout=Layout(preset, overrides, image_prefix, image_tag, named, gpus), **others)

    return with_layout


def _need_kfp() -> None:
    """Go on in the orchestrator's environment where this one has no kfp; this process is replaced then."""
    found = importlib.util.find_spec("kfp")
    if found is not None and found.origin is not None:  # a folder of that name is none
        return
    python = Path(os.environ.get(PYTHON, _PROJECT / ".venv-orchestrator" / "bin" / "python"))
    if not python.exists():
        raise UserError(
            f"the package kfp is not installed here, and there is no {python}; run 'make setup', install "
            f"mmbert-pipeline[orchestrator], or set {PYTHON} to a Python that has it"
        )
    if python.parent.parent.resolve() == Path(sys.prefix).resolve():
        raise UserError(f"{python}: the package kfp is not installed there; install mmbert-pipeline[orchestrator]")
    path = os.pathsep.join(filter(None, [str(_PROJECT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    os.execve(python, [str(python), "-P", "-m", "components.cli", *sys.argv[1:]], environment)  # noqa: S606


def filled_in(workflow_run: str) -> str:
    """The name of the workflow's run. Raises UserError where it is still the placeholder that a server replaces."""
    if "{{$." in workflow_run:
        raise UserError(
            f"--workflow-run {workflow_run}: the Kubeflow Pipelines server did not fill this in, so all runs would be "
            "one; it needs version 2.15 or newer"
        )
    return workflow_run


def _named(image: str) -> tuple[str, str]:
    target, _, reference = image.partition("=")
    if target not in TARGETS or not reference:
        raise UserError(f"--image {image}: it is data=IMAGE, train=IMAGE, eval=IMAGE or orchestrator=IMAGE")
    return target, reference


_workflow = click.argument("workflow", type=click.Choice(list(WORKFLOWS)))
_root = click.option("--root", envvar="MMBERT_ROOT", required=True, help="where artifacts are kept (s3://)")
_model = click.option("--model", default="", help="reevaluate: a version, an alias or the URI of a model artifact")


@kfp_group.command(name="compile")
@click.argument("workflows", nargs=-1, type=click.Choice(list(WORKFLOWS)))
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="folder for the YAML")
@_layout_options
def compile_command(workflows: tuple[str, ...], out: Path, layout: Any) -> None:
    """Write WORKFLOWS (without any: all) as compiled pipelines.

    A pipeline is laid out for its recipe's groups of languages, decay variants and suites: compile it again when one of
    these changes. A run that finds another recipe says so and stops.
    """
    from components.kubeflow import compile_pipeline

    for name in workflows or WORKFLOWS:
        click.echo(compile_pipeline(name, layout, out))


@kfp_group.command(name="submit")
@_workflow
@click.option("--endpoint", envvar="KF_PIPELINES_ENDPOINT", required=True, help="the server's address, https://...")
@click.option("--namespace", default="", help="whose run it is, on a server of several users")
@click.option("--experiment", default="mmbert", show_default=True)
@click.option("--run-name", default="", help="default: the workflow, the preset and the time")
@click.option("--schedule", default="", metavar="CRON", help="a recurring run: five cron fields in UTC, or @weekly")
@click.option(
    "--service-account", default="", help="of the run's pods; training on several nodes needs one that may start it"
)
@_root
@_model
@_layout_options
def submit_command(
    workflow: str,
    endpoint: str,
    namespace: str,
    experiment: str,
    run_name: str,
    schedule: str,
    service_account: str,
    root: str,
    model: str,
    layout: Any,
) -> None:
    """Compile WORKFLOW and start it on a Kubeflow Pipelines server, now or with --schedule again and again.

    A recurring run does one run at a time, and one only for all the times that it missed.
    """
    from components.kubeflow import compile_pipeline
    from components.kubeflow_client import Server, submit

    name = run_name or f"{workflow} {layout.preset}"
    if not run_name and not schedule:
        name += f" {datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d %H:%M:%S}"
    with tempfile.TemporaryDirectory() as folder:
        package = compile_pipeline(workflow, layout, Path(folder))
        server = Server(endpoint, namespace, experiment, service_account)
        click.echo(submit(server, package, _arguments(workflow, root, model), name, schedule))


@kfp_group.command(name="run")
@_workflow
@_root
@_model
@_layout_options
def run_command(workflow: str, root: str, model: str, layout: Any) -> None:
    """Compile WORKFLOW and run its containers here, one after the other, over a Docker API (DOCKER_HOST)."""
    from components.kubeflow import compile_pipeline
    from components.kubeflow_local import run_pipeline

    with logs.results_apart(), tempfile.TemporaryDirectory() as folder:
        run_pipeline(compile_pipeline(workflow, layout, Path(folder)), _arguments(workflow, root, model))


def _arguments(workflow: str, root: str, model: str) -> dict[str, str]:
    if not root.startswith("s3://"):
        raise UserError(f"--root {root}: containers see no folder of this machine; give an s3:// prefix")
    if model and workflow != "reevaluate":
        raise UserError(f"the workflow '{workflow}' takes no model")
    return {"root": root, **({"model": model} if workflow == "reevaluate" else {})}


@kfp_group.command(name="end", hidden=True)
@click.option("--experiment", required=True)
@click.option("--root", required=True)
@click.option("--workflow-run", required=True)
@click.option("--last", multiple=True, required=True, help="a task without which the workflow is not done")
def end_command(experiment: str, root: str, workflow_run: str, last: tuple[str, ...]) -> None:
    """End the workflow's run in MLflow: the last task of each pipeline.

    Whether it failed is read there too: of what servers say of a run that ends, not all is true.
    """
    from components.code import check_identity
    from components.runtime import replay_spools
    from mmbert import tracking

    check_identity()
    try:
        tracker = tracking.connect(experiment, filled_in(workflow_run))
        replay_spools(tracker, root)
        tracker.finish_workflow("FINISHED" if tracker.finished(last) else "FAILED")
    except InfrastructureError as error:
        # MLflow being away has no say in whether the workflow succeeded.
        click.echo(f"the run in MLflow was not ended: {error}", err=True)
