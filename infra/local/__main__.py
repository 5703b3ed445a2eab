"""`python -m infra.local up|down|status|login|env|demo|demo-languages`, the commands behind the Makefile's targets."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time

from infra.local import stack
from infra.local.credentials import load
from infra.local.settings import Settings, load_settings, task_environment
from mmbert.errors import MmbertError


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m infra.local", description="S3, MLflow and Airflow on this machine."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="start the stack and wait until it is healthy")
    commands.add_parser("down", help="stop the stack")
    commands.add_parser("status", help="show the services; exit code 3 unless all are healthy")
    commands.add_parser("login", help="print the links and the login")
    commands.add_parser("env", help='print the variables that components need: eval "$(python -m infra.local env)"')
    demo = commands.add_parser("demo", help="start the stack, run the DAG mmbert_pretrain, show it and its results")
    languages = commands.add_parser(
        "demo-languages",
        help="add languages to the demo's model (made first where it is not there): mmbert_add_languages",
    )
    languages.add_argument(
        "--model", default=os.environ.get("MODEL", ""), help="another model's folder, checkpoint or artifact (MODEL)"
    )
    languages.add_argument(
        "--text", default=os.environ.get("TEXT", ""),
        help="a folder with a folder a new language (TEXT); default: the languages that the demo reserved",
    )  # fmt: skip
    for command in (demo, languages):
        _recipe_arguments(command)
    arguments = parser.parse_args()
    try:
        return _run(arguments)
    except MmbertError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _recipe_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--preset", default=os.environ.get("PRESET") or "tiny", help="preset or recipe file (PRESET; default tiny)"
    )
    command.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="override a key of the recipe, several times if need be (OVERRIDES, separated by spaces)",
    )
    command.add_argument(
        "--run-name", default=os.environ.get("RUN_NAME", ""), help="stands before the run's id in MLflow (RUN_NAME)"
    )


def _run(arguments: argparse.Namespace) -> int:
    settings = load_settings()
    match arguments.command:
        case "up":
            return _up(settings)
        case "down":
            stack.down(settings, _say)
        case "status":
            table, healthy = stack.status(settings)
            _say(table)
            return 0 if healthy else 3
        case "login":
            load(settings.home)
            _say(stack.links(settings))
        case "demo" | "demo-languages":
            from infra.local.demo import demo, demo_languages

            _up(settings)
            overrides = arguments.overrides or shlex.split(os.environ.get("OVERRIDES", ""))
            run = (settings, arguments.preset, overrides, arguments.run_name)
            return demo(*run) if arguments.command == "demo" else demo_languages(*run, arguments.model, arguments.text)
        case "env":
            for name, value in task_environment(settings, load(settings.home)).items():
                _say(f"export {name}={shlex.quote(value)}")
    return 0


def _up(settings: Settings) -> int:
    began = time.monotonic()
    stack.up(settings, _say)
    _say(f"the stack is up ({time.monotonic() - began:.0f} s)\n{stack.links(settings)}")
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
