"""The command `mmbert`. It imports nothing heavy until a component's work begins."""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import os
import signal
import sys
import traceback
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from components.commands import parameters
from components.commands.as_json import echo_json, json_option
from components.commands.compare import compare_command
from components.commands.convert import convert_command
from components.commands.evaluate import evaluate_command
from components.commands.import_checkpoint import import_command
from components.commands.kfp import filled_in, kfp_group
from components.commands.kubernetes import kubernetes_group
from components.commands.merge import merge_command
from components.commands.mixture import mixture_command
from components.commands.plan import plan_command
from components.commands.promote import promote_command
from components.commands.publish import publish_command
from components.commands.reproduce import reproduce_command
from components.commands.results import results_command
from components.commands.storage import storage_group
from components.commands.trace import trace_command
from components.contract import Component
from mmbert import __version__, logs
from mmbert.errors import MmbertError, UserError
from mmbert.showing import shown

if TYPE_CHECKING:
    from components.runtime import Result
    from mmbert.artifacts import Artifact


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option("-q", "--quiet", is_flag=True, help="only warnings, errors and results; also MMBERT_QUIET=1")
def cli(quiet: bool) -> None:
    """Pretrain, extend, evaluate and keep re-evaluating a modern multilingual encoder.

    Results go to standard output; progress and messages go to standard error.

    Exit codes: 0 done, 2 wrong input (recipe, data, arguments), 3 infrastructure (worth a retry), 4 other bytes (of
    `reproduce`), 1 a bug.
    """
    if quiet:
        os.environ[logs.QUIET] = "1"
    logs.set_up(results=False)


def _component_command(item: Component) -> click.Command:
    options = parameters.options(item)
    options.append(
        click.Option(
            ["--launcher"], type=click.Choice(["process", "docker", "kubernetes"]),
            help="start it so, in the environment or image of its own; without, it runs here",
        )
    )  # fmt: skip
    options.append(
        click.Option(["--root"], default=None, help="where artifacts are kept; default MMBERT_ROOT or ./artifacts")
    )
    options.append(click.Option(["--task"], default=item.name, show_default=True, help="name of its run in MLflow"))

    options.append(click.Option(["--result-file"], default=None, help="a file to write the result to, as JSON"))
    options.append(
        click.Option(
            ["--output", "output_files"], type=(click.Choice(["uri", *item.outputs]), str), multiple=True,
            metavar="NAME FILE", help=f"a file to write one of {', '.join(('uri', *item.outputs))} to; lists as JSON",
        )
    )  # fmt: skip
    options.append(
        click.Option(
            ["--expect", "expected"], type=(str, str), multiple=True, metavar="NAME JSON",
            help="fail where the list NAME is another one: what follows was laid out for this one",
        )
    )  # fmt: skip
    options.append(
        click.Option(
            ["--workflow-run"], default=None, help="the workflow run that this belongs to; MMBERT_WORKFLOW_RUN"
        )
    )

    options.append(
        click.Option(
            ["--each"], type=click.Choice([p.name for p in item.parameters if not p.is_list]),
            help="this argument is a JSON list: run once for each of its items; the results are lists, too",
        )
    )  # fmt: skip

    def callback(
        root: str | None,
        task: str,
        result_file: str | None,
        output_files: tuple[tuple[str, str], ...],
        expected: tuple[tuple[str, str], ...],
        workflow_run: str | None,
        each: str | None,
        launcher: str | None,
        **arguments: Any,
    ) -> None:
        from components.code import check_identity
        from components.processes import LAUNCHED
        from components.runtime import root_uri
        from mmbert import artifacts, metrics

        check_identity()
        if workflow_run:
            os.environ["MMBERT_WORKFLOW_RUN"] = filled_in(workflow_run)
        given = parameters.plain(arguments)
        calls = [{**given, each: one} for one in _items(each, str(given[each]))] if each else [given]
        with logs.results_apart(), contextlib.nullcontext() if launcher else metrics.served():
            results = [_run(item, call, root or root_uri(), task, launcher) for call in calls]
        made = [artifacts.open_artifact(result.uri) for result in results]
        told = [_result(one, result.reused) for one, result in zip(made, results, strict=True)]
        for one in made:
            _check_expected(one, expected)
        if os.environ.get("LOCAL_RANK", "0") == "0":
            for path, values in _files(made, told, result_file, output_files):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(_text(values if each else values[0]), "utf-8")
        if not any(result.helped for result in results) and LAUNCHED not in os.environ:
            click.echo(_text(told if each else told[0]))

    text = f"{item.summary}\n\n{item.description}"
    return click.Command(item.name, params=list(options), callback=callback, help=text, short_help=item.summary)


run_group = parameters.ComponentGroup(
    "run",
    make=_component_command,
    callback=logs.set_up,
    help="Run one component alone, with the same arguments as in a workflow.",
)
cli.add_command(run_group)


def _run(item: Component, arguments: dict[str, Any], root: str, task: str, launcher: str | None) -> Result:
    """Run a component here, or by a launcher as one step of a workflow."""
    from components.runtime import Result, run_component

    if launcher is None:
        return run_component(item, arguments, root, task)
    from components.steps import run_step

    os.environ["MMBERT_LAUNCHER"] = launcher
    run = os.environ.get("MMBERT_WORKFLOW_RUN") or uuid.uuid4().hex
    step = run_step(item.name, arguments, root=root, task=task, workflow_run=run)
    return Result(step.uri, step.reused, step.outputs)


def _items(name: str, text: str) -> list[str]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise UserError(f"--{name.replace('_', '-')} {text}: with --each {name} it is a JSON list of texts")
    return found


def _result(made: Artifact, reused: bool) -> dict[str, Any]:
    return {"uri": made.uri, "reused": reused, "outputs": dict(made.outputs)}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _check_expected(made: Artifact, expected: tuple[tuple[str, str], ...]) -> None:
    for name, text in expected:
        if (found := made.outputs.get(name)) != json.loads(text):
            raise UserError(
                f"the {made.manifest.kind}'s {name} are {json.dumps(found)}, and what follows was laid out for {text}: "
                "compile the pipeline again"
            )


def _files(
    made: list[Artifact],
    results: list[dict[str, Any]],
    result_file: str | None,
    output_files: tuple[tuple[str, str], ...],
) -> Iterator[tuple[Path, list[Any]]]:
    if result_file:
        yield Path(result_file), results
    for name, path in output_files:
        yield Path(path), [one.uri if name == "uri" else one.outputs[name] for one in made]


@cli.group(name="recipe")
def recipe_group() -> None:
    """Look at recipes and check them."""


_overrides = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="override a key, like phases.decay.tokens=1M"
)


@recipe_group.command()
@click.argument("source", metavar="NAME|FILE")
@_overrides
@json_option()
def show(source: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Print a preset or a recipe file whole, defaults written out."""
    from mmbert.recipe import load_recipe, recipe_to_yaml

    recipe = load_recipe(source, overrides)
    if as_json:
        echo_json(recipe.model_dump(mode="json"))
    else:
        click.echo(recipe_to_yaml(recipe), nl=False)


@recipe_group.command()
@click.argument("source", metavar="NAME|FILE")
@_overrides
@json_option()
def validate(source: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Check a preset or a recipe file; says what is wrong with it, or that nothing is."""
    from mmbert.recipe import load_recipe
    from mmbert.tables import counted

    recipe = load_recipe(source, overrides)
    phases = recipe.phases
    tokens = phases.pretrain.tokens + phases.extend.tokens + phases.decay.tokens
    if as_json:
        echo_json({"name": recipe.name, "tokens": tokens, "variants": list(phases.decay.variants)})
        return
    click.echo(
        f"{source}: a valid recipe ({recipe.name}, {tokens:,} tokens in three phases, "
        f"{counted(len(phases.decay.variants), 'decay variant')})"
    )


@cli.command()
@click.argument("name", default="pretrain")
@click.option("--preset", default="tiny", show_default=True, help="a preset's name or a recipe file")
@_overrides
@click.option("--root", default=None, help="where artifacts are kept; default MMBERT_ROOT or ./artifacts")
@click.option(
    "--run-name", default="", help="the run's name in MLflow, where there is one; default: local and the time"
)
@click.option(
    "--model",
    help="reevaluate: a version (7), an alias (@candidate) or the URI of a model artifact; add_languages: a model's "
    "folder, name on the hub, raw checkpoint or artifact",
)
@click.option("--text", help="add_languages: a folder or s3:// prefix with a folder a new language")
@json_option()
def workflow(
    name: str,
    preset: str,
    overrides: tuple[str, ...],
    root: str | None,
    run_name: str,
    model: str | None,
    text: str | None,
    as_json: bool,
) -> None:
    """Run a workflow (pretrain, reevaluate, add_languages) in this process, one component after the other."""
    from components.local import run_workflow
    from components.runtime import root_uri

    run_name = run_name or f"local {datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d %H:%M:%S}"
    own = {name: value for name, value in (("model", model), ("text", text)) if value is not None}
    with logs.results_apart():
        runner = run_workflow(name, preset, list(overrides), root or root_uri(), run_name, **own)
    if as_json:
        steps = [
            {"task": task, "label": step.label, "uri": step.uri, "reused": step.reused, "outputs": dict(step.outputs)}
            for task, step in runner.steps
        ]
        places = [{"kind": kind, "place": place} for kind, place in runner.places()]
        echo_json({"workflow": name, "run_name": run_name, "root": runner.root, "steps": steps, "places": places})
        return
    from mmbert.tables import table

    rows = [["found" if step.reused else "made", task, step.label, step.uri] for task, step in runner.steps]
    click.echo(table(rows[0], rows[1:], left=4))
    for kind, place in runner.places():
        click.echo(f"{kind}: {place}")


for command in (
    compare_command,
    convert_command,
    evaluate_command,
    import_command,
    kfp_group,
    kubernetes_group,
    merge_command,
    mixture_command,
    plan_command,
    promote_command,
    publish_command,
    reproduce_command,
    results_command,
    trace_command,
    storage_group,
):
    cli.add_command(command)


@cli.group(name="components")
def components_group() -> None:
    """The components' contracts."""


@components_group.command()
@click.option("--check", is_flag=True, help="change nothing; fail where a file differs from its contract")
def generate(check: bool) -> None:
    """Write each component's component.yaml and README.md from its entry function."""
    from components.documents import generate_all

    for path in generate_all(check):
        click.echo(path)


@components_group.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def reference(folder: Path) -> None:
    """Write the reference pages into FOLDER: components, commands, recipe keys; `make docs` puts them into its site."""
    from components.reference import write_reference

    for path in write_reference(folder, cli):
        click.echo(path)


def main() -> None:
    """Run the command line; turn errors into one message and the exit code that says whose fault it was."""
    # So that a stopped component cleans up and its MLflow run ends as KILLED.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(_exit_code(functools.partial(cli, standalone_mode=False, prog_name="mmbert")))


def _exit_code(command: Callable[[], Any]) -> int:
    try:
        command()
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.ClickException as error:
        error.show()
        return 2
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        return 130
    except MmbertError as error:
        if os.environ.get("MMBERT_DEBUG"):
            click.echo(shown(traceback.format_exc()), err=True)
        click.echo(f"error: {error}", err=True)
        return error.exit_code
    except OSError as error:
        click.echo(f"error: {shown(str(error))}", err=True)
        return 3
    except Exception:
        click.echo(shown(traceback.format_exc()), err=True)
        click.echo(
            f"error: this is a bug in mmbert {__version__}; please report it with the trace above",
            err=True,
        )
        return 1
    return 0


if __name__ == "__main__":
    main()
