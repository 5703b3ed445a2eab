"""`mmbert reproduce`: recorded work done again, and its bytes compared."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from components.commands.as_json import echo_json, json_option
from mmbert import logs
from mmbert.errors import UserError

if TYPE_CHECKING:
    from components.reproduction import StepResult

_NAMES = 3


@click.command(name="reproduce")
@click.argument("run", metavar="RUN")
@click.option(
    "--from", "from_kind", default="", metavar="KIND", help="only artifacts of this kind and what is made of them"
)
@click.option(
    "--all", "whole", is_flag=True, help="also all that it was made of; a workflow run has its own steps anyway"
)
@click.option(
    "--into", default="", metavar="ROOT", help="keep what is made again here; default: a folder gone afterwards"
)
@click.option("--root", default=None, help="where the recorded artifacts are; default MMBERT_ROOT or ./artifacts")
@json_option("print the results as JSON (docs/lineage.md)")
def reproduce_command(run: str, from_kind: str, whole: bool, into: str, root: str | None, as_json: bool) -> None:
    """Do RUN's work again from what its artifacts record, and compare content digests and files.

    RUN is a run in MLflow, a workflow run's name, or an artifact; all that `mmbert trace` takes. Each step reads the
    recorded inputs, so steps are judged one by one. The registry, aliases and MLflow stay as they are. Ends with 0
    where all bytes are the same, with 4 where some are not, with 2 where a step cannot be made again or none was.
    """
    from components import reproduction
    from components.launchers.output import without_results
    from components.runtime import root_uri
    from mmbert import progress, storage
    from mmbert.lineage.naming import Servers, place_of, resolve
    from mmbert.lineage.store import read_store
    from mmbert.places import scratch_folder
    from mmbert.tracking import connect_registry
    from mmbert.tracking.lookup import connect_lookup

    if os.environ.get("MMBERT_LAUNCHER") == "kubernetes":
        raise UserError("pods of a cluster are told of MLflow; reproduce with MMBERT_LAUNCHER=process or docker")
    place = place_of(run)
    store = read_store(root or root_uri(), [place] if place else [])
    named = resolve(run, store, Servers(connect_registry, connect_lookup))
    uris = reproduction.chosen_steps(store, named.uris, from_kind, whole)
    results: list[StepResult] = []
    with scratch_folder() as scratch:
        target = into or str(scratch / "root")
        target = target if storage.is_s3(target) else str(Path(target).absolute())
        reproduction.check_root(store, uris, target)
        try:
            with progress.shown("reproduction", len(uris), "steps") as advance:
                for uri in uris:
                    with logs.results_apart(), contextlib.nullcontext() if into else without_results():
                        results.append(reproduction.reproduce(uri, store, target, scratch))
                    if not as_json:
                        click.echo(_line(results[-1]))
                    advance(1)
        finally:
            if as_json:  # of the steps before one that failed, too
                steps = [result.to_json() for result in results]
                told = {"schema": 1, "run": run, "root": store.root, "into": into, "steps": steps}
                echo_json(told)
    if not as_json:
        click.echo(_end(results))
    lost = [f"{uri}: no artifact is there now" for uri in named.gone]
    lost += [f"{r.kind} {r.recorded[:12]}: {r.reason}" for r in results if r.state == reproduction.NOT_RUN and r.needed]
    different = [r for r in results if r.state == reproduction.DIFFERENT]
    if different:
        raise reproduction.DifferentError(f"{len(different)} of {len(results)} artifacts are not the same")
    if lost:
        raise UserError("not all could be made again:\n" + "\n".join(lost))
    _check_compared(run, results)


def _check_compared(run: str, results: list[StepResult]) -> None:
    """Raises UserError where nothing can be said of bytes."""
    from components import reproduction

    states = {result.state for result in results}
    if states <= {reproduction.NOT_RUN}:
        raise UserError(
            f"{run}: nothing was made again{f' ({results[0].reason})' if results else ''}; --all makes what it was "
            "made of again, too, or name one of that (`mmbert trace` shows all)"
        )
    if not states & {reproduction.SAME, reproduction.DIFFERENT}:
        raise UserError(
            f"{run}: nothing was compared, since no file of what was made again is digested; --all makes what it was "
            "made of again, too, and compares that"
        )


def _line(result: StepResult) -> str:
    from mmbert.lineage.facts import short_digest

    head = f"{result.state:12}  {result.kind:11}  {result.label:28}  {short_digest(result.kind, result.recorded)}"
    lines = [f"{head}  {short_digest(result.kind, result.found)}".rstrip()]
    changed = [f for f in result.files if f.state != "same"]
    if result.files:
        lines.append(f"  {len(result.files) - len(changed)} of {len(result.files)} digested files are the same")
    lines += [f"  {file.state}: {file.path}{f' ({file.detail})' if file.detail else ''}" for file in changed]
    if result.reason and not changed:
        lines.append(f"  {result.reason}")
    return "\n".join(lines)


def _end(results: list[StepResult]) -> str:
    """How many of each, and what was not as recorded, each told once."""
    from components.reproduction import STATES

    counts = {state: sum(r.state == state for r in results) for state in STATES}
    lines = [", ".join(f"{n} {state}" for state, n in counts.items() if n) or "nothing to do"]
    told: dict[str, list[str]] = {}
    for result in results:
        for difference in result.differences:
            told.setdefault(difference, []).append(result.label or result.kind)
    if told:
        lines += ["", "not as recorded:"]
        lines += [f"  {difference} ({_names(names, len(results))})" for difference, names in told.items()]
    return "\n".join(lines)


def _names(names: list[str], of: int) -> str:
    if len(names) == of:
        return "all"
    return ", ".join(names[:_NAMES]) + (f" and {len(names) - _NAMES} more" if len(names) > _NAMES else "")
